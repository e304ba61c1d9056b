"""What a header may claim about its pixels before anything is allocated."""

import io
import time
from typing import Any

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from dicomguard.decision import Reason
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.reader import frames, header, open_data_set
from dicomguard.pixels.refusal import RefusalError
from dicomguard.pixels.source import locate

LIMITS = Limits()
FOUR = np.arange(16).reshape(4, 4)


def encode(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def opened(dataset: Dataset | bytes, limits: Limits = LIMITS) -> Any:
    data = dataset if isinstance(dataset, bytes) else encode(dataset)
    return open_data_set(data, *locate(data), limits)


def refusal(dataset: Dataset | bytes, limits: Limits = LIMITS) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        list(frames(opened(dataset, limits), 0, 10, limits))
    return caught.value


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"Rows": 5}, Reason.TRUNCATED),
        ({"Rows": 65535, "Columns": 65535}, Reason.OVER_LIMITS),
        ({"NumberOfFrames": 1_000_000_000}, Reason.OVER_LIMITS),
        ({"NumberOfFrames": 2}, Reason.TRUNCATED),
        ({"NumberOfFrames": 0}, Reason.OVER_LIMITS),
        ({"NumberOfFrames": -1}, Reason.OVER_LIMITS),
        ({"Rows": 0}, Reason.UNDECODABLE),
        ({"Rows": 3}, Reason.UNDECODABLE),
        ({"Rows": 3, "PixelData": bytes(26)}, None),
        ({"SamplesPerPixel": 2}, Reason.UNDECODABLE),
        ({"SamplesPerPixel": 3}, Reason.UNDECODABLE),
        ({"BitsAllocated": 0}, Reason.UNDECODABLE),
        ({"BitsAllocated": 3}, Reason.UNDECODABLE),
        ({"BitsAllocated": 255}, Reason.UNDECODABLE),
        ({"BitsStored": 17}, Reason.UNDECODABLE),
        ({"BitsStored": 0}, Reason.UNDECODABLE),
        ({"HighBit": 255}, Reason.UNDECODABLE),
        ({"PixelRepresentation": 2}, Reason.UNDECODABLE),
        ({"PhotometricInterpretation": "CMYK"}, Reason.UNDECODABLE),
        ({"PixelData": bytes(30)}, Reason.TRUNCATED),
        ({"PixelData": bytes(40)}, None),
        ({"PixelData": bytes(32) + b"\1" * 8}, Reason.UNDECODABLE),
        ({"PixelData": bytes(64)}, Reason.UNDECODABLE),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else str(value),
)
def test_claims_are_held_against_the_bytes(build: Any, more: dict[str, Any], reason: Reason | None) -> None:
    dataset = build(FOUR, **more)
    if reason is None:
        assert len(list(frames(opened(dataset), 0, 10, LIMITS))) == 1
    else:
        assert refusal(dataset).reason is reason


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"])
def test_missing_descriptions_are_named(build: Any, keyword: str) -> None:
    dataset = build(FOUR)
    del dataset[keyword]
    assert refusal(dataset).reason is Reason.UNDECODABLE


def test_rows_written_as_a_long_are_refused(build: Any) -> None:
    data = encode(build(FOUR))
    honest = b"\x28\x00\x10\x00US\x02\x00\x04\x00"
    assert honest in data
    data = data.replace(honest, b"\x28\x00\x10\x00UL\x04\x00\x04\x00\x01\x00")
    assert "unsigned short" in refusal(data).message


def test_a_file_cut_short_is_never_whole(build: Any) -> None:
    data = encode(build(np.zeros((64, 64))))
    for cut in (1, 2, 100, 4000, 8000):
        assert refusal(data[:-cut]).reason is Reason.TRUNCATED


def test_compressed_pixels_under_an_uncompressed_syntax_and_the_reverse(build: Any) -> None:
    dataset = build(FOUR)
    data = encode(dataset)
    assert "contradict" in str(_refused(lambda: open_data_set(data, locate(data)[0], RLELossless, LIMITS)))


def _refused(act: Any) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        act()
    return caught.value


def test_an_image_class_without_pixels_is_a_fault_and_other_objects_are_no_images(build: Any) -> None:
    dataset = build(FOUR)
    del dataset.PixelData
    assert refusal(dataset).reason is Reason.UNDECODABLE
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    read = header(opened(dataset), ["Modality"], LIMITS)
    assert not read.is_image
    assert read.frames == 0


def test_float_pixels_are_a_named_fault(build: Any) -> None:
    dataset = build(FOUR)
    del dataset.PixelData
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = np.zeros(16, "<f4").tobytes()
    read = opened(dataset)
    assert header(read, [], LIMITS).is_image
    with pytest.raises(RefusalError, match="floating point"):
        list(frames(read, 0, 1, LIMITS))


def test_header_tells_identity_and_only_the_attributes_asked_for(build: Any) -> None:
    read = header(opened(build(FOUR)), ["Modality", "ImageType", "BodyPartExamined", "NoSuchKeyword"], LIMITS)
    assert read.attributes == {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY"]}
    assert (read.sop_instance_uid, read.study_instance_uid, read.series_instance_uid) == ("1.2.3.4", "1.2.3", "1.2.3.5")
    assert (read.patient_id, read.is_image, read.frames) == ("SECRET-ID", True, 1)
    assert (read.rows, read.columns, read.samples, read.bits_stored) == (4, 4, 1, 12)


def test_refusals_name_no_patient(build: Any) -> None:
    data = encode(build(FOUR))
    told = [_message(data[:-cut]) for cut in range(1, len(data) - 132, 7)]
    assert sum(map(bool, told)) > len(told) // 2
    assert not any("SECRET" in text for text in told)


def _message(data: bytes) -> str:
    try:
        header(opened(data), ["PatientName"], LIMITS)
    except RefusalError as refused:
        return str(refused)
    return ""


def test_pixel_bombs_cost_nothing(build: Any) -> None:
    before = time.process_time()
    for more in ({"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 10**9}, {"Rows": 16384, "Columns": 16384}):
        assert refusal(build(FOUR, **more)).reason is Reason.OVER_LIMITS
    assert time.process_time() - before < 0.5
