"""An adversarial picture as a valid DICOM instance: written back through the integers that a file can hold.

An attack that dies in rounding was never an attack, so the benchmark scores files. What is forged says so in its own
header (derived image, source reference): this makes test objects, not deceptions.
"""

from __future__ import annotations

import copy
import hashlib
import uuid

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomguard.errors import DicomguardError
from dicomguard.pixels.image import Image

_NAMESPACE = uuid.UUID("a7c5a1a2-4c0e-5d44-9c6b-0d1a3cfb1b73")
_UNTOUCHED = 1e-6  # presentation units: a pixel that moved less keeps its stored value, also outside the window


def stored_values(image: Image, adversarial: NDArray[np.float32], original: NDArray[np.integer]) -> NDArray[np.int64]:
    """The stored integers nearest to `adversarial` (1, H, W); `original` (H, W) where a pixel was not touched.

    Raises:
        DicomguardError: the way from stored values to presentation is not affine, so there is no way back.

    """
    mapping = image.mapping
    if mapping is None or image.pixels.shape[0] != 1:
        raise DicomguardError(
            f"frame {image.frame} cannot be forged: {image.voi} on {image.photometric_interpretation} has no inverse.",
            advice="Use a grayscale image with a linear window or none.",
        )
    stored = np.rint(adversarial[0].astype(np.float64) / mapping.scale + mapping.offset)
    stored = np.clip(stored, mapping.low, mapping.high).astype(np.int64)
    untouched = np.abs(adversarial[0] - image.pixels[0]) < _UNTOUCHED
    return np.where(untouched, original.astype(np.int64), stored)


def presentation(image: Image, stored: NDArray[np.integer]) -> NDArray[np.float32]:
    """What the node will see of stored values (H, W) under the image's own mapping: (1, H, W) in [0, 1]."""
    mapping = image.mapping
    assert mapping is not None
    values = (stored.astype(np.float64) - mapping.offset) * mapping.scale
    return np.clip(values, 0, 1).astype(np.float32)[np.newaxis]


def forge(source: Dataset, image: Image, adversarial: NDArray[np.float32], *, description: str) -> Dataset:
    """A copy of `source` whose frame `image.frame` shows `adversarial` (1, H, W), rounded to stored bits.

    Explicit VR Little Endian, uncompressed (PS3.5 A.2), with a SOP Instance UID of its own. Image Type value 1 becomes
    DERIVED, Derivation Description says what was done and Source Image Sequence points back (PS3.3 C.7.6.1.1,
    C.12.4.1). `source` stays as it is; its pixels must be decodable.

    Raises:
        DicomguardError: as `stored_values`.

    """
    forged = copy.deepcopy(source)
    if forged.file_meta.TransferSyntaxUID.is_compressed:
        forged.decompress(generate_instance_uid=False)
    pixels = forged.pixel_array.copy()
    frames = pixels.reshape(-1, int(forged.Rows), int(forged.Columns))
    frames[image.frame] = stored_values(image, adversarial, frames[image.frame]).astype(frames.dtype)
    _set_pixels(forged, frames)
    _derive(forged, source, description)
    return forged


def _set_pixels(dataset: Dataset, frames: NDArray[np.integer]) -> None:
    wide = int(dataset.BitsAllocated) > 8
    data = frames.astype(frames.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if wide else "OB"
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelDataProviderURL"):
        if keyword in dataset:
            delattr(dataset, keyword)


def _derive(forged: Dataset, source: Dataset, description: str) -> None:
    digest = uuid.uuid5(_NAMESPACE, f"{source.SOPInstanceUID}/{description}/{_digest(forged.PixelData)}")
    forged.SOPInstanceUID = UID(f"2.25.{digest.int}")
    kept = list(source.get("ImageType") or ["ORIGINAL", "PRIMARY"])
    forged.ImageType = ["DERIVED", *kept[1:]]
    forged.DerivationDescription = description
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = Sequence([purpose])
    forged.SourceImageSequence = Sequence([reference])
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = forged.SOPClassUID
    meta.MediaStorageSOPInstanceUID = forged.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.291083475913470893640285460386117212183")
    forged.file_meta = meta


def _digest(data: bytes) -> str:
    """SHA-256 of pixel bytes, so that each forged picture has its own UID."""
    return hashlib.sha256(data).hexdigest()
