from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import SIDE, area_weights, averaged
from dicomguard.pixels.reader import images
from dicomguard.pixels.sandbox import DecodeWorker
from tests.pixels.conftest import build as build_one

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


# Any header ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    intercept=st.sampled_from([0, -1024, 10_000_000, -10_000_000]),
    slope=st.sampled_from(["1", "-1", "0.01", "250"]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    change=st.integers(1, 40),
    size=st.integers(1, 130),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_change_of_stored_values_contracts_whatever_the_rescale(
    intercept: int, slope: str, photometric: str, change: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stored = rng.integers(50, 4000, (size, 131 - size))
    signs = np.ones_like(stored) if seed % 3 == 0 else rng.choice([-1, 1], stored.shape)
    header = {"RescaleSlope": slope, "RescaleIntercept": str(intercept), "photometric": photometric}
    shares = []
    for values in (stored, stored + change * signs):
        small = one(build_one(values, **header)).miniature
        assert small is not None
        assert small.low <= small.values.min() <= small.values.max() <= small.high
        shares.append((small.values - small.low) / (small.high - small.low))
    moved = np.abs(shares[1] - shares[0]).max()
    assert moved <= change / 4095 * (1 + 1e-6) + 1e-9  # float32 at 1e7 would be off by 1e-4 and more
    if seed % 3 == 0:
        assert moved == pytest.approx(change / 4095, rel=1e-5)


def test_strips_of_a_tall_frame_add_up() -> None:
    plane = np.random.default_rng(0).integers(0, 65536, (1000, 128))
    expected = area_weights(1000).astype(np.float64) @ plane @ area_weights(128).T.astype(np.float64)
    np.testing.assert_allclose(averaged(plane), expected, rtol=1e-6)


def test_weights_are_kept_for_a_few_sizes_only() -> None:
    for size in range(1, 60):
        area_weights(size)
    assert area_weights.cache_info().currsize <= 16


@pytest.mark.parametrize(("photometric", "weights"), [("RGB", (0.299, 0.587, 0.114)), ("YBR_FULL", (1.0, 0.0, 0.0))])
def test_colour_is_a_weighted_mean_of_stored_samples(photometric: str, weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(10, 246, (64, 64, 3), dtype=np.uint8)
    small = one(build_one(stored, bits=8, allocated=8, photometric=photometric)).miniature
    assert small is not None
    assert (small.low, small.high) == (0, 1)
    np.testing.assert_allclose(small.values, stored @ np.array(weights) / 255, atol=1e-6)
    # Red and blue differences of YBR reach RGB with gains of up to 1.8: what is averaged must not have them.
    moved = (stored + rng.choice([-10, 10], stored.shape)).astype(np.uint8)
    after = one(build_one(moved, bits=8, allocated=8, photometric=photometric)).miniature
    assert after is not None
    assert np.abs(after.values - small.values).max() <= 10 / 255 + 1e-6


def with_palette(stored: Any) -> Any:
    dataset = build_one(stored, bits=8, allocated=8, photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        table = np.arange(256, dtype="<u2") * 257
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())
    return dataset


def test_a_palette_has_no_miniature(worker: DecodeWorker, tmp_path: Path) -> None:
    dataset = with_palette(np.arange(64, dtype=np.uint8).reshape(8, 8))
    (image,) = images(dataset)
    assert image.miniature is None
    path = tmp_path / "palette.dcm"
    dataset.save_as(path, enforce_file_format=True)
    for _ in range(2):  # and the answers after it are still where they are expected
        place = worker.locate(path)
        assert isinstance(place, tuple)
        got = worker.frames(path, *place, 0, 1)
        assert isinstance(got, list)
        assert got[0].miniature is None
        np.testing.assert_array_equal(got[0].pixels, image.pixels)


def test_a_modality_table_is_told_even_through_the_worker(worker: DecodeWorker, tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [3, 0, 16])
    table.add_new("LUTData", "OW", np.array([100, 150, 200], "<u2").tobytes())
    table.ModalityLUTType = "US"
    dataset = build_one(np.arange(64).reshape(8, 8) % 3, ModalityLUTSequence=[table])
    small = one(dataset).miniature
    assert small is not None
    assert (small.has_table, small.low, small.high) == (True, 0, 4095)
    assert small.values.max() == pytest.approx(2)
    path = tmp_path / "table.dcm"
    dataset.save_as(path, enforce_file_format=True)
    place = worker.locate(path)
    assert isinstance(place, tuple)
    got = worker.frames(path, *place, 0, 1)
    assert isinstance(got, list)
    assert got[0].miniature is not None
    assert got[0].miniature.has_table
