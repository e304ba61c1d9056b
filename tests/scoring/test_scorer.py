from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomguard.decision import Policy as DecisionPolicy
from dicomguard.decision import Verdict, judge_score
from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.scoring import bundle, noise
from dicomguard.scoring.calibration import Calibration, fit
from dicomguard.scoring.consistency import noisy_copies
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import gray_image, write_small


@pytest.fixture(scope="module")
def scorer(small_bundle: Path) -> Scorer:
    return Scorer.load(small_bundle)


def seeds(count: int) -> list[bytes]:
    return [noise.seed(b"key", f"1.2.{index}", 0, "", "", "noise-check") for index in range(count)]


@pytest.fixture(scope="module")
def batch(scorer: Scorer) -> torch.Tensor:
    return scorer.prepare([gray_image(seed) for seed in range(6)])


def test_prepared_images_are_unit_range_planes(scorer: Scorer) -> None:
    prepared = scorer.prepare([gray_image(1), gray_image(2, rows=200, columns=31)])
    assert prepared.shape == (2, 1, 48, 48)
    assert prepared.dtype == torch.float32
    assert prepared.min() >= 0
    assert prepared.max() <= 1
    assert scorer.prepare([]).shape == (0, 1, 48, 48)


def test_colour_becomes_luminance(scorer: Scorer) -> None:
    gray = gray_image(3)
    colour = Image(np.repeat(gray.pixels, 3, 0), 0, 8, "RGB", "none", None)
    assert torch.allclose(scorer.prepare([gray]), scorer.prepare([colour]), atol=1e-6)


def test_a_change_at_native_resolution_never_grows_in_preparation(scorer: Scorer) -> None:
    rng = np.random.default_rng(0)
    for rows, columns in ((48, 48), (100, 77), (31, 200), (20, 20)):
        pixels = torch.from_numpy(rng.random((1, rows, columns), np.float32))
        moved = (pixels + 0.004 * torch.sign(torch.rand_like(pixels) - 0.5)).clamp(0, 1)
        change = (scorer.preprocess(pixels) - scorer.preprocess(moved)).abs().max()
        assert change <= 0.004 + 1e-6


def test_gradients_reach_the_native_pixels(scorer: Scorer) -> None:
    pixels = torch.from_numpy(gray_image(4, rows=97, columns=61).pixels).requires_grad_()
    scorer.logits(scorer.preprocess(pixels).unsqueeze(0)).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).float().mean() > 0.9


# One fixed noise law, recomputed here the plain way: one image, one draw at a time.
def test_the_numbers_are_those_of_the_definition(scorer: Scorer, batch: torch.Tensor) -> None:
    (score,) = scorer.score(batch[2:3], seeds(3)[2:])
    with torch.inference_mode():
        logit = float(scorer.logits(batch[2:3]))
        sign = 1 if logit >= 0 else -1
        drawn = noise.uniform(seeds(3)[2], range(12), (1, 48, 48))
        for level, strength in enumerate((0.01, 0.03, 0.05)):
            noisy = [
                sign * float(scorer.logits((batch[2:3] + strength * drawn[4 * level + r]).clamp(0, 1)))
                for r in range(4)
            ]
            drop = 1 / (1 + math.exp(-sign * logit)) - np.median([1 / (1 + math.exp(-m)) for m in noisy])
            assert score.probability_drops[level] == pytest.approx(drop, abs=1e-5)
            assert score.logit_drops[level] == pytest.approx(sign * logit - np.median(noisy), abs=1e-4)
    assert score.predicted == ("opacity" if logit >= 0 else "normal")
    assert score.margin == pytest.approx(abs(logit), abs=1e-4)
    assert score.levels == (0.01, 0.03, 0.05)


def test_noise_stays_within_its_level_and_the_unit_range(scorer: Scorer, batch: torch.Tensor) -> None:
    copies = noisy_copies(batch[0], bytes(32), scorer.noise)
    assert copies.shape == (13, 1, 48, 48)
    assert torch.equal(copies[0], batch[0])
    assert copies.min() >= 0
    assert copies.max() <= 1
    for level, strength in enumerate(scorer.noise.levels):
        moved = (copies[1 + 4 * level : 5 + 4 * level] - batch[0]).abs()
        assert 0.9 * strength < moved.max() <= strength + 1e-6


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_score_is_blind_to_batch_size_and_neighbours(
    scorer: Scorer, batch: torch.Tensor, order: list[int], size: int
) -> None:
    alone = [scorer.score(batch[i : i + 1], [seeds(6)[i]])[0] for i in range(6)]
    found = {}
    for start in range(0, 6, size):
        chosen = order[start : start + size]
        found.update(zip(chosen, scorer.score(batch[chosen], [seeds(6)[i] for i in chosen]), strict=True))
    for index, score in enumerate(alone):
        assert found[index].statistic == pytest.approx(score.statistic, abs=1e-5)
        assert found[index].margin == pytest.approx(score.margin, abs=1e-5)
        assert found[index].probability_drops == pytest.approx(score.probability_drops, abs=1e-5)


def test_another_seed_draws_other_noise(scorer: Scorer, batch: torch.Tensor) -> None:
    first, second = (scorer.score(batch[:1], [seeds(2)[i]])[0] for i in range(2))
    assert first.margin == pytest.approx(second.margin, abs=1e-6)
    assert first.logit_drops != second.logit_drops


def test_as_many_seeds_as_images(scorer: Scorer, batch: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="6 images"):
        scorer.score(batch, seeds(5))
    assert scorer.score(batch[:0], []) == []


def test_nan_pixels_give_a_score_that_no_threshold_passes(scorer: Scorer) -> None:
    pixels = gray_image(5).pixels.copy()
    pixels[0, 3, 3] = np.nan
    prepared = scorer.prepare([Image(pixels, 0, 12, "MONOCHROME2", "none", None)])
    (score,) = scorer.score(prepared, seeds(1))
    assert not score.is_finite


def test_saliency_is_a_picture_of_each_image(scorer: Scorer, batch: torch.Tensor) -> None:
    picture = scorer.saliency(batch[:2])
    assert picture.shape == (2, 48, 48)
    assert picture.dtype == np.float32
    assert picture.max() == pytest.approx(1)
    assert picture.min() >= 0


def test_a_device_that_is_not_there_is_an_error_with_advice(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="device"):
        Scorer.load(small_bundle, device="nonsense")


def calibrated(scorer: Scorer, count: int = 90) -> Calibration:
    batch = scorer.prepare([gray_image(100 + i) for i in range(count)])
    curves = scorer.curves(batch, seeds(count))
    return fit(curves, [str(i) for i in range(count)], fingerprint=scorer.fingerprint, source="made up")


def test_an_uncalibrated_scorer_says_so(scorer: Scorer) -> None:
    assert scorer.calibration is None
    assert scorer.thresholds is None


@pytest.mark.slow
def test_a_calibration_travels_with_the_bundle_and_with_no_other(
    scorer: Scorer, batch: torch.Tensor, tmp_path: Path
) -> None:
    fitted = calibrated(scorer)
    same = write_small(tmp_path / "same")
    bundle.write_calibration(same, fitted)
    again = Scorer.load(same)
    assert again.thresholds is not None
    assert again.calibration == fitted
    for score, curve in zip(again.score(batch, seeds(6)), again.curves(batch, seeds(6)), strict=True):
        judged = judge_score(score, again.thresholds, DecisionPolicy())
        assert (judged.verdict is not Verdict.CLEAN) == fitted.flags(curve)
    other = write_small(tmp_path / "other", seed=1)
    bundle.write_calibration(other, fitted)
    with pytest.raises(BundleError, match="another scorer"):
        Scorer.load(other)
