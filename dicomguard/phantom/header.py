"""Headers of the phantoms: valid CR and DX (For Presentation) data sets, plainly labelled as synthetic.

PS3.3 A.2 (CR Image IOD) and A.26 (Digital X-Ray Image IOD). UIDs are of the 2.25 kind (PS3.5 B.2), derived from names,
so that the same phantom always carries the same ones.
"""

from __future__ import annotations

import uuid
from typing import Final, Literal

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

Modality = Literal["CR", "DX"]

_NAMESPACE: Final = uuid.UUID("5f0e3bd4-7d8c-5c0e-9a43-6d1c6b1e2f70")
IMPLEMENTATION: Final = UID("2.25.291083475913470893640285460386117212183")
_DETECTOR_MM: Final = 430.0


def uid_for(name: str) -> UID:
    """The UID that belongs to a name: 2.25. and the decimal value of a version 5 UUID."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def chest_header(
    *, name: str, label: str, modality: Modality, opacity: bool, instance: int, rows: int, columns: int
) -> Dataset:
    """Everything but the pixels. `name` decides the UIDs, `label` is what people read."""
    dataset = Dataset()
    general(dataset, name, label, opacity=opacity, instance=instance)
    pixel_description(dataset, rows, columns)
    spacing = [f"{_DETECTOR_MM / rows:.6g}", f"{_DETECTOR_MM / columns:.6g}"]
    dataset.Modality = modality
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.ImagerPixelSpacing = spacing
    if modality == "DX":
        dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
        _digital_xray(dataset)
    else:
        dataset.SOPClassUID = ComputedRadiographyImageStorage
        dataset.PatientOrientation = ["L", "F"]
    dataset.file_meta = file_meta(dataset)
    return dataset


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """File meta information of an uncompressed instance with its class and UID set (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    return meta


def general(dataset: Dataset, name: str, label: str, *, opacity: bool, instance: int) -> None:
    """Patient, study, series, equipment and image: what every phantom carries. `name` decides the UIDs."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.DerivationDescription = "Synthetic QA phantom, no patient"
    dataset.SOPInstanceUID = uid_for(f"{name}/{instance}")
    dataset.StudyInstanceUID = uid_for(f"study/{name}")
    dataset.SeriesInstanceUID = uid_for(f"series/{name}")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200102"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = ""
    dataset.Manufacturer = "dicomguard"
    dataset.ManufacturerModelName = "QA phantom"
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = "1"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "QA PHANTOM CHEST"
    dataset.SeriesDescription = "SYNTHETIC " + ("OPACITY" if opacity else "NORMAL")
    dataset.PatientName = f"PHANTOM^{label}"
    dataset.PatientID = f"PHANTOM-{label}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = instance
    dataset.AcquisitionNumber = instance
    dataset.QualityControlImage = "YES"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"


def pixel_description(dataset: Dataset, rows: int, columns: int) -> None:
    """12 bits stored in 16, unsigned, MONOCHROME2, with a window over all of them."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    # LINEAR window over all 12 bits (PS3.3 C.11.2.1.2.1): presentation value = stored value / 4095.
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.WindowCenterWidthExplanation = "FULL RANGE"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"


def _digital_xray(dataset: Dataset) -> None:
    """DX Series, DX Anatomy Imaged, DX Image, DX Detector, DX Positioning, Acquisition Context (PS3.3 C.8.11)."""
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = "U"
    dataset.PatientOrientation = ["L", "F"]
    region = code("51185008", "SCT", "Chest")
    dataset.AnatomicRegionSequence = Sequence([region])
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.DetectorType = "SCINTILLATOR"
    dataset.DetectorID = "PHANTOM"
    dataset.PositionerType = "NONE"
    dataset.AcquisitionContextSequence = Sequence([])
    view = code("399348003", "SCT", "postero-anterior")
    view.ViewModifierCodeSequence = Sequence([])
    dataset.ViewCodeSequence = Sequence([view])
