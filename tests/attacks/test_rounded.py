"""Rounding in memory is forging a file and reading it back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.attacks.forge import forge
from dicomguard.attacks.rounded import rounded
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
