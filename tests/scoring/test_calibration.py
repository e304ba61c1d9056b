"""Split-conformal calibration on made-up evidence, where clean traffic is what we say it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.errors import BundleError
from dicomguard.scoring import calibration
from dicomguard.scoring.calibration import COMPONENTS, NOISE_COMPONENTS, Calibration, Evidence, fit, smallest_margin
from dicomguard.scoring.consistency import NoiseSettings, Observation, curve

SETTINGS = NoiseSettings((0.01, 0.03, 0.05), 2)
LADDER = SETTINGS.ladder()
PLAN = (((0, 0), (2, 0)), LADDER)
STRENGTHS = np.array([SETTINGS.levels[level] for level, _ in LADDER])


def clean(rng: np.random.Generator, questions: int = 1, classes: int = 2, shares: Sequence[float] = ()) -> Evidence:
    """One image of clean traffic: a margin, noise that shakes it, a distance, votes."""
    odds = rng.normal(0, 0.5, (questions, classes))
    for q in range(questions):
        odds[q, rng.choice(classes, p=shares or None)] += rng.gamma(4, 1)
    shaken = odds + 30 * STRENGTHS[:, None, None] * rng.normal(0, 1, (len(LADDER), questions, classes))
    distances = rng.chisquare(5, questions)
    return Evidence(Observation(odds, shaken, LADDER), distances, rng.binomial(64, 0.97) / 64)


def attacked(rng: np.random.Generator, **traffic: int) -> Evidence:
    """An answer that noise takes back."""
    image = clean(rng, **traffic)
    away = image.seen.noisy.copy()
    answer = np.array(image.seen.answer)
    np.put_along_axis(away, np.broadcast_to(answer[None, :, None], (len(LADDER), len(answer), 1)), -9.0, -1)
    return replace(image, seen=replace(image.seen, noisy=away))


def fitted(rng: np.random.Generator, reference: int = 40, held_back: int = 60, **options: Any) -> Calibration:
    traffic = {name: options.pop(name) for name in ("questions", "classes", "shares") if name in options}
    options = {"alpha": 0.1, "plan": PLAN, **options}
    images = [clean(rng, **traffic) for _ in range(reference + held_back)]
    return fit(images[:reference], images[reference:], **options)


def flags(fit_: Calibration, image: Evidence) -> bool:
    return fit_.flags(fit_.statistic_of(image)[0], smallest_margin(image.seen))


# The promise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traffic", [{}, {"questions": 2}, {"classes": 4}], ids=["binary", "labels", "classes"])
def test_false_alarms_stay_at_alpha_on_average_over_calibrations(traffic: dict[str, int]) -> None:
    rng = np.random.default_rng(1)
    pool = [clean(rng, **traffic) for _ in range(400)]
    rates, p_values, ends = [], [], []
    for _ in range(6):
        order = [pool[i] for i in rng.permutation(len(pool))]
        one = fit(order[:40], order[40:119], alpha=0.1, plan=PLAN)
        found = [(*one.statistic_of(image), smallest_margin(image.seen)) for image in order[119:209]]
        rates.append(np.mean([one.flags(score, margin) for score, _, margin in found]))
        p_values.append([one.p_value(score, margin) for score, _, margin in found])
        ends += [stage for _, stage, _ in found]
    # A calibration's own rate is Beta(8, 72), and 90 images measure it: standard deviations of 0.033 and 0.032.
    error = math.hypot(0.033, 0.032) / math.sqrt(len(rates))
    assert 0.1 - 3 * error < np.mean(rates) < 0.1 + 3 * error
    # Early exits are inside the promise, so many must have been taken: 70 % of clean images end at the first stage.
    assert 0.55 < np.mean(np.array(ends) == 0) < 0.85
    # p-values are those of a rank among 80: no p is more frequent than itself.
    for p in (0.05, 0.1, 0.25, 0.5, 0.8):
        share = np.mean([np.mean(np.array(values) <= p) for values in p_values])
        assert share <= p + 3 * math.hypot(math.sqrt(p * (1 - p) / 80), math.sqrt(p * (1 - p) / 90)) / math.sqrt(6)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_an_image_is_over_the_threshold_exactly_when_its_p_value_is_at_most_alpha() -> None:
    rng = np.random.default_rng(2)
    one = fitted(rng, held_back=99)
    for image in [clean(rng) for _ in range(100)] + [attacked(rng) for _ in range(10)]:
        score, margin = one.statistic_of(image)[0], smallest_margin(image.seen)
        assert one.flags(score, margin) == (one.p_value(score, margin) <= 0.1 + 1e-9)


def test_attacked_images_are_flagged() -> None:
    rng = np.random.default_rng(3)
    for traffic in ({}, {"classes": 3}, {"questions": 3}):
        one = fitted(rng, **traffic)
        scores = [one.statistic_of(attacked(rng, **traffic)) for _ in range(40)]
        assert np.mean([score > one.threshold for score, _ in scores]) > 0.9
        assert min(one.p_value(score, 9.0) for score, _ in scores) == pytest.approx(1 / 61)


def test_the_threshold_is_the_rank_that_the_promise_asks_for() -> None:
    rng = np.random.default_rng(4)
    one = fitted(rng, held_back=59)
    ranked = sorted([*one.held_back, *[math.inf] * one.low_margins])
    assert len(ranked) == 59
    assert one.threshold == ranked[math.ceil(60 * 0.9) - 1]
    assert one.images == (40, 59)


def test_a_low_margin_counts_as_the_worst_score() -> None:
    rng = np.random.default_rng(5)
    images = [clean(rng) for _ in range(160)]
    one = fit(images[:60], images[60:], alpha=0.1, plan=PLAN)
    assert one.margin_floor == sorted(smallest_margin(e.seen) for e in images[:60])[math.floor(61 * 0.02) - 1]
    low = sum(smallest_margin(e.seen) < one.margin_floor for e in images[60:])
    assert one.low_margins == low
    assert len(one.held_back) == 100 - low
    assert one.flags(0.0, one.margin_floor / 2)
    assert not one.flags(0.0, one.margin_floor)
    assert one.p_value(0.0, one.margin_floor / 2) == (1 + low) / 101
    assert one.p_value(0.0, one.margin_floor) == 1.0


def test_few_reference_images_have_no_margin_floor() -> None:
    one = fitted(np.random.default_rng(6), reference=30)
    assert (one.margin_floor, one.low_margins) == (0.0, 0)


def test_a_stricter_alpha_has_a_stricter_margin_rule() -> None:
    rng = np.random.default_rng(6)
    assert fitted(rng, alpha=0.05).margin_quantile == 0.02
    assert fitted(rng, alpha=0.5).margin_quantile == 0.02
    assert fitted(rng, alpha=0.02).margin_quantile == pytest.approx(0.008)


# The cascade ---------------------------------------------------------------------------------------------------------


def test_an_image_that_goes_through_all_stages_scores_as_if_there_were_one() -> None:
    rng = np.random.default_rng(7)
    images = [clean(rng) for _ in range(100)]
    staged = fit(images[:40], images[40:], alpha=0.1, plan=PLAN)
    full = fit(images[:40], images[40:], alpha=0.1, plan=PLAN[-1:])
    assert full.exits == ()
    seen = {0: 0, 1: 0}
    for image in [*images, *(attacked(rng) for _ in range(20))]:
        score, stage = staged.statistic_of(image)
        seen[stage] += 1
        if stage == 1:
            assert score == full.statistic_of(image)[0]
        else:
            assert score == staged.statistic_after(image, 0) <= staged.exits[0]
    assert min(seen.values()) > 20


def test_a_look_ends_early_towards_clean_only() -> None:
    rng = np.random.default_rng(8)
    for alpha in (0.05, 0.1, 0.2):
        one = fitted(rng, alpha=alpha)
        assert one.exits[0] <= one.threshold
        for image in [clean(rng) for _ in range(60)] + [attacked(rng) for _ in range(20)]:
            score, stage = one.statistic_of(image)
            if stage == 0:
                assert score <= one.threshold


def test_a_stage_uses_its_own_draws_alone() -> None:
    rng = np.random.default_rng(9)
    one = fitted(rng)
    image = clean(rng)
    first = replace(image, seen=image.seen.only(PLAN[0]))
    assert one.statistic_after(first, 0) == one.statistic_after(image, 0)
    wild = image.seen.noisy.copy()
    wild[LADDER.index((1, 0))] = 1e6
    assert one.statistic_after(replace(image, seen=replace(image.seen, noisy=wild)), 0) == one.statistic_after(image, 0)


# Heads ---------------------------------------------------------------------------------------------------------------


def test_pairs_of_classes_that_are_rare_share_a_scale() -> None:
    rng = np.random.default_rng(10)
    traffic = {"classes": 4, "shares": (0.48, 0.48, 0.04, 0.0)}
    one = fitted(rng, reference=80, **traffic)
    (scales,) = one.stages[-1].log_odds_scale
    pooled = scales[2]
    for level in range(3):
        assert len({pooled[level][y] for y in range(4)}) == 1
        assert scales[3] == pooled
        assert len({scales[0][level][y] for y in range(1, 4)}) == 3
    never = clean(rng, classes=4, shares=(0, 0, 0, 1))
    assert math.isfinite(one.statistic_of(never)[0])


def test_the_worst_question_counts() -> None:
    rng = np.random.default_rng(11)
    one = fitted(rng, questions=3)
    image, bad = clean(rng, questions=3), attacked(rng, questions=3)
    mixed = image.seen.noisy.copy()
    mixed[:, 1] = bad.seen.noisy[:, 1]
    odds = image.seen.clean.copy()
    odds[1] = bad.seen.clean[1]
    whole = Evidence(Observation(odds, mixed, LADDER), image.distances, image.guard_share)
    assert one.statistic_of(whole)[0] > one.threshold
    assert smallest_margin(whole.seen) == curve(whole.seen).margin.min()


def test_components_that_are_not_used_do_not_count() -> None:
    rng = np.random.default_rng(12)
    noise_only = fitted(rng, used=NOISE_COMPONENTS)
    assert noise_only.feature_distance is None
    assert noise_only.guard_share is None
    one = fitted(rng)
    image = replace(clean(rng), distances=np.array([1e4]))
    assert set(one.surprises(image, 1)) == set(COMPONENTS)
    assert set(noise_only.surprises(image, 1)) == set(NOISE_COMPONENTS)
    assert one.statistic_of(image)[0] > one.threshold > noise_only.statistic_of(clean(rng))[0] / 10
    assert noise_only.statistic_of(image) == noise_only.statistic_of(replace(image, distances=None))


def test_a_guard_that_votes_for_another_answer_is_surprising() -> None:
    rng = np.random.default_rng(13)
    one = fitted(rng)
    image = clean(rng)
    shares = [one.surprises(replace(image, guard_share=share), 1)["guard_share"] for share in (1.0, 0.9, 0.5, 0.0)]
    assert shares == sorted(shares)
    assert shares[-1] > one.threshold


def test_a_guard_that_was_unanimous_on_every_clean_image_can_be_calibrated() -> None:
    rng = np.random.default_rng(14)
    images = [replace(clean(rng), guard_share=1.0) for _ in range(100)]
    one = fit(images[:40], images[40:], alpha=0.1, plan=PLAN)
    assert one.surprises(images[0], 1)["guard_share"] == 0
    assert flags(one, replace(images[0], guard_share=0.0))


SURPRISE = st.floats(0, 50)


@given(SURPRISE, SURPRISE, SURPRISE)
def test_the_guards_surprise_is_added_and_the_feature_distance_counts_less(
    noise: float, far: float, votes: float
) -> None:
    found = {"probability_drop": noise / 2, "log_odds_drop": noise, "feature_distance": far, "guard_share": votes}
    assert calibration.fused(found) == max(noise, far - 3, 0) + votes
    assert calibration.fused({name: found[name] for name in ("log_odds_drop", "feature_distance")}) == max(
        noise, far - 3
    )
    assert calibration.fused({"feature_distance": 1.0}) == 0
    for name, value in found.items():
        assert calibration.fused({**found, name: value + 1}) >= calibration.fused(found)
        assert math.isnan(calibration.fused({**found, name: math.nan}))
        assert calibration.fused({**found, name: math.inf}) == math.inf


# What is no number ---------------------------------------------------------------------------------------------------


def broken(image: Evidence, where: str, value: float) -> Evidence:
    if where == "distances":
        return replace(image, distances=np.array([value]))
    if where == "guard_share":
        return replace(image, guard_share=value)
    changed = getattr(image.seen, where).copy()
    changed.flat[0] = value
    return replace(image, seen=replace(image.seen, **{where: changed}))


@pytest.mark.parametrize("where", ["clean", "noisy", "distances", "guard_share"])
def test_nan_is_never_clean(where: str) -> None:
    rng = np.random.default_rng(15)
    one = fitted(rng)
    for _ in range(5):
        image = broken(clean(rng), where, math.nan)
        score, stage = one.statistic_of(image)
        assert math.isnan(score)
        assert stage == 1  # the look did not end early
        assert flags(one, image)
        assert one.p_value(score, 9.0) == pytest.approx(1 / 61)
    assert one.flags(0.0, math.nan)


@pytest.mark.parametrize("where", ["clean", "noisy"])
@pytest.mark.parametrize("part", [0, 60])
def test_nan_among_the_clean_images_is_refused(where: str, part: int) -> None:
    rng = np.random.default_rng(16)
    images = [clean(rng) for _ in range(100)]
    images[part] = broken(images[part], where, math.nan)
    with pytest.raises(BundleError, match="NaN") as raised:
        fit(images[:40], images[40:], alpha=0.1, plan=PLAN)
    assert raised.value.advice


def test_a_network_that_never_moves_is_refused() -> None:
    still = clean(np.random.default_rng(17))
    still = replace(still, seen=replace(still.seen, noisy=np.repeat(still.seen.clean[None], len(LADDER), 0)))
    with pytest.raises(BundleError, match="does not react"):
        fit([still] * 40, [still] * 40, alpha=0.1, plan=PLAN)


# How many ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999)])
def test_images_needed_is_where_a_rank_exists(alpha: float, needed: int) -> None:
    assert calibration.images_needed(alpha) == needed
    assert math.ceil((needed + 1) * (1 - alpha) - 1e-9) <= needed
    if needed > 1:
        assert math.ceil(needed * (1 - alpha) - 1e-9) > needed - 1


@pytest.mark.parametrize(("reference", "held_back", "alpha"), [(19, 60, 0.1), (40, 8, 0.1), (40, 98, 0.01)])
def test_too_few_images_are_refused_with_the_numbers(reference: int, held_back: int, alpha: float) -> None:
    image = clean(np.random.default_rng(18))
    with pytest.raises(BundleError, match="too few") as raised:
        fit([image] * reference, [image] * held_back, alpha=alpha, plan=PLAN)
    assert f"{reference} for reference (20 needed)" in str(raised.value)
    assert f"{held_back} held back ({calibration.images_needed(alpha)} needed)" in str(raised.value)


def test_the_fewest_images_are_enough() -> None:
    one = fitted(np.random.default_rng(19), reference=20, held_back=9)
    assert one.threshold == max(one.held_back)


def test_two_parts_that_differ_in_their_margins_are_refused() -> None:
    rng = np.random.default_rng(20)
    sure = [clean(rng) for _ in range(60)]
    unsure = [replace(e, seen=replace(e.seen, clean=e.seen.clean * 1e-3)) for e in (clean(rng) for _ in range(40))]
    with pytest.raises(BundleError, match="below the margin floor"):
        fit(sure, unsure, alpha=0.1, plan=PLAN)


def test_it_comes_back_from_json_with_the_same_scores() -> None:
    rng = np.random.default_rng(21)
    one = fitted(rng, classes=3)
    again = Calibration.model_validate_json(one.model_dump_json())
    assert again == one
    for image in [clean(rng, classes=3) for _ in range(10)]:
        assert again.statistic_of(image) == one.statistic_of(image)
