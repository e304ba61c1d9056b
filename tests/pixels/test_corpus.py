"""Real files of many vendors and deliberately malformed ones, each through the worker; the tables of docs/pixels.md."""

import logging
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array
from pydicom.uid import UID

from dicomguard.decision import Fault, Reason
from dicomguard.pixels.header import Header
from dicomguard.pixels.image import Image
from dicomguard.pixels.sandbox import DecodeWorker

# Every file is decoded once for all of these: seconds.
pytestmark = [pytest.mark.data, pytest.mark.slow]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "pixels.md"
_FRAMES = 4


@dataclass
class Outcome:
    path: Path
    transfer_syntax_uid: str
    result: Header | list[Image] | Fault
    longest_call_s: float


def read(worker: DecodeWorker, path: Path) -> Outcome:
    calls = []

    def timed(act: Any) -> Any:
        before = time.monotonic()
        answer = act()
        calls.append(time.monotonic() - before)
        return answer

    located = timed(lambda: worker.locate(path))
    if isinstance(located, Fault):
        return Outcome(path, "", located, max(calls))
    result = header = timed(lambda: worker.header(path, *located, ["Modality", "BodyPartExamined", "PatientName"]))
    if isinstance(header, Header) and header.is_image:
        result = timed(lambda: worker.frames(path, *located, 0, _FRAMES))
        if isinstance(result, list):
            assert len(result) == min(header.frames, _FRAMES)
    return Outcome(path, located[1], result, max(calls))


def read_all(worker: DecodeWorker, folder: Path) -> list[Outcome]:
    # Whatever the first request pays for starting the child is not the file's doing.
    worker.locate(folder)
    outcomes = [read(worker, path) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(outcomes) > 300, "the folder holds fewer files than it should"
    for outcome in outcomes:
        assert outcome.longest_call_s < 2.0, outcome.path.name
        if isinstance(outcome.result, Fault):
            assert outcome.result.detail, outcome.path.name
            assert "unexpectedly" not in outcome.result.detail, outcome.path.name
            assert "crashed" not in outcome.result.detail, outcome.path.name
        elif isinstance(outcome.result, list):
            assert all(np.isfinite(image.pixels).all() for image in outcome.result), outcome.path.name
    return outcomes


@pytest.fixture(scope="module")
def real(worker: DecodeWorker, data: Path) -> list[Outcome]:
    return read_all(worker, data / "dicom")


@pytest.fixture(scope="module")
def malformed(worker: DecodeWorker, data: Path) -> list[Outcome]:
    return read_all(worker, data / "malformed_dicom")


def reference(path: Path, image: Image) -> NDArray[Any] | None:
    """What pydicom makes of a frame, scaled to 0..1 as `Image` is; None where it cannot, or would guess."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta or "SharedFunctionalGroupsSequence" in dataset:
            return None
        try:
            stored = pixel_array(dataset, index=image.frame)
        except (RuntimeError, NotImplementedError):
            return None
        if image.photometric_interpretation == "PALETTE COLOR":
            if dataset.original_encoding == (False, False):
                # pydicom 3.0 reads the words of a big endian palette the wrong way round.
                return None
            coloured = apply_color_lut(stored, dataset)
            return coloured / (255 if coloured.max() < 256 else 65535)
        if stored.ndim == 3:
            return stored / (2**dataset.BitsStored - 1)
        modality = apply_modality_lut(stored, dataset)
        return voi(dataset, modality)[..., None]


def voi(dataset: pydicom.Dataset, modality: NDArray[Any]) -> NDArray[Any]:
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if "WindowCenter" in dataset:
        shown = (apply_windowing(modality, dataset) - low) / (high - low)
    elif dataset.get("VOILUTSequence"):
        shown = apply_voi(modality, dataset) / (2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        shown = (modality - low) / (high - low)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def test_every_real_file_is_answered_and_most_are_decoded(real: list[Outcome]) -> None:
    decoded = [outcome for outcome in real if isinstance(outcome.result, list)]
    faults = [outcome for outcome in real if isinstance(outcome.result, Fault)]
    assert len(decoded) >= 350
    for outcome in faults:
        assert outcome.result.reason in {Reason.UNDECODABLE, Reason.TRUNCATED, Reason.UNPARSABLE}, outcome.path.name


def test_decoded_values_are_pydicoms(real: list[Outcome]) -> None:
    logging.disable(logging.CRITICAL)
    compared: Counter[str] = Counter()
    try:
        for outcome in real:
            if not isinstance(outcome.result, list):
                continue
            image = outcome.result[-1]
            expected = reference(outcome.path, image)
            if expected is None:
                continue
            got = np.moveaxis(image.pixels, 0, -1)
            # Colour conversion: pydicom rounds to whole grey levels on the way, we do not.
            tolerance = 0.6 / 255 if "YBR" in image.photometric_interpretation else 1e-4
            np.testing.assert_allclose(got, expected, atol=tolerance, err_msg=outcome.path.name)
            compared[outcome.transfer_syntax_uid] += 1
    finally:
        logging.disable(logging.NOTSET)
    assert compared.total() >= 290
    assert len(compared) >= 10


def ct(process: str, number: int | str) -> str:
    return f"CTImage.dcm_{process}TransferSyntax_1.2.840.10008.1.2.{number}.dcm"


# Variants of one picture; pydicom alone has no decoder for several of them. The tolerance of lossy ones is a mean.
TWINS = [
    ("MR4_JPLL", "MR4_RLE", 0),
    ("MR4_JLSL", "MR4_RLE", 0),
    ("MR4_J2KR", "MR4_RLE", 0),
    ("MR4_JPLY", "MR4_RLE", 0.02),
    ("MR4_JLSN", "MR4_RLE", 0.02),
    ("MR1_JPLL", "MR1_RLE", 0),
    ("CT2_JPLL", "CT2_RLE", 0),
    ("CT2_J2KR", "CT2_RLE", 0),
    ("RG3_JPLL", "RG3_J2KR.dcm", 0),
    ("RG3_JPLY", "RG3_JPLL", 0.02),
    ("XA1_JPLL", "XA1_J2KR", 0),
    ("liver_rle.dcm", "liver.dcm", 0),
    ("liver_nonbyte_aligned_rle.dcm", "liver_nonbyte_aligned.dcm", 0),
    ("liver_nonbyte_aligned_deflate.dcm", "liver_nonbyte_aligned.dcm", 0),
    ("gdcm-US-ALOKA-16_big.dcm", "gdcm-US-ALOKA-16.dcm", 0),
    ("SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd.dcm", 0),
    ("TestPattern_JPEG-Lossless_RGB.dcm", "TestPattern_RGB.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", 0),
    (ct("JPEGProcess14SV1", "4.70"), ct("RLELossless", 5), 0),
    (ct("JPEGProcess14", "4.57"), ct("RLELossless", 5), 0),
    (ct("JPEGProcess6_8", "4.53"), ct("JPEGProcess2_4", "4.51"), 0),
    (ct("JPEGProcess10_12", "4.55"), ct("JPEGProcess2_4", "4.51"), 0),
]


@pytest.mark.parametrize(
    ("name", "twin", "tolerance"), TWINS, ids=[case[0].split("TransferSyntax")[0] for case in TWINS]
)
def test_one_picture_in_two_codings_is_one_picture(real: list[Outcome], name: str, twin: str, tolerance: float) -> None:
    found = {o.path.name: o.result for o in real}
    a, b = found[name], found[twin]
    assert isinstance(a, list), a
    assert isinstance(b, list), b
    for left, right in zip(a, b, strict=True):
        difference = np.abs(left.pixels - right.pixels)
        assert (difference.mean() if tolerance else difference.max()) <= tolerance
        assert right.pixels.std() > 0.01


def table(rows: dict[str, Counter[str]], columns: list[str], first: str) -> list[str]:
    lines = [f"| {first} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {name} | {' | '.join(str(row[column]) for column in columns)} |" for name, row in sorted(rows.items())
    ]
    return lines


def outcome_of(outcome: Outcome) -> str:
    match outcome.result:
        case Fault():
            return outcome.result.reason.value
        case Header():
            return "no image"
        case _:
            return "decoded"


def assert_documented(lines: list[str]) -> None:
    documented = DOCS.read_text(encoding="utf-8") if DOCS.exists() else ""
    assert "\n".join(lines) in documented, "docs/pixels.md should say:\n" + "\n".join(lines)


def test_the_table_of_transfer_syntaxes_is_true(real: list[Outcome]) -> None:
    rows: dict[str, Counter[str]] = {}
    for outcome in real:
        uid = outcome.transfer_syntax_uid
        known = {"1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression"}
        label = f"{known.get(uid, UID(uid).name)} `{uid}`" if uid else "not a DICOM file"
        rows.setdefault(label, Counter())[outcome_of(outcome)] += 1
    assert_documented(table(rows, ["decoded", "no image", "undecodable", "truncated", "unparsable"], "transfer syntax"))


def test_the_table_of_malformed_files_is_true(malformed: list[Outcome]) -> None:
    rows: dict[str, Counter[str]] = {}
    for outcome in malformed:
        rows.setdefault(outcome.path.parent.name, Counter())[outcome_of(outcome)] += 1
    columns = ["decoded", "no image", "undecodable", "truncated", "unparsable", "over_limits", "codec_missing"]
    assert sum(row[column] for row in rows.values() for column in columns) == len(malformed)
    assert_documented(table(rows, columns, "category"))
