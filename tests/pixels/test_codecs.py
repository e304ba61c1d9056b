"""Every codec against pictures of our own, and every codestream that says something else than its header."""

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended

from dicomguard.decision import Reason
from dicomguard.pixels import codecs
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.reader import frames, images, open_data_set
from dicomguard.pixels.refusal import RefusalError
from dicomguard.pixels.source import locate

JPEG = "1.2.840.10008.1.2.4."
ROOT = "1.2.840.10008.1.2."


def smooth(top: int, rows: int = 40, columns: int = 56) -> NDArray[Any]:
    y, x = np.mgrid[0:rows, 0:columns]
    return np.rint((np.sin(x / 9) * np.cos(y / 7) + 1) / 2 * top).astype(np.uint16 if top > 255 else np.uint8)


def rle(stored: NDArray[Any]) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        stored.tobytes(),
        rows=stored.shape[0],
        columns=stored.shape[1],
        samples_per_pixel=1,
        bits_allocated=stored.dtype.itemsize * 8,
        bits_stored=stored.dtype.itemsize * 8,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    )


def compressed(
    build: Any, stored: NDArray[Any], frame: bytes | list[bytes], syntax: str, *, bits: int, **more: Any
) -> Dataset:
    dataset = build(stored, bits=bits, allocated=8 if bits <= 8 else 16, transfer_syntax=syntax, **more)
    dataset.PixelData = encapsulate([frame] if isinstance(frame, bytes) else frame)
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    return dataset


def lossless_jpeg(stored: NDArray[Any], bits: int, predictor: int = 1) -> bytes:
    return imagecodecs.jpeg8_encode(stored, lossless=True, bitspersample=bits, predictor=predictor)


LOSSLESS = [
    (JPEG + "57", lambda a, bits: lossless_jpeg(a, bits, 4), "JPEG lossless, predictor 4"),
    (JPEG + "70", lossless_jpeg, "JPEG lossless SV1"),
    (JPEG + "80", lambda a, bits: imagecodecs.jpegls_encode(a), "JPEG-LS"),
    (
        JPEG + "90",
        lambda a, bits: imagecodecs.jpeg2k_encode(a, reversible=True, codecformat="j2k", bitspersample=bits),
        "J2K",
    ),
    (JPEG + "201", lambda a, bits: imagecodecs.htj2k_encode(a, reversible=True), "HTJ2K"),
    (ROOT + "5", lambda a, bits: rle(a), "RLE"),
]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(("syntax", "encode"), [case[:2] for case in LOSSLESS], ids=[case[2] for case in LOSSLESS])
def test_lossless_codecs_return_every_bit(build: Any, syntax: str, encode: Any, bits: int) -> None:
    stored = smooth((1 << bits) - 1)
    plain = images(build(stored, bits=bits, allocated=8 if bits <= 8 else 16))
    packed = images(compressed(build, stored, encode(stored, bits), syntax, bits=bits))
    np.testing.assert_array_equal(packed[0].pixels, plain[0].pixels)
    assert packed[0].mapping == plain[0].mapping


@pytest.mark.parametrize(("syntax", "encode"), [case[:2] for case in LOSSLESS], ids=[case[2] for case in LOSSLESS])
def test_signed_values_keep_their_sign(build: Any, syntax: str, encode: Any) -> None:
    stored = smooth(65535).view(np.int16)
    plain = images(build(stored, bits=16, signed=True))
    packed = images(compressed(build, stored, encode(stored.view(np.uint16), 16), syntax, bits=16, signed=True))
    np.testing.assert_array_equal(packed[0].pixels, plain[0].pixels)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("syntax", "encode"), [case[:2] for case in LOSSLESS], ids=[case[2] for case in LOSSLESS])
def test_a_second_picture_in_unused_bits_is_refused(build: Any, syntax: str, encode: Any, signed: bool) -> None:
    stored = smooth(2047)
    images(compressed(build, stored, encode(stored, 16), syntax, bits=12, signed=signed))
    stored[3, 4] |= 0x2000
    with pytest.raises(RefusalError, match="a reader that does not mask them sees another picture"):
        images(compressed(build, stored, encode(stored, 16), syntax, bits=12, signed=signed))


@pytest.mark.parametrize(
    ("syntax", "bits", "progressive"),
    [("50", 8, False), ("51", 8, False), ("51", 12, False), ("55", 12, True), ("53", 12, True)],
    ids=["baseline", "extended 8", "extended 12", "full progression", "spectral selection"],
)
def test_lossy_jpeg_is_close(build: Any, syntax: str, bits: int, progressive: bool) -> None:
    stored = smooth((1 << bits) - 1)
    frame = imagecodecs.jpeg8_encode(stored, level=98, bitspersample=bits)
    (image,) = images(compressed(build, stored, frame, JPEG + syntax, bits=bits))
    np.testing.assert_allclose(image.pixels[0], stored / ((1 << bits) - 1), atol=0.02)


def squares(level: int) -> tuple[NDArray[Any], bytes]:
    """Black and the white of 10 bits under 12-bit JPEG, with how much is over the white."""
    stored = np.where(np.indices((32, 32)).sum(axis=0) % 9 < 4, 0, 1023).astype(np.uint16)
    return stored, imagecodecs.jpeg8_encode(stored, level=level, bitspersample=12)


def test_lossy_overshoot_does_not_wrap_to_black(build: Any) -> None:
    stored, frame = squares(95)
    assert 1023 < imagecodecs.jpeg8_decode(frame).max() < 1.02 * 1023
    (image,) = images(compressed(build, stored, frame, JPEG + "51", bits=10))
    assert np.abs(image.pixels[0] - stored / 1023).max() < 0.2


def test_lossy_samples_far_outside_of_bits_stored_are_refused(build: Any) -> None:
    stored, frame = squares(60)
    assert imagecodecs.jpeg8_decode(frame).max() > 1.02 * 1023
    assert "far outside of the 10 Bits Stored" in str(refused(compressed(build, stored, frame, JPEG + "51", bits=10)))


def jpeg2000(stored: NDArray[Any], *, reversible: bool) -> bytes:
    level = 0 if reversible else 80
    return bytes(imagecodecs.jpeg2k_encode(stored, level=level, reversible=reversible, codecformat="j2k"))


@pytest.mark.parametrize("syntax", ["90", "91"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_a_picture_above_the_bits_stored_of_jpeg_2000_is_refused(build: Any, syntax: str, signed: bool) -> None:
    stored = smooth(65535) if not signed else (smooth(65535).astype(np.int32) - 32768).astype(np.int16)
    frame = jpeg2000(stored, reversible=True)
    assert refused(compressed(build, stored, frame, JPEG + syntax, bits=10, signed=signed)).reason is Reason.UNDECODABLE


def test_signed_jpeg_2000_keeps_its_sign_and_is_refused_where_the_header_knows_none(build: Any) -> None:
    stored = (smooth(4095).astype(np.int32) - 2048).astype(np.int16)
    frame = jpeg2000(stored, reversible=True)
    plain = images(build(stored, bits=12, signed=True))
    packed = images(compressed(build, stored, frame, JPEG + "90", bits=12, signed=True))
    np.testing.assert_array_equal(packed[0].pixels, plain[0].pixels)
    error = refused(compressed(build, stored, frame, JPEG + "90", bits=16))
    assert "Pixel Representation" in str(error)


def test_eight_bit_lossy_samples_of_a_deeper_description_are_read(build: Any) -> None:
    stored = smooth(255)
    frame = imagecodecs.jpeg8_encode(stored, level=95)
    (image,) = images(compressed(build, stored, frame, JPEG + "50", bits=12))
    np.testing.assert_allclose(image.pixels[0], stored / 4095, atol=0.002)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])
@pytest.mark.parametrize("space", ["YCBCR", "RGB"])
def test_colour_follows_the_codestream_where_it_says(build: Any, photometric: str, space: str) -> None:
    stored = np.stack((smooth(255), smooth(255)[::-1], np.full((40, 56), 60, np.uint8)), axis=-1)
    frame = imagecodecs.jpeg8_encode(stored, level=100, colorspace="RGB", outcolorspace=space, subsampling="444")
    dataset = compressed(build, stored, frame, JPEG + "50", bits=8, photometric=photometric)
    (image,) = images(dataset)
    np.testing.assert_allclose(np.moveaxis(image.pixels, 0, -1), stored / 255, atol=0.02)


@pytest.mark.parametrize("photometric", ["YBR_RCT", "RGB"])
def test_jpeg2000_colour_transform_is_undone(build: Any, photometric: str) -> None:
    stored = np.stack((smooth(255), smooth(255)[::-1], np.full((40, 56), 60, np.uint8)), axis=-1)
    frame = imagecodecs.jpeg2k_encode(stored, reversible=True, codecformat="j2k", mct=photometric == "YBR_RCT")
    (image,) = images(compressed(build, stored, frame, JPEG + "90", bits=8, photometric=photometric))
    np.testing.assert_allclose(np.moveaxis(image.pixels, 0, -1), stored / 255, atol=1e-6)


def many(count: int) -> tuple[NDArray[Any], list[bytes]]:
    stored = np.stack([np.roll(smooth(4095), shift, axis=1) for shift in range(count)])
    return stored, [lossless_jpeg(one, 12) for one in stored]


def test_frames_by_offset_table_by_count_and_by_markers(build: Any) -> None:
    stored, coded = many(3)
    plain = images(build(stored))
    halves = [part for frame in coded for part in (frame[:100], frame[100:])]
    table = compressed(build, stored, coded, JPEG + "70", bits=12)
    by_count = compressed(build, stored, coded, JPEG + "70", bits=12)
    by_count.PixelData = encapsulate(coded, has_bot=False)
    by_marker = compressed(build, stored, coded, JPEG + "70", bits=12)
    by_marker.PixelData = encapsulate(halves, has_bot=False)
    extended = compressed(build, stored, coded, JPEG + "70", bits=12)
    extended.PixelData, extended.ExtendedOffsetTable, extended.ExtendedOffsetTableLengths = encapsulate_extended(coded)
    for dataset in (table, by_count, by_marker, extended):
        read = images(dataset)
        assert [image.frame for image in read] == [0, 1, 2]
        for image, expected in zip(read, plain, strict=True):
            np.testing.assert_array_equal(image.pixels, expected.pixels)


def refused(dataset: Dataset) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        images(dataset)
    return caught.value


def test_fragments_that_do_not_fit_the_frames(build: Any) -> None:
    stored, coded = many(3)
    dataset = compressed(build, stored, coded, JPEG + "70", bits=12)
    dataset.PixelData = encapsulate(coded[:2])
    assert refused(dataset).reason is Reason.TRUNCATED
    dataset.PixelData = encapsulate([*coded, coded[0]])
    assert refused(dataset).reason is Reason.UNDECODABLE
    good = encapsulate(coded)
    dataset.PixelData = good[:12] + b"\x03" + good[13:]
    assert refused(dataset).reason is Reason.UNDECODABLE


def test_a_second_picture_in_one_frame_is_refused(build: Any) -> None:
    stored, coded = many(3)
    dataset = compressed(build, stored[0], coded[0], JPEG + "70", bits=12)
    dataset.PixelData = encapsulate(coded[:2], has_bot=False)
    assert "more than one frame" in str(refused(dataset))
    # Two frames by the offset table, three by the codestreams: others count those.
    dataset = compressed(build, stored[:2], coded[:2], JPEG + "70", bits=12)
    third = 16 + len(coded[0]) + len(coded[0]) % 2 + len(coded[1]) + len(coded[1]) % 2
    items = encapsulate(coded, has_bot=False)[8:]
    dataset.PixelData = struct.pack("<HHIII", 0xFFFE, 0xE000, 8, 0, third) + items
    assert "the offset table names none" in str(refused(dataset))


@pytest.mark.parametrize(("syntax", "encode"), [case[:2] for case in LOSSLESS], ids=[case[2] for case in LOSSLESS])
def test_codestreams_of_another_size_are_refused_before_decoding(
    build: Any, syntax: str, encode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = encode(smooth(255, 900, 900), 8)
    if syntax != ROOT + "5":
        monkeypatch.setattr(codecs, "_with", lambda *_a, **_k: pytest.fail("a decoder was called"))
    dataset = compressed(build, smooth(255), bomb, syntax, bits=8)
    if syntax == ROOT + "5":
        # RLE names no size: what it expands to is bounded by its own length, and what is over is not looked at.
        assert images(dataset)[0].pixels.shape == (1, 40, 56)
    else:
        assert refused(dataset).reason is Reason.UNDECODABLE


@pytest.mark.parametrize(("syntax", "encode"), [case[:2] for case in LOSSLESS], ids=[case[2] for case in LOSSLESS])
def test_codestreams_cut_short_are_never_whole(build: Any, syntax: str, encode: Any) -> None:
    frame = encode(smooth(4095), 12)
    for keep in (0.9, 0.5, 0.1):
        dataset = compressed(build, smooth(4095), frame[: int(len(frame) * keep) // 2 * 2], syntax, bits=12)
        assert refused(dataset).reason in {Reason.TRUNCATED, Reason.UNDECODABLE}


def test_one_family_under_the_name_of_another(build: Any) -> None:
    dataset = compressed(build, smooth(4095), lossless_jpeg(smooth(4095), 12), JPEG + "90", bits=12)
    assert "transfer syntax says jpeg2000" in str(refused(dataset))


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (JPEG + "100", "Video is not decoded"),
        (JPEG + "102", "Video is not decoded"),
        (JPEG + "107", "Video is not decoded"),
        (JPEG + "94", "No codec"),
        ("1.2.3.4.5", "unknown transfer syntax"),
    ],
)
def test_what_nothing_decodes_is_named(build: Any, syntax: str, words: str) -> None:
    dataset = compressed(build, smooth(255), bytes(100), JPEG + "70", bits=8)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    offset, _ = locate(buffer.getvalue())
    read = open_data_set(buffer.getvalue(), offset, syntax, Limits())
    with pytest.raises(RefusalError, match=words) as caught:
        list(frames(read, 0, 1, Limits()))
    assert caught.value.reason is Reason.CODEC_MISSING


def test_jpeg_processes_of_the_gpl_codec_name_the_extra(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs.importlib.util, "find_spec", lambda _name: None)
    frame = lossless_jpeg(smooth(4095), 12).replace(b"\xff\xc3", b"\xff\xc7", 1)  # hierarchical lossless
    error = refused(compressed(build, smooth(4095), frame, JPEG + "70", bits=12))
    assert error.reason is Reason.CODEC_MISSING
    assert "gpl-jpeg" in str(error)
