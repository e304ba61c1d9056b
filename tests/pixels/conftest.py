import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicomguard.pixels.sandbox import DecodeWorker

Build = Callable[..., Dataset]


def build(
    stored: NDArray[Any],
    *,
    bits: int = 12,
    allocated: int = 16,
    signed: bool = False,
    photometric: str = "MONOCHROME2",
    transfer_syntax: str = ExplicitVRLittleEndian,
    **more: Any,
) -> Dataset:
    """A small data set around `stored` of shape (rows, columns), (rows, columns, 3) or (frames, rows, columns)."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "SECRET-ID", "SECRET^NAME"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    is_colour = photometric[:3] in {"RGB", "YBR"}
    dataset.SamplesPerPixel = 3 if is_colour else 1
    dataset.PhotometricInterpretation = photometric
    if is_colour:
        dataset.PlanarConfiguration = 0
    elif stored.ndim == 3:
        dataset.NumberOfFrames = stored.shape[0]
    dataset.Rows, dataset.Columns = stored.shape[:2] if is_colour else stored.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    raw = stored.astype(f"<{'i' if signed else 'u'}{max(allocated // 8, 1)}").tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


@pytest.fixture(name="build", scope="session")
def build_fixture() -> Build:
    return build


@pytest.fixture(scope="session")
def worker() -> Iterator[DecodeWorker]:
    with DecodeWorker() as started:
        yield started


@pytest.fixture(scope="session")
def data() -> Path:
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("DICOMGUARD_TEST_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"The test data folder {folder} is not there; set DICOMGUARD_TEST_DATA.")
    return folder
