from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from dicomguard.enrol.ranks import auroc
from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors import roc
from dicomguard.lab.detectors.judge import (
    Attacked,
    Clean,
    combined_accuracy,
    flags,
    judge,
    low_confidence,
    operating_point,
    ppv,
    threshold,
)


def keys(count: int) -> tuple[str, ...]:
    return tuple(f"case {n}" for n in range(count))


def clean_of(scores: Any, right: Any = None) -> Clean:
    scores = np.asarray(scores, np.float64)
    right = np.ones(len(scores), bool) if right is None else np.asarray(right, bool)
    return Clean(keys(len(scores)), scores, right, np.arange(1.0, len(scores) + 1))


def attacked_of(scores: Any, succeeded: Any = None) -> Attacked:
    scores = np.asarray(scores, np.float64)
    succeeded = np.ones(len(scores), bool) if succeeded is None else np.asarray(succeeded, bool)
    return Attacked(keys(len(scores)), scores, succeeded)


def test_the_threshold_is_the_order_statistic_that_the_promise_needs() -> None:
    assert threshold(np.arange(1, 100), 0.05) == 95
    assert threshold(np.arange(1, 100)[::-1], 0.01) == 99
    assert threshold(np.arange(1, 20), 0.05) == 19
    with pytest.raises(DicomguardError, match=r"needs 19 clean files .* not 18"):
        threshold(np.arange(18), 0.05)
    with pytest.raises(DicomguardError, match="NaN"):
        threshold([math.nan, *range(40)], 0.05)
    with pytest.raises(DicomguardError, match="cannot see 3 of 43"):
        threshold([*range(40), *[math.inf] * 3], 0.05)


def test_the_promise_holds_on_the_average() -> None:
    rng = np.random.default_rng(1)
    rates = [flags(rng.gamma(2, size=200), threshold(rng.gamma(2, size=59), 0.1)).mean() for _ in range(300)]
    assert 0.09 < np.mean(rates) < 0.11


def test_what_cannot_be_seen_is_flagged_whatever_the_threshold() -> None:
    assert flags([math.inf, math.nan, 1.0, -math.inf], math.inf).tolist() == [True, True, False, False]
    assert flags([2.0, 2.1], 2.0).tolist() == [False, True]


def test_an_attack_that_changes_nothing_is_detected_as_often_as_clean_files_are_flagged() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=80)
    point = operating_point(0.05, rng.normal(size=99), clean_of(scores), {"eps 0": attacked_of(scores)})
    assert point["attacks"]["eps 0"]["detected"] == point["clean"]
    assert auroc(scores, scores) == 0.5


def test_every_share_has_its_own_denominator() -> None:
    clean = clean_of([0, 0, 9, 9, 0, 0, 0, 0, 0, 9], [1, 1, 1, 0, 1, 1, 1, 1, 0, 1])
    attack = attacked_of([9, 9, 9, 0, 9, 0], [1, 1, 0, 1, 0, 0])
    point = operating_point(0.1, np.arange(10) / 10, clean, {"BIM": attack}, daily=1000, prevalence=0.01)
    assert (point["threshold"], point["calibrated_on"]) == (0.9, 10)
    assert (point["clean"]["hits"], point["clean"]["count"]) == (3, 10)
    assert [point["strata"][name]["count"] for name in ("correct", "misclassified", "low confidence")] == [8, 2, 2]
    assert [point["strata"][name]["hits"] for name in ("correct", "misclassified", "low confidence")] == [2, 1, 0]
    assert point["alarms_a_day"] == {"images": 1000, "alarms": 300}
    found = point["attacks"]["BIM"]
    assert (found["success"]["hits"], found["success"]["count"]) == (3, 6)
    assert (found["detected"]["hits"], found["detected"]["count"]) == (2, 3)
    assert (found["undetected_success"]["hits"], found["undetected_success"]["count"]) == (1, 6)
    rates = found["success"]["rate"] * (1 - found["detected"]["rate"])
    assert found["undetected_success"]["rate"] == pytest.approx(rates)
    assert found["ppv"] == pytest.approx(2 / 3 * 0.01 / (2 / 3 * 0.01 + 0.3 * 0.99))
    assert point["band"]["low"] <= point["band"]["high"]


def test_few_alarms_at_a_low_prevalence_are_attacks() -> None:
    assert ppv(1.0, 0.01, 1e-4) == pytest.approx(0.0099, abs=1e-4)
    assert ppv(0.0, 0.0, 0.5) is None


def test_a_lines_figures_are_ready_for_json_and_say_what_is_missing() -> None:
    rng = np.random.default_rng(3)
    clean = clean_of(rng.normal(size=60), rng.random(60) < 0.9)
    attacks = {"BIM": attacked_of(rng.normal(3, 1, 30)), "nothing": attacked_of([1.0, 2.0], [0, 0])}
    line = json.loads(json.dumps(judge("some", rng.normal(size=50), clean, attacks, theta=1.0)))
    assert line["points"][0]["attacks"]["BIM"]["detected"]["rate"] > 0.6
    assert "needs 99 clean files" in line["points"][1]["none_because"]
    assert line["theta"]["threshold"] == 1
    assert line["theta"]["band"] is None
    low, high = line["auroc"]["BIM"]["interval"]
    assert 0.9 < low < line["auroc"]["BIM"]["area"] < high <= 1
    assert line["auroc"]["nothing"]["area"] is None
    assert line["points"][0]["attacks"]["nothing"]["detected"]["rate"] is None


def test_the_least_confident_fifth() -> None:
    assert low_confidence(np.array([5.0, -1, 4, 3, 2])).tolist() == [False, True, False, False, False]
    assert len(low_confidence(np.empty(0))) == 0


def test_the_interval_covers_and_is_paired() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(size=200)
    names = keys(200)
    found = roc.auroc_interval(base, base + 0.3, names, names)
    assert found["interval"][0] < found["area"] < found["interval"][1]
    unpaired = roc.auroc_interval(base, base + 0.3, names, [f"other {n}" for n in range(200)])
    width = found["interval"][1] - found["interval"][0]
    assert width < 0.5 * (unpaired["interval"][1] - unpaired["interval"][0])
    assert roc.auroc_interval(base, base + 0.3, names, names) == found
    assert roc.auroc_interval([], [1.0], [], names[:1])["area"] is None


def test_an_interval_needs_a_key_and_a_number_for_each_file() -> None:
    scores, names = np.arange(9.0), keys(9)
    with pytest.raises(ValueError, match="as many keys"):
        roc.auroc_interval(scores, scores, names[:5], names)
    with pytest.raises(ValueError, match="NaN"):
        roc.auroc_interval([math.nan], [1.0], names[:1], names[:1])


def test_the_three_accuracies_by_hand() -> None:
    # Clean: 10, of which 8 are right, and one of those and one other are rejected. Attacked: 10, 6 caught, of those
    # that pass one is answered rightly.
    clean_flags = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], bool)
    clean_correct = np.array([1, 0, 0, 1, 1, 1, 1, 1, 1, 1], bool)
    attacked_flags = np.array([1] * 6 + [0] * 4, bool)
    attacked_correct = np.array([0] * 6 + [1, 0, 0, 0], bool)
    found = combined_accuracy(clean_flags, clean_correct, attacked_flags, attacked_correct)
    assert found["A1"] == pytest.approx((7 + 1) / (8 + 4 + 2))
    assert found["A2"] == pytest.approx((7 + 1 + 6) / 20)
    assert found["A3"] == pytest.approx(3 / 10)
    assert combined_accuracy([], [], [], []) == {"A1": None, "A2": None, "A3": None}
    with pytest.raises(ValueError, match="as many flags"):
        combined_accuracy([True], [], [], [])


def test_a_detector_that_flags_all_is_best_by_their_formula_only() -> None:
    truth, flipped, everything = np.ones(10, bool), np.zeros(10, bool), np.ones(10, bool)
    found = combined_accuracy(everything, truth, everything, flipped)
    assert found == {"A1": 0, "A2": 0.5, "A3": 0}
    attacks_only = combined_accuracy(~everything, truth, everything, flipped)
    assert attacks_only == {"A1": 1, "A2": 1, "A3": 0}
