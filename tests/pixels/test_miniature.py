from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import SIDE, area_weights, averaged
from dicomguard.pixels.reader import images

_SIZES = st.integers(1, 300)


@settings(deadline=None, max_examples=60)
@given(rows=_SIZES, columns=_SIZES, seed=st.integers(0, 2**32 - 1), eps=st.floats(1e-4, 0.1))
def test_averaging_is_a_contraction_in_l_inf(rows: int, columns: int, seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    clean = rng.random((rows, columns)).astype(np.float32)
    # The worst case, all pixels by eps in one direction, among the random ones.
    signs = np.ones_like(clean) if seed % 4 == 0 else rng.choice([-1.0, 1.0], clean.shape).astype(np.float32)
    moved = clean + np.float32(eps) * signs
    budget = float(np.abs(moved - clean).max())
    assert np.abs(averaged(moved) - averaged(clean)).max() <= budget + 1e-6


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 224, 1000, 3001])
def test_weights_are_shares_that_use_every_pixel_alike(size: int) -> None:
    weights = area_weights(size)
    assert weights.shape == (SIDE, size)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights.sum(0), SIDE / size, rtol=1e-4)


def test_whole_factors_are_plain_block_means() -> None:
    plane = np.random.default_rng(0).random((192, 128)).astype(np.float32)
    blocks = plane.reshape(64, 3, 64, 2).mean((1, 3))
    np.testing.assert_allclose(averaged(plane), blocks, atol=1e-6)


def test_an_offset_costs_no_precision() -> None:
    plane = np.full((512, 512), 60000.0, np.float32)
    plane[::2] += 1
    np.testing.assert_allclose(averaged(plane), 60000.5, atol=1e-2)


def one(dataset: Any) -> Image:
    (image,) = images(dataset)
    assert image.miniature is not None
    return image


def test_the_headers_window_does_not_reach_the_miniature(build: Any) -> None:
    stored = np.arange(64 * 64).reshape(64, 64) % 4096
    plain = one(build(stored)).miniature
    windowed = one(build(stored, WindowCenter="100", WindowWidth="50")).miniature
    assert plain is not None
    assert windowed is not None
    np.testing.assert_array_equal(plain.values, windowed.values)
    assert (plain.low, plain.high) == (0, 4095)


def test_rescaled_values_are_in_modality_units(build: Any) -> None:
    stored = np.full((64, 64), 1024)
    small = one(build(stored, RescaleSlope="1", RescaleIntercept="-1024")).miniature
    assert small is not None
    np.testing.assert_allclose(small.values, 0, atol=1e-3)
    assert (small.low, small.high) == (-1024, 3071)


def test_monochrome1_is_turned_round(build: Any) -> None:
    stored = np.zeros((64, 64), int)
    small = one(build(stored, PhotometricInterpretation="MONOCHROME1")).miniature
    assert small is not None
    np.testing.assert_allclose(small.values, 4095)
