"""Labelled pictures as CR and MR instances, so that real images can travel as DICOM and be scored as files.

The instances say that they were converted (Conversion of a picture, no acquisition data) and carry no patient data.
"""

from __future__ import annotations

import uuid

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian, MRImageStorage

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
    dataset.PatientPosition = ""
    dataset.ScanningSequence, dataset.SequenceVariant = "RM", "NONE"
    dataset.ScanOptions = dataset.MRAcquisitionType = ""
    dataset.RepetitionTime = dataset.EchoTime = dataset.EchoTrainLength = None
    dataset.FrameOfReferenceUID = _uid(f"{name}/{bits}/frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.PixelSpacing = ["1", "1"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = ["0", "0", "0"]
    dataset.SliceThickness = None
    dataset.ImageComments = "Position, orientation and spacing are nominal: the picture file does not tell them"
    return dataset


def _converted(gray: NDArray[np.uint8], sop_class: UID, *, bits: int, allocated: int, name: str) -> Dataset:
    """What every converted picture carries: identity, pixels, MONOCHROME2 with 255 as full white."""
    top = 2**bits - 1
    stored = np.rint(gray.astype(np.float64) * (top / 255))
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
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = gray.shape
    dataset.BitsAllocated = allocated
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
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
