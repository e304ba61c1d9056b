from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomguard.decision import Reason
from dicomguard.pixels.image import Image
from dicomguard.pixels.reader import images
from dicomguard.pixels.refusal import RefusalError

ROW = np.array([[0, 1, 2048, 4095]])


def values(dataset: Dataset) -> list[float]:
    (image,) = images(dataset)
    return [round(float(v), 5) for v in image.pixels.ravel()]


def through_mapping(image: Image, stored: NDArray[Any]) -> NDArray[np.float64]:
    assert image.mapping is not None
    return np.clip((stored - image.mapping.offset) * image.mapping.scale, 0, 1)


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def lut(descriptor: list[int], entries: list[int]) -> Dataset:
    made = Dataset()
    made.add_new("LUTDescriptor", "US", descriptor)
    made.add_new("LUTData", "US", entries)
    return made


def test_without_voi_the_range_of_bits_stored_is_mapped(build: Any) -> None:
    assert values(build(ROW)) == [0.0, round(1 / 4095, 5), round(2048 / 4095, 5), 1.0]
    (image,) = images(build(ROW))
    assert image.voi == "none"
    assert image.pixels.shape == (1, 1, 4)
    assert image.pixels.dtype == np.float32
    assert (image.mapping.low, image.mapping.high) == (0, 4095)


def test_signed_values_are_mapped_from_their_lowest(build: Any) -> None:
    stored = np.array([[-2048, 0, 2047]])
    assert values(build(stored, signed=True)) == [0.0, round(2048 / 4095, 5), 1.0]


def test_never_scaled_by_the_pictures_own_extremes(build: Any) -> None:
    assert values(build(np.array([[1000, 1001]]))) == [round(1000 / 4095, 5), round(1001 / 4095, 5)]


def test_linear_window(build: Any) -> None:
    # PS3.3 C.11.2.1.2.1: c = 40, w = 400 on modality values stored - 1024.
    stored = np.array([[0, 864, 1064, 1263, 1264, 4095]])
    dataset = build(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    expected = [0.0, 0.0 + (-160 - 39.5) / 399 + 0.5, (40 - 39.5) / 399 + 0.5, (239 - 39.5) / 399 + 0.5, 1.0, 1.0]
    assert values(dataset) == [round(max(0.0, v), 5) for v in expected]


def test_linear_exact_window(build: Any) -> None:
    stored = np.array([[0, 100, 150, 200, 300]])
    dataset = build(stored, WindowCenter=150, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
    assert values(dataset) == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_sigmoid_window_is_not_affine(build: Any) -> None:
    dataset = build(np.array([[100, 150]]), WindowCenter=100, WindowWidth=200, VOILUTFunction="SIGMOID")
    assert values(dataset) == [0.5, round(1 / (1 + np.exp(-1.0)), 5)]
    assert images(dataset)[0].mapping is None


def test_window_of_width_one_is_a_step(build: Any) -> None:
    dataset = build(np.array([[99, 100, 101]]), WindowCenter=100, WindowWidth=1)
    assert values(dataset) == [0.0, 1.0, 1.0]
    assert images(dataset)[0].mapping is None


def test_first_of_several_windows(build: Any) -> None:
    dataset = build(ROW, WindowCenter=[2048, 100], WindowWidth=[4096, 10])
    assert values(dataset) == [0.0, round(1 / 4095, 5), round(2048 / 4095, 5), 1.0]


def test_window_before_voi_table(build: Any) -> None:
    dataset = build(ROW, WindowCenter=2048, WindowWidth=4096, VOILUTSequence=[lut([2, 0, 8], [255, 0])])
    assert images(dataset)[0].voi == "LINEAR 2048/4096"


def test_voi_table(build: Any) -> None:
    dataset = build(np.array([[0, 10, 11, 12, 13, 50]]), VOILUTSequence=[lut([3, 10, 8], [0, 51, 255])])
    assert values(dataset) == [0.0, 0.0, 0.2, 1.0, 1.0, 1.0]
    assert images(dataset)[0].voi == "VOI LUT"


def test_modality_table_then_window(build: Any) -> None:
    dataset = build(
        np.array([[0, 1, 2, 9]]),
        ModalityLUTSequence=[lut([3, 0, 16], [100, 150, 200])],
        WindowCenter=150,
        WindowWidth=100,
        VOILUTFunction="LINEAR_EXACT",
    )
    assert values(dataset) == [0.0, 0.5, 1.0, 1.0]


def test_modality_table_alone_spans_its_bits(build: Any) -> None:
    dataset = build(np.array([[0, 1, 2]]), ModalityLUTSequence=[lut([3, 0, 8], [0, 51, 255])])
    assert values(dataset) == [0.0, 0.2, 1.0]


def test_negative_slope_turns_the_range_round(build: Any) -> None:
    dataset = build(ROW, RescaleSlope=-1, RescaleIntercept=0)
    assert values(dataset) == [1.0, round(4094 / 4095, 5), round(2047 / 4095, 5), 0.0]


def test_monochrome1_is_inverted_after_the_window(build: Any) -> None:
    windowed = {"WindowCenter": 150, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    stored = np.array([[100, 125, 200]])
    assert values(build(stored, photometric="MONOCHROME1", **windowed)) == [1.0, 0.75, 0.0]
    assert images(build(stored, photometric="MONOCHROME1", **windowed))[0].mapping.scale < 0
    assert values(build(ROW, photometric="MONOCHROME1"))[-1] == 0.0
    table = lut([3, 10, 8], [0, 51, 255])
    assert values(build(np.array([[11]]), photometric="MONOCHROME1", VOILUTSequence=[table])) == [0.8]


@settings(max_examples=60, deadline=None)
@given(
    slope=st.sampled_from([1.0, 0.5, -2.0, 3.25]),
    intercept=st.integers(-2000, 2000),
    window=st.none() | st.tuples(st.integers(-1000, 3000), st.integers(2, 5000)),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT"]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    signed=st.booleans(),
    bits=st.sampled_from([8, 10, 12, 15, 16]),
)
def test_the_mapping_is_the_picture(
    build: Any, slope: float, intercept: int, window: Any, function: str, photometric: str, signed: bool, bits: int
) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    stored = np.linspace(low, high, 40).round().astype(np.int64).reshape(5, 8)
    more = {} if window is None else {"WindowCenter": window[0], "WindowWidth": window[1], "VOILUTFunction": function}
    dataset = build(
        stored,
        bits=bits,
        signed=signed,
        photometric=photometric,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        **more,
    )
    (image,) = images(dataset)
    np.testing.assert_allclose(image.pixels[0], through_mapping(image, stored), atol=2e-4)
    modality = stored * slope + intercept
    if window is None:
        ends = sorted((low * slope + intercept, high * slope + intercept))
        expected = (modality - ends[0]) / (ends[1] - ends[0])
    elif function == "LINEAR":
        expected = (modality - (window[0] - 0.5)) / (window[1] - 1) + 0.5
    else:
        expected = (modality - window[0]) / window[1] + 0.5
    expected = np.clip(expected, 0, 1)
    expected = 1 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(image.pixels[0], expected, atol=2e-4)


@pytest.mark.parametrize(
    ("stored", "signed", "more"),
    [
        ([[0, 0x1000]], False, {}),
        ([[0x8FFF, 0]], False, {}),
        ([[0x8010, 0x000F]], False, {"HighBit": 15}),
        ([[0x800F, 0xFFF0]], False, {"HighBit": 15}),
        # Signed: one sample with its sign, the other with zeros; and bits that are neither.
        ([[0xF800, 0x0800]], True, {}),
        ([[0x7FF | 0x7000, 0]], True, {}),
        ([[0xF7FF, 0]], True, {}),
    ],
    ids=["overlay", "top", "below", "below one", "both signs", "no sign", "wrong sign"],
)
def test_a_second_picture_in_unused_bits_is_refused(
    build: Any, stored: list[list[int]], signed: bool, more: dict[str, int]
) -> None:
    dataset = build(np.array(stored, np.uint16).view(np.int16) if signed else np.array(stored), signed=signed, **more)
    with pytest.raises(RefusalError, match="a reader that does not mask them sees another picture") as refused:
        images(dataset)
    assert refused.value.reason is Reason.UNDECODABLE


def test_bits_below_a_high_bit_that_is_not_the_last_are_shifted_out(build: Any) -> None:
    assert values(build(np.array([[0x8000, 0xFFF0]]), HighBit=15)) == [round(2048 / 4095, 5), 1.0]


@pytest.mark.parametrize("stored", [[[0x7FF, 0x0800]], [[0x7FF, 0xF800]]], ids=["zeros", "sign"])
def test_signed_values_may_be_extended_by_zeros_or_by_their_sign(build: Any, stored: list[list[int]]) -> None:
    assert values(build(np.array(stored, np.uint16).view(np.int16), signed=True)) == [1.0, 0.0]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=["implicit", "big endian"])
def test_other_encodings_give_the_same(build: Any, syntax: str) -> None:
    little = build(ROW, WindowCenter=2048, WindowWidth=4096)
    other = build(ROW, WindowCenter=2048, WindowWidth=4096, transfer_syntax=syntax)
    if syntax == ExplicitVRBigEndian:
        other.PixelData = np.frombuffer(other.PixelData, "<u2").astype(">u2").tobytes()
    assert values(other) == values(little)


def test_rgb_and_its_planes(build: Any) -> None:
    stored = np.array([[[255, 0, 51], [0, 255, 102]]])
    interleaved = build(stored, bits=8, allocated=8, photometric="RGB")
    (image,) = images(interleaved)
    assert image.pixels.shape == (3, 1, 2)
    np.testing.assert_allclose(image.pixels[:, 0, 0], [1.0, 0.0, 0.2], atol=1e-6)
    planar = build(stored, bits=8, allocated=8, photometric="RGB", PlanarConfiguration=1)
    planar.PixelData = np.moveaxis(stored, -1, 0).astype(np.uint8).tobytes()
    np.testing.assert_array_equal(images(planar)[0].pixels, image.pixels)


def test_ybr_full_to_rgb(build: Any) -> None:
    # Pure red in full range YCbCr (ITU-T T.871): Y 76.245, Cb 84.97, Cr 255.5 clipped.
    (image,) = images(build(np.array([[[76, 85, 255], [128, 128, 128]]]), bits=8, allocated=8, photometric="YBR_FULL"))
    np.testing.assert_allclose(image.pixels[:, 0, 0], [254 / 255, 0.0, 0.0], atol=3 / 255)
    np.testing.assert_allclose(image.pixels[:, 0, 1], [128 / 255] * 3, atol=1e-5)
    assert image.mapping is None


def test_ybr_422_shares_chroma_between_two_pixels(build: Any) -> None:
    dataset = build(np.zeros((1, 2, 3), np.uint8), bits=8, allocated=8, photometric="YBR_FULL_422")
    dataset.PixelData = bytes([10, 200, 128, 128])
    np.testing.assert_allclose(images(dataset)[0].pixels[0, 0], [10 / 255, 200 / 255], atol=1e-5)


def palette(dataset: Dataset, first: int, *tables: list[int]) -> Dataset:
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [len(table), first, 16])
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.array(table, "<u2").tobytes())
    return dataset


def test_palette(build: Any) -> None:
    dataset = build(np.array([[0, 5, 6, 200]]), bits=8, allocated=8, photometric="PALETTE COLOR")
    (image,) = images(palette(dataset, 5, [0, 65535], [65535, 0], [13107, 13107]))
    np.testing.assert_allclose(image.pixels[:, 0], [[0, 0, 1, 1], [1, 1, 0, 0], [0.2] * 4], atol=1e-6)
    assert image.voi == "palette"


def test_palette_missing_is_a_fault(build: Any) -> None:
    with pytest.raises(RefusalError) as caught:
        images(build(np.array([[0, 1]]), bits=8, allocated=8, photometric="PALETTE COLOR"))
    assert caught.value.reason is Reason.UNDECODABLE


def test_frames_of_single_bits_follow_each_other_without_padding(build: Any) -> None:
    bits = np.array([[[1, 0, 1]], [[0, 1, 1]], [[1, 1, 0]]])
    dataset = build(bits, bits=1, allocated=1)
    dataset.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    assert [image.pixels.ravel().tolist() for image in images(dataset)] == bits.reshape(3, 3).tolist()


def test_each_frame_has_its_own_rescale_and_window(build: Any) -> None:
    def group(slope: float, centre: float) -> Dataset:
        return item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")],
            FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")],
        )

    dataset = build(
        np.full((2, 1, 2), 100),
        PerFrameFunctionalGroupsSequence=[group(1, 100), group(2, 225)],
        SharedFunctionalGroupsSequence=[item(FrameVOILUTSequence=[item(WindowCenter=1, WindowWidth=1)])],
    )
    assert [float(image.pixels[0, 0, 0]) for image in images(dataset)] == [0.5, 0.25]


def test_shared_groups_hold_where_frames_have_none(build: Any) -> None:
    shared = item(FrameVOILUTSequence=[item(WindowCenter=100, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")])
    dataset = build(
        np.full((2, 1, 2), 125),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[item(FrameContentSequence=[item(StackID="1")]) for _ in range(2)],
    )
    assert [float(image.pixels[0, 0, 0]) for image in images(dataset)] == [0.75, 0.75]


@pytest.mark.parametrize(
    "more",
    [
        {"WindowCenter": 1, "WindowWidth": 0},
        {"WindowCenter": 1, "WindowWidth": -5},
        {"WindowCenter": 1, "WindowWidth": 10, "VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"VOILUTSequence": [lut([9, 0, 8], [1, 2])]},
        {"VOILUTSequence": [lut([2, 0, 32], [1, 2])]},
        {"ModalityLUTSequence": [item(ModalityLUTType="US")]},
    ],
    ids=["width 0", "width < 0", "unknown function", "slope 0", "short table", "wide table", "no table"],
)
def test_impossible_pipelines_are_faults(build: Any, more: dict[str, Any]) -> None:
    with pytest.raises(RefusalError) as caught:
        images(build(ROW, **more))
    assert caught.value.reason is Reason.UNDECODABLE
