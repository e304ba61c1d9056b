from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.errors import BundleError
from dicomguard.scoring.calibration import Calibration, Component, fit, halve
from dicomguard.scoring.consistency import NoiseCurve


def curve(rng: np.random.Generator) -> NoiseCurve:
    margin = float(rng.gamma(4, 1))
    drops = rng.normal(0, 1, 3) * np.array([0.1, 0.2, 0.3])
    probability = 1 / (1 + math.exp(-margin))
    return NoiseCurve(margin, probability, margin, drops / 10, drops, margin - drops)


def fitted(rng: np.random.Generator, count: int, alpha: float = 0.05) -> Calibration:
    curves = [curve(rng) for _ in range(count)]
    groups = [str(rng.integers(2**62)) for _ in range(count)]
    return fit(curves, groups, fingerprint="f" * 64, source="made up", alpha=alpha)


def test_a_third_of_the_patients_sets_the_references_and_a_patient_is_never_split() -> None:
    groups = [f"patient-{i // 3}" for i in range(3000)]
    half = halve(groups)
    assert 0.3 < half.mean() < 0.37
    assert all(len(set(half[i : i + 3])) == 1 for i in range(0, 3000, 3))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_stay_at_alpha_on_average_over_calibrations(alpha: float) -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(40):
        calibration = fitted(rng, 240, alpha)
        rates.append(np.mean([calibration.flags(curve(rng)) for _ in range(250)]))
    # 40 calibrations of about 160 images: the mean's standard error is about alpha / 20.
    assert np.mean(rates) <= alpha * 1.2
    assert np.mean(rates) >= alpha * 0.5


def test_flagged_means_over_the_threshold_low_margin_or_no_number() -> None:
    rng = np.random.default_rng(2)
    calibration = fitted(rng, 400)
    quiet = NoiseCurve(9.0, 0.9999, 9.0, np.full(3, -0.01), np.full(3, -0.01), np.full(3, 9.0))
    assert not calibration.flags(quiet)
    loud = NoiseCurve(9.0, 0.9999, 9.0, np.full(3, 0.9), np.full(3, 9.5), np.full(3, -0.5))
    assert calibration.flags(loud)
    unsure = NoiseCurve(0.001, 0.5, 0.001, np.full(3, -0.01), np.full(3, -0.01), np.full(3, 9.0))
    assert calibration.margin_floor > 0.001
    assert calibration.flags(unsure)
    broken = NoiseCurve(9.0, 0.9999, 9.0, np.full(3, np.nan), np.full(3, -0.01), np.full(3, 9.0))
    assert math.isnan(calibration.statistic_of(broken))
    assert calibration.flags(broken)


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=60, unique_by=lambda v: round(v, 5)),
    st.floats(-100, 100),
    st.floats(0, 50),
)
@settings(deadline=None)
def test_surprise_rises_with_the_value(values: list[float], at: float, further: float) -> None:
    component = Component.fit(np.array(values))
    assert component.surprise(at) <= component.surprise(at + further) + 1e-9
    assert component.surprise(at) >= 0
    assert component.surprise(max(values) + 1) > math.log(len(component.values) + 1)


def test_surprise_is_minus_the_log_of_the_conformal_p_value() -> None:
    component = Component.fit(np.arange(99.0))
    assert component.surprise(98.0) == pytest.approx(math.log(100))
    assert component.surprise(88.0) == pytest.approx(-math.log(11 / 100))
    assert component.surprise(-5.0) == pytest.approx(-math.log(99 / 100))
    assert component.surprise(math.inf) == math.inf
    assert math.isnan(component.surprise(math.nan))


def test_paper_theta_is_two_standard_deviations_of_the_correct_images() -> None:
    rng = np.random.default_rng(3)
    curves = [curve(rng) for _ in range(200)]
    correct = [bool(i % 4) for i in range(200)]
    found = fit(
        curves, [str(i) for i in range(200)], fingerprint="f" * 64, source="made up", is_correct=correct, paper_level=1
    )
    drops = np.array([c.probability_drops for c, right in zip(curves, correct, strict=True) if right])
    assert found.paper_theta == pytest.approx(2 * drops.std(0, ddof=1))
    assert found.paper_images == 150
    assert found.thresholds().paper_level == 1


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    with pytest.raises(BundleError, match="too few") as raised:
        fitted(np.random.default_rng(4), 30)
    assert "80" in raised.value.advice
    with pytest.raises(BundleError, match="too few") as raised:
        fitted(np.random.default_rng(4), 120, alpha=0.005)
    assert "398" in raised.value.advice


def test_nan_among_the_clean_images_is_refused() -> None:
    rng = np.random.default_rng(5)
    curves = [curve(rng) for _ in range(99)]
    curves.append(NoiseCurve(1.0, 0.7, 1.0, np.full(3, np.nan), np.zeros(3), np.zeros(3)))
    with pytest.raises(BundleError, match="NaN"):
        fit(curves, [str(i) for i in range(100)], fingerprint="", source="")


def test_a_network_that_never_moves_is_refused() -> None:
    same = NoiseCurve(1.0, 0.7, 1.0, np.zeros(3), np.zeros(3), np.ones(3))
    with pytest.raises(BundleError, match="does not react"):
        fit([same] * 100, [str(i) for i in range(100)], fingerprint="", source="")
