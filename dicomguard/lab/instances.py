"""Labelled pictures as DICOM instances of their modality, so that real images can travel and be scored as files.

The instances say that they were converted (Conversion of a picture, no acquisition data) and carry no patient data.
"""

from __future__ import annotations

import uuid

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    OphthalmicPhotography8BitImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)

from dicomguard.errors import DicomguardError

_NAMESPACE = uuid.UUID("0b1f6f2c-6f0d-5a57-9d1e-1f5f6b0e6c11")
_IMPLEMENTATION = UID("2.25.291083475913470893640285460386117212183")


def computed_radiograph(gray: NDArray[np.uint8], *, bits: int, name: str) -> Dataset:
    """A chest radiograph (PS3.3 A.2). `gray` (H, W) with `bits` stored (8 to 16), window over the full range.

    `name` decides the UIDs, so that the same picture always becomes the same instance.
    """
    dataset = _converted(gray, ComputedRadiographyImageStorage, bits=bits, allocated=8 if bits == 8 else 16, name=name)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.Modality = "CR"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.PatientOrientation = ["L", "F"]
    return dataset


def magnetic_resonance(gray: NDArray[np.uint8], *, bits: int, name: str) -> Dataset:
    """A slice of the head (PS3.3 A.4). `gray` (H, W) with `bits` stored (8 to 16), window over the full range.

    A picture file tells neither sequence nor geometry, but the Image Plane and MR Image modules (PS3.3 C.7.6.2, C.8.3)
    want some: what is required and unknown is empty, or nominal where it may not be empty, and the instance says so.
    `name` decides the UIDs, so that the same picture always becomes the same instance.
    """
    # Bits Allocated is 16 in every MR image, however few are stored (PS3.3 C.8.3.1).
    dataset = _converted(gray, MRImageStorage, bits=bits, allocated=16, name=name)
    dataset.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    dataset.Modality = "MR"
    dataset.BodyPartExamined = "HEAD"
    _plane_of_unknown_place(dataset, f"{name}/{bits}")
    dataset.ScanningSequence, dataset.SequenceVariant = "RM", "NONE"
    dataset.ScanOptions = dataset.MRAcquisitionType = ""
    dataset.RepetitionTime = dataset.EchoTime = dataset.EchoTrainLength = None
    return dataset


def computed_tomograph(gray: NDArray[np.uint8], *, bits: int, name: str) -> Dataset:
    """A slice of the chest (PS3.3 A.3). `gray` (H, W) with `bits` stored (12 to 16), window over the full range.

    A picture file does not tell Hounsfield units: it is one window of theirs. So Rescale Type is US (unspecified;
    PS3.3 C.11.1.1.2), slope 1 and intercept 0. Geometry is nominal, as for `magnetic_resonance`.
    """
    if not 12 <= bits <= 16:
        raise DicomguardError(f"a CT image has 12 to 16 stored bits (PS3.3 C.8.2.1), not {bits}.")
    dataset = _converted(gray, CTImageStorage, bits=bits, allocated=16, name=name)
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.BodyPartExamined = "CHEST"
    _plane_of_unknown_place(dataset, f"{name}/{bits}")
    dataset.KVP = dataset.AcquisitionNumber = None
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    return dataset


def ultrasound(gray: NDArray[np.uint8], *, bits: int = 8, name: str) -> Dataset:
    """A B-mode picture of the breast (PS3.3 A.6). `gray` (H, W); an ultrasound image in gray has 8 stored bits."""
    if bits != 8:
        raise DicomguardError(f"a grayscale ultrasound image has 8 stored bits (PS3.3 C.8.5.6.1), not {bits}.")
    dataset = _converted(gray, UltrasoundImageStorage, bits=8, allocated=8, name=name)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.Modality = "US"
    dataset.BodyPartExamined = "BREAST"
    dataset.Laterality = dataset.PatientOrientation = ""
    return dataset


def ophthalmic_photograph(colours: NDArray[np.uint8], *, bits: int = 8, name: str) -> Dataset:
    """A photograph of the retina (PS3.3 A.41). `colours` (H, W, 3) RGB with 8 stored bits, colour by pixel.

    Neither camera nor settings are known of a picture file: what is required and unknown is empty. An Image Laterality
    may not be: it is taken from `name` where that says left or right, else nominal, and the instance says so.
    """
    if bits != 8:
        raise DicomguardError(f"an Ophthalmic Photography 8 Bit image has 8 stored bits (PS3.3 A.41), not {bits}.")
    dataset = _converted(colours, OphthalmicPhotography8BitImageStorage, bits=8, allocated=8, name=name)
    # A derived one would have to name the instances that it comes from (PS3.3 C.8.17.2.1.4), and there are none.
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    del dataset.DerivationDescription
    dataset.Modality = "OP"
    dataset.PatientOrientation = ""
    dataset.LossyImageCompression, dataset.BurnedInAnnotation = "00", "NO"
    dataset.NumberOfFrames = 1
    dataset.FrameIncrementPointer = 0x00181063  # Frame Time
    dataset.FrameTime = "0"
    dataset.SynchronizationFrameOfReferenceUID = _uid(f"{name}/synchronization")
    dataset.SynchronizationTrigger, dataset.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    dataset.AcquisitionDateTime = "20180101120000"
    known = "L" if "left" in name.lower() else "R" if "right" in name.lower() else ""
    dataset.ImageLaterality = known or "R"
    nominal = "" if known else "; laterality is nominal: it does not tell it"
    dataset.ImageComments = f"Picture file converted to DICOM{nominal}"
    dataset.AnatomicRegionSequence = _coded("81745001", "SCT", "Eye")
    dataset.AcquisitionDeviceTypeCodeSequence = _coded("409898007", "SCT", "Fundus Camera")
    for keyword in _UNKNOWN_OF_A_CAMERA:
        setattr(dataset, keyword, None)
    for keyword in _UNKNOWN_ITEMS_OF_A_CAMERA:
        setattr(dataset, keyword, Sequence())
    return dataset


# Type 2: present, and empty where unknown (PS3.3 C.8.17.3 to C.8.17.6).
_UNKNOWN_OF_A_CAMERA = (
    "PatientEyeMovementCommanded",
    "HorizontalFieldOfView",
    "EmmetropicMagnification",
    "IntraOcularPressure",
    "PupilDilated",
    "DetectorType",
)
_UNKNOWN_ITEMS_OF_A_CAMERA = (
    "RefractiveStateSequence",
    "IlluminationTypeCodeSequence",
    "LightPathFilterTypeStackCodeSequence",
    "ImagePathFilterTypeStackCodeSequence",
    "LensesCodeSequence",
)


def _coded(value: str, scheme: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def secondary_capture(picture: NDArray[np.uint8], *, bits: int = 8, name: str) -> Dataset:
    """A picture of which nothing is known (PS3.3 A.8): gray (H, W) with `bits` stored (8 to 16), or RGB (H, W, 3)."""
    if picture.ndim == 3 and bits != 8:
        raise DicomguardError(f"a colour picture has 8 stored bits, not {bits}.")
    allocated = 8 if bits == 8 else 16
    dataset = _converted(picture, SecondaryCaptureImageStorage, bits=bits, allocated=allocated, name=name)
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.Laterality = dataset.PatientOrientation = ""
    return dataset


def _plane_of_unknown_place(dataset: Dataset, name: str) -> None:
    dataset.PatientPosition = ""
    dataset.FrameOfReferenceUID = _uid(f"{name}/frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.PixelSpacing = ["1", "1"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = ["0", "0", "0"]
    dataset.SliceThickness = None
    dataset.ImageComments = "Position, orientation and spacing are nominal: the picture file does not tell them"


def _converted(picture: NDArray[np.uint8], sop_class: UID, *, bits: int, allocated: int, name: str) -> Dataset:
    """What every converted picture carries: identity, pixels, MONOCHROME2 or RGB with 255 as full white."""
    top = 2**bits - 1
    stored = np.rint(picture.astype(np.float64) * (top / 255))
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = _uid(f"{name}/{bits}/instance")
    dataset.StudyInstanceUID = _uid(f"{name}/{bits}/study")
    dataset.SeriesInstanceUID = _uid(f"{name}/{bits}/series")
    dataset.StudyDate = dataset.ContentDate = dataset.AcquisitionDate = "20180101"
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = "120000"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyID = "1"
    dataset.Manufacturer = "dicomguard"
    dataset.PatientName = "Converted^Picture"
    dataset.PatientID = _uid(name)[5:21]
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.DerivationDescription = "Picture file converted to DICOM"
    is_colour = picture.ndim == 3
    dataset.SamplesPerPixel = 3 if is_colour else 1
    dataset.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.BitsAllocated = allocated
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    if not is_colour:
        # The LINEAR function of PS3.3 C.11.2.1.2.1 maps 0 to black and `top` to white with this centre and width.
        dataset.WindowCenter, dataset.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    data = stored.astype(np.uint8 if allocated == 8 else "<u2").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = _IMPLEMENTATION
    return dataset


def _uid(name: str) -> UID:
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")
