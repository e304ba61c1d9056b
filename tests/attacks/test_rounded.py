"""Rounding in memory is forging a file and reading it back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from dicomguard import phantom
from dicomguard.attacks.forge import forge
from dicomguard.attacks.rounded import rounded, unrounded
from dicomguard.errors import DicomguardError
from dicomguard.pixels.image import Image
from dicomguard.pixels.reader import images


def source(**changes: object) -> Dataset:
    dataset = phantom.make(7, opacity=True, rows=96, columns=80)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


SOURCES = {
    "as made": {},
    "inverted": {"PhotometricInterpretation": "MONOCHROME1"},
    "windowed": {"WindowCenter": "2000", "WindowWidth": "1500"},
    "windowed widely": {"WindowCenter": "2048", "WindowWidth": "9000"},
    "rescaled": {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "3000", "WindowWidth": "12000"},
}


def read(dataset: Dataset) -> Image:
    (image,) = images(dataset)
    return image


def moved(image: Image, by: float, seed: int = 0) -> np.ndarray:
    change = np.random.default_rng(seed).uniform(-by, by, image.pixels.shape)
    return np.clip(image.pixels + change, 0, 1).astype(np.float32)


@pytest.mark.parametrize("name", SOURCES)
def test_before_rounding_it_is_the_same_but_for_the_rounding(name: str) -> None:
    image = read(source(**SOURCES[name]))
    after = rounded(image, moved(image, 0.02))
    found = unrounded(image, after.pixels)
    assert np.array_equal(found.pixels, after.pixels)
    assert found.miniature is not None
    assert after.miniature is not None
    assert image.miniature is not None
    change = np.abs(after.miniature.values - image.miniature.values).max()
    assert np.abs(found.miniature.values - after.miniature.values).max() < 1e-3 * change + 1e-6


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_what_the_node_reads_of_a_forged_file(name: str) -> None:
    dataset = source(**SOURCES[name])
    image = read(dataset)
    adversarial = moved(image, 0.02)
    expected = read(forge(dataset, image, adversarial, description="test"))
    found = rounded(image, adversarial)
    assert np.abs(found.pixels - expected.pixels).max() < 1e-6
    assert found.mapping == expected.mapping
    assert found.miniature is not None
    assert expected.miniature is not None
    before = image.miniature
    assert before is not None
    if name == "windowed":
        # What lies outside the window is moved to its edge in the file, and by less in memory: the guard sees less.
        moved_by = (np.abs(one.miniature.values - before.values).mean() for one in (found, expected) if one.miniature)
        assert next(moved_by) < next(moved_by)
        return
    change = np.abs(expected.miniature.values - before.values).max()
    assert change > 0
    assert np.abs(found.miniature.values - expected.miniature.values).max() < 0.02 * change + 1e-3
    assert (found.miniature.low, found.miniature.high) == (expected.miniature.low, expected.miniature.high)


@given(st.floats(0, 0.05), st.integers(0, 1000))
@settings(deadline=None, max_examples=15)
def test_what_is_rounded_stays_within_half_a_grey_level(by: float, seed: int) -> None:
    image = read(source())
    adversarial = moved(image, by, seed)
    found = rounded(image, adversarial)
    assert image.mapping is not None
    assert np.abs(found.pixels - adversarial).max() <= 0.5 * abs(image.mapping.scale) + 1e-6
    assert np.array_equal(rounded(found, found.pixels).pixels, found.pixels)


def test_an_image_that_was_not_touched_stays_as_it_was() -> None:
    for changes in SOURCES.values():
        image = read(source(**changes))
        same = rounded(image, image.pixels)
        assert np.allclose(same.pixels, image.pixels, atol=1e-6)
        assert same.miniature is not None
        assert image.miniature is not None
        assert np.array_equal(same.miniature.values, image.miniature.values)


def test_without_an_affine_way_back_it_is_an_error() -> None:
    image = read(source())
    with pytest.raises(DicomguardError, match="no inverse"):
        rounded(replace(image, mapping=None), image.pixels)


def colour_source(*, planar: int = 0, bits: int = 8) -> Dataset:
    """An RGB picture of 48 x 40 with dark, bright and saturated samples; 8 or 16 bits allocated."""
    dataset = phantom.make(7, opacity=True, rows=64, columns=64)
    top = 2**bits - 1
    dataset.Rows, dataset.Columns = 48, 40
    samples = np.random.default_rng(5).integers(0, top + 1, (48, 40, 3)).astype(np.uint8 if bits == 8 else "<u2")
    samples[:4], samples[4:8] = 0, top
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "RescaleType"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PlanarConfiguration = "RGB", 3, planar
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    stored = np.moveaxis(samples, -1, 0) if planar else samples
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


COLOURS = {"by pixel": {}, "by plane": {"planar": 1}, "12 bits": {"bits": 12}}


@pytest.mark.parametrize("changes", COLOURS.values(), ids=COLOURS)
def test_colour_is_rounded_as_its_file_is_read(changes: dict[str, int]) -> None:
    dataset = colour_source(**changes)
    before = dataset.PixelData
    image = read(dataset)
    adversarial = moved(image, 0.02)
    assert adversarial.shape == (3, 48, 40)
    forged = forge(dataset, image, adversarial, description="test")
    expected = read(forged)
    found = rounded(image, adversarial)
    assert np.abs(found.pixels - expected.pixels).max() < 1e-6
    assert np.abs(found.pixels - adversarial).max() <= 0.5 / (2**image.bits_stored - 1) + 1e-6
    assert not np.array_equal(found.pixels, image.pixels)
    assert found.miniature is not None
    assert expected.miniature is not None
    np.testing.assert_allclose(found.miniature.values, expected.miniature.values, atol=1e-6)
    assert forged.PlanarConfiguration == 0
    assert dataset.PixelData == before
    assert np.array_equal(rounded(found, found.pixels).pixels, found.pixels)


@pytest.mark.parametrize("changes", COLOURS.values(), ids=COLOURS)
def test_colour_that_was_not_touched_keeps_every_stored_sample(changes: dict[str, int]) -> None:
    dataset = colour_source(**changes)
    image = read(dataset)
    same = forge(dataset, image, image.pixels, description="test")
    assert np.array_equal(same.pixel_array, dataset.pixel_array)
    one = image.pixels.copy()
    one[1, 10, 7] = 1 - one[1, 10, 7]
    changed = forge(dataset, image, one, description="test").pixel_array != dataset.pixel_array
    assert np.argwhere(changed).tolist() == [[10, 7, 1]]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["RLE", "JPEG 2000"])
def test_a_compressed_colour_source_is_forged_uncompressed(syntax: str) -> None:
    dataset = colour_source()
    expected = moved(read(dataset), 0.02)
    dataset.compress(syntax, generate_instance_uid=False)
    image = read(dataset)
    found = read(forge(dataset, image, expected, description="test"))
    assert np.abs(found.pixels - expected).max() <= 0.5 / 255 + 1e-6


def test_a_picture_of_another_shape_is_no_attack_on_this_one() -> None:
    image = read(colour_source())
    with pytest.raises(ValueError, match="shape"):
        rounded(image, image.pixels[:1])
