"""An adversarial picture as a valid DICOM instance: written back through the integers that a file can hold.

An attack that dies in rounding was never an attack, so the benchmark scores files. What is forged says so in its own
header (derived image, source reference): this makes test objects, not deceptions.
"""

from __future__ import annotations

import copy
import hashlib
import uuid
from typing import Any

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
    """The stored integers nearest to `adversarial` (C, H, W); those of `original` where a sample was not touched.

    `original` and the result: (H, W) of a grayscale image, (H, W, 3) of an RGB one, whose samples change one by one.

    Raises:
        DicomguardError: the way from stored values to presentation is not affine, so there is no way back.

    """
    mapping = image.mapping
    if mapping is None or image.pixels.shape[0] not in (1, 3):
        raise DicomguardError(
            f"frame {image.frame} cannot be forged: {image.voi} on {image.photometric_interpretation} has no inverse.",
            advice="Use an RGB image, or a grayscale one with a linear window or none.",
        )
    if adversarial.shape != image.pixels.shape:
        raise ValueError(f"the picture has shape {adversarial.shape}, frame {image.frame} has {image.pixels.shape}")
    stored = np.rint(adversarial.astype(np.float64) / mapping.scale + mapping.offset)
    stored = np.clip(stored, mapping.low, mapping.high).astype(np.int64)
    untouched = np.abs(adversarial - image.pixels) < _UNTOUCHED
    return np.where(interleaved(untouched), original.astype(np.int64), interleaved(stored))


def presentation(image: Image, stored: NDArray[np.integer]) -> NDArray[np.float32]:
    """What the node will see of stored values (H, W) or (H, W, 3) under the image's own mapping: (C, H, W)."""
    mapping = image.mapping
    assert mapping is not None
    values = (stored.astype(np.float64) - mapping.offset) * mapping.scale
    planes = np.clip(values, 0, 1).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(planes, -1, 0)) if planes.ndim == 3 else planes[np.newaxis]


def forge(source: Dataset, image: Image, adversarial: NDArray[np.float32], *, description: str) -> Dataset:
    """A copy of `source` whose frame `image.frame` shows `adversarial` (C, H, W), rounded to stored bits.

    Explicit VR Little Endian, uncompressed (PS3.5 A.2), RGB colour-by-pixel, with a SOP Instance UID of its own. Image
    Type value 1 becomes DERIVED, Derivation Description says what was done and Source Image Sequence points back (PS3.3
    C.7.6.1.1, C.12.4.1). `source` stays as it is; its pixels must be decodable.

    Raises:
        DicomguardError: as `stored_values`.

    """
    forged = copy.deepcopy(source)
    if forged.file_meta.TransferSyntaxUID.is_compressed:
        forged.decompress(generate_instance_uid=False)
    pixels = forged.pixel_array.copy()
    colours = image.pixels.shape[0] == 3
    # Whatever the file's Planar Configuration, pydicom hands the samples of a pixel over together.
    frames = pixels.reshape(-1, int(forged.Rows), int(forged.Columns), *(3,) * colours)
    frames[image.frame] = stored_values(image, adversarial, frames[image.frame]).astype(frames.dtype)
    if colours:
        forged.PlanarConfiguration = 0
    _set_pixels(forged, frames)
    _derive(forged, source, description)
    return forged


def interleaved(planes: NDArray[Any]) -> NDArray[Any]:
    """Shape (1, H, W) to (H, W), (3, H, W) to (H, W, 3)."""
    return planes[0] if planes.shape[0] == 1 else np.moveaxis(planes, 0, -1)


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
    # An ophthalmic photograph may leave value 3 empty, but not once it is derived (PS3.3 C.8.17.2.1.4).
    forged.ImageType = ["DERIVED", *(value or "OTHER" for value in kept[1:])]
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
