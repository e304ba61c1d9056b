from __future__ import annotations

import numpy as np
import pytest

from dicomguard.enrol.intervals import clopper_pearson
from dicomguard.lab.figures import beta_binomial_band, clustered, clustered_mean, share, worded


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(40, 40, 0.912, 1.0), (39, 40, 0.868, 0.999), (0, 10, 0.0, 0.308), (14, 23, 0.385, 0.803)],
)
def test_clopper_pearson_agrees_with_published_intervals(hits: int, count: int, low: float, high: float) -> None:
    assert clopper_pearson(hits, count) == pytest.approx((low, high), abs=1e-3)


def test_the_band_is_the_law_of_split_conformal_counts() -> None:
    rng = np.random.default_rng(0)
    calibrated, alpha, tested = 300, 0.05, 500
    rank = int(np.ceil((calibrated + 1) * (1 - alpha)))
    counts = []
    for _ in range(2000):
        threshold = np.sort(rng.random(calibrated))[rank - 1]
        counts.append((rng.random(tested) > threshold).sum())
    low, high = beta_binomial_band(calibrated, alpha, tested)
    inside = np.mean([low <= count <= high for count in counts])
    assert 0.94 <= inside <= 0.975
    assert low < alpha * tested < high


def test_shares_are_worded_with_their_denominator() -> None:
    assert worded(share([True] * 39 + [False])).startswith("0.975 (39/40, 95 % interval 0.868")
    assert worded(share([])) == "none to count"


def test_what_goes_together_is_not_counted_twice() -> None:
    rng = np.random.default_rng(1)
    once = rng.random(60) < 0.8
    names = [f"{i}" for i in range(60)]
    alone = clustered(once, names)
    twice = clustered(np.concatenate([once, once]), 2 * names)
    assert twice["interval"] == pytest.approx(alone["interval"], abs=0.02), "the same again tells nothing new"
    exact = share(once)["interval"]
    assert alone["interval"] == pytest.approx(exact, abs=0.05)
    assert (twice["count"], twice["clusters"]) == (120, 60)
    assert share(np.concatenate([once, once]))["interval"][0] > twice["interval"][0]


@pytest.mark.parametrize("value", [True, False])
def test_where_all_agree_there_is_doubt_left(value: bool) -> None:
    found = clustered([value] * 40, [f"{i % 20}" for i in range(40)])
    assert found["interval"] == pytest.approx(list(clopper_pearson(20 * value, 20)))
    assert clustered([], [])["rate"] is None


def test_differences_of_the_same_pictures_are_told_together() -> None:
    """Eight of two hundred are flagged after, two of these before: one at a time they would not be told apart."""
    before, after = np.zeros(200), np.zeros(200)
    before[:2], after[:8] = 1, 1
    names = [f"{i}" for i in range(200)]
    found = clustered_mean(after - before, names)
    assert found["mean"] == pytest.approx(0.03)
    assert 0 < found["interval"][0] < 0.03 < found["interval"][1] < 0.07
    still = clustered_mean(np.zeros(20), names[:20])
    _, other = clopper_pearson(0, 20)
    assert still["interval"] == pytest.approx([-other, other])
    assert clustered_mean(np.empty(0), [])["mean"] is None


def test_a_detector_at_chance_is_not_sure_of_it() -> None:
    """One right and one wrong of every picture: each bootstrap would draw one half."""
    found = clustered([True, False] * 30, [f"{i // 2}" for i in range(60)])
    assert found["rate"] == 0.5
    _, other = clopper_pearson(0, 30)
    assert found["interval"] == pytest.approx([0.5 - 0.5 * other, 0.5 + 0.5 * other])
    one_more = clustered([True, False] * 29 + [True, True], [f"{i // 2}" for i in range(60)])
    assert one_more["interval"][1] - one_more["interval"][0] < 2 * other, "a picture more changes little"
    assert one_more["interval"][1] - one_more["interval"][0] > other / 3
