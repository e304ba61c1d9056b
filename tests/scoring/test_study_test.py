import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicomguard.errors import BundleError
from dicomguard.scoring.study_test import (
    BANDS,
    StudyCalibration,
    Tail,
    conformal_threshold,
    score,
    studies_needed,
)

Values = NDArray[np.float64]


def clean(rng: np.random.Generator, images: int) -> Values:
    """A study whose images share half of their surprise's variance."""
    shared, own = rng.standard_normal(), rng.standard_normal(images)
    return np.exp(0.5 * (shared + own))


def many(seed: int, counts: dict[int, int]) -> list[Values]:
    rng = np.random.default_rng(seed)
    return [clean(rng, images) for images, count in counts.items() for _ in range(count)]


@pytest.fixture(scope="module")
def calibrated() -> StudyCalibration:
    return StudyCalibration.fit(many(1, {1: 60, 10: 60, 100: 60, 300: 5}), alpha=0.05)


surprise_lists = st.lists(st.floats(0, 60), min_size=1, max_size=30)


def test_one_image_is_judged_by_exactly_the_image_s_own_conformal_test() -> None:
    images = np.random.default_rng(2).exponential(size=99)
    fitted = StudyCalibration.fit([[value] for value in images], alpha=0.05)
    threshold = float(np.sort(images)[95 - 1])  # ceil(100 * .95)
    assert fitted.bands[0].threshold == threshold
    assert not fitted.judge([threshold]).flagged
    above = fitted.judge([np.nextafter(threshold, 9)])
    assert above.flagged
    assert above.has_promise
    assert above.score == np.nextafter(threshold, 9)
    assert above.p_value == pytest.approx(0.05)
    assert above.suspects == (0,)


def test_false_holds_of_fresh_clean_studies_stay_at_alpha_in_every_band_with_a_promise() -> None:
    held = {1: 0, 10: 0, 100: 0}
    for seed in range(40):
        fitted = StudyCalibration.fit(many(seed, {1: 39, 10: 39, 100: 39}), alpha=0.1)
        rng = np.random.default_rng(1000 + seed)
        for images in held:
            held[images] += sum(fitted.judge(clean(rng, images)).flagged for _ in range(20))
    # The law over calibrations is beta-binomial with mean .1 * 800 = 80 and a standard deviation of about 9.
    assert all(50 < count < 110 for count in held.values()), held


@given(surprise_lists, st.integers(0, 29), st.floats(0, 40))
def test_a_more_surprising_image_never_makes_a_study_less_suspicious(
    values: list[float], where: int, more: float
) -> None:
    raised = np.array(values)
    raised[where % len(values)] += more
    assert score(raised) >= score(np.array(values)) - 1e-9


@given(surprise_lists, st.randoms())
def test_the_order_of_images_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert score(np.array(shuffled)) == pytest.approx(score(np.array(values)), abs=1e-9)


@given(surprise_lists)
def test_the_score_multiplies_the_adjusted_p_values_below_one(values: list[float]) -> None:
    adjusted = [len(values) * math.exp(-value) for value in values]
    below = [p for p in adjusted if p < 1]
    expected = -sum(map(math.log, below)) if below else -math.log(min(adjusted))
    assert score(np.array(values)) == pytest.approx(expected, abs=1e-6)


def test_no_promise_where_a_band_has_too_few_studies(calibrated: StudyCalibration) -> None:
    assert [band.studies for band in calibrated.bands] == [60, 60, 60, 5]
    assert [band.threshold is not None for band in calibrated.bands] == [True, True, True, False]
    ordinary = calibrated.judge(np.full(300, 0.5))
    assert (ordinary.has_promise, ordinary.flagged, ordinary.band) == (False, False, (201, 2000))
    assert ordinary.beyond
    attacked = np.full(300, 0.5)
    attacked[[7, 250]] = 60.0, 90.0
    found = calibrated.judge(attacked)
    assert (found.has_promise, found.beyond, found.flagged, found.suspects) == (False, True, True, (250, 7))
    assert found.p_value < 0.05 / 10


def test_the_promise_ends_with_the_largest_calibrated_study(calibrated: StudyCalibration) -> None:
    # The band reaches from 21 to 200, its largest study has 100.
    assert calibrated.judge(np.full(100, 0.5)).has_promise
    assert not calibrated.judge(np.full(101, 0.5)).has_promise
    # Studies of 11 to 20 images were none among the clean ones.
    assert calibrated.promised() == ((1, 1), (2, 10), (21, 100))
    assert StudyCalibration.fit(many(3, {1: 5, 10: 40}), alpha=0.05).promised() == ((2, 10),)
    assert StudyCalibration.fit(many(3, {1: 40}), alpha=0.05).promised() == ((1, 1),)
    full = StudyCalibration.fit(many(3, {1: 40, 20: 40, 150: 40}), alpha=0.05)
    assert full.promised() == ((1, 1), (2, 20), (21, 150))


def test_a_study_beyond_every_band_is_judged_without_a_promise(calibrated: StudyCalibration) -> None:
    found = calibrated.judge(np.full(3000, 0.5))
    assert (found.band, found.has_promise, found.beyond, found.flagged) == (None, False, True, False)


# Sizes that the clean studies cannot speak for -----------------------------------------------------------------------


def test_a_size_is_beyond_where_alpha_over_n_is_less_than_any_clean_study_can_show() -> None:
    values = np.random.default_rng(2).exponential(size=366)
    fitted = StudyCalibration.fit([[value] for value in values], alpha=0.05)
    assert fitted.largest_shown == 18  # .05 / 18 = 1 / 360 is more than 1 / 367, and .05 / 19 = 1 / 380 is not
    assert [fitted.judge(np.full(n, 0.5)).beyond for n in (1, 2, 18, 19, 300)] == [False, False, False, True, True]
    assert fitted.judged() == ((1, 18),)
    exact = StudyCalibration.fit([[value] for value in values[:199]], alpha=0.1)
    assert exact.largest_shown == 20  # .1 / 20 = 1 / 200 is just what 199 can show
    few = StudyCalibration.fit([[value] for value in values[:18]], alpha=0.05)
    assert (few.largest_shown, few.judged()) == (0, ())
    assert few.judge([0.5]).beyond


def test_images_of_one_study_are_one_look_and_infinite_ones_none() -> None:
    slices = StudyCalibration.fit(many(5, {300: 18}), alpha=0.1)
    assert slices.largest_shown == 1
    infinite = StudyCalibration.fit([*many(5, {1: 18}), *[[math.inf]] * 40], alpha=0.1)
    assert infinite.largest_shown == 1


def test_a_promise_makes_a_size_known_however_large(calibrated: StudyCalibration) -> None:
    assert calibrated.largest_shown == 9  # 185 studies
    assert calibrated.judged() == ((1, 10), (21, 100))
    assert [calibrated.judge(np.full(n, 0.5)).beyond for n in (10, 11, 20, 21, 100, 101)] == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]


SINGLES = StudyCalibration.fit([[value] for value in np.random.default_rng(6).exponential(size=99)], alpha=0.05)


@given(st.lists(st.floats(0, 60), min_size=1, max_size=6), st.integers(0, 400), st.floats(0, 12))
@settings(max_examples=300)
def test_padding_never_clears_what_the_largest_known_size_would_flag(
    images: list[float], fillers: int, filler: float
) -> None:
    """However many images come beside it: there is one height above which no image is ever cleared."""
    found = SINGLES.judge([*images, *[filler] * fillers])
    size = len(images) + fillers
    assert found.beyond == (size > SINGLES.largest_shown)
    is_cleared = not found.flagged and not found.beyond
    if is_cleared:
        assert max(images) <= SINGLES.tail.quantile(SINGLES.alpha / SINGLES.largest_shown)
    # What is flagged is flagged as ever, whether or not the size is known.
    if size > 1:
        height = max([*images, *[filler] * min(fillers, 1)])
        assert found.flagged == (height > SINGLES.tail.quantile(SINGLES.alpha / size))


def test_padding_hides_an_image_from_the_extrapolated_tail() -> None:
    """Why sizes are held at all: the same image, flagged alone, passes among enough clean ones."""
    image = SINGLES.tail.quantile(0.05 / 20)
    alone, padded = SINGLES.judge([image]), SINGLES.judge([image, *[0.5] * 300])
    assert (alone.flagged, alone.beyond) == (True, False)
    assert (padded.flagged, padded.beyond) == (False, True)


@pytest.mark.parametrize("images", [1, 10, 100, 300, 3000])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "infinite"])
def test_a_number_that_is_none_never_passes(calibrated: StudyCalibration, images: int, value: float) -> None:
    study = np.full(images, 0.5)
    study[-1] = value
    found = calibrated.judge(study)
    assert found.flagged
    assert images - 1 in found.suspects


def test_suspects_are_the_fewest_images_without_which_the_study_passes(calibrated: StudyCalibration) -> None:
    study = clean(np.random.default_rng(8), 100)
    study[[3, 40, 77]] = 30.0, 50.0, 40.0
    found = calibrated.judge(study)
    assert found.flagged
    assert found.suspects == (40, 77, 3)
    study[list(found.suspects)] = 0.0
    assert not calibrated.judge(study).flagged


def test_an_unflagged_study_has_no_suspects_and_a_p_value_above_alpha(calibrated: StudyCalibration) -> None:
    for seed in range(30):
        found = calibrated.judge(clean(np.random.default_rng(seed), 10))
        assert found.flagged == (found.p_value <= 0.05)
        assert bool(found.suspects) == found.flagged


def test_it_survives_json(calibrated: StudyCalibration) -> None:
    again = StudyCalibration.model_validate_json(calibrated.model_dump_json())
    assert again == calibrated
    assert "NaN" not in json.dumps(again.model_dump(mode="json"))


def test_infinitely_surprising_clean_studies_raise_the_threshold_and_never_become_it() -> None:
    studies = [[value] for value in np.linspace(0.1, 4, 38)]
    one = StudyCalibration.fit([*studies, [math.inf]], alpha=0.05)
    assert one.bands[0].threshold == pytest.approx(4.0)
    assert one.judge([4.1]).p_value == pytest.approx(2 / 40)
    three = StudyCalibration.fit([*studies, *[[math.inf]] * 3], alpha=0.05)
    assert three.bands[0].threshold is None
    assert three.promised() == ()


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1)])
def test_how_many_studies_a_promise_needs(alpha: float, needed: int) -> None:
    assert studies_needed(alpha) == needed
    assert conformal_threshold(np.arange(needed, dtype=float), alpha) == needed - 1
    assert conformal_threshold(np.arange(needed - 1, dtype=float), alpha) is None


@pytest.mark.parametrize("shape", [0.0, 0.25], ids=["exponential", "heavy"])
def test_the_tail_extrapolates_a_known_law(shape: float) -> None:
    uniform = np.random.default_rng(4).uniform(size=20000)
    values = -np.log(uniform) if shape == 0 else (uniform**-shape - 1) / shape
    tail = Tail.fit(values, np.ones(len(values)))
    for p in (1e-2, 1e-3, 1e-4):
        true = -math.log(p) if shape == 0 else (p**-shape - 1) / shape
        assert 0.4 < tail.p_value(true) / p < 2.5
        assert tail.quantile(p) == pytest.approx(true, rel=0.35)
        assert tail.p_value(tail.quantile(p)) == pytest.approx(p, rel=1e-6)
    assert tail.p_value(math.inf) == 0


@given(st.lists(st.floats(0, 50), min_size=2, max_size=60))
@settings(max_examples=60)
def test_any_clean_images_give_a_usable_tail(values: list[float]) -> None:
    tail = Tail.fit(np.array(values), np.ones(len(values)))
    assert 0 < tail.share <= 1
    assert tail.p_value(tail.start) == pytest.approx(tail.share)
    assert tail.p_value(1e9) < 1e-6
    assert tail.p_value(5) >= tail.p_value(6)


def test_what_cannot_be_calibrated_or_judged_is_refused(calibrated: StudyCalibration) -> None:
    with pytest.raises(BundleError, match="NaN"):
        StudyCalibration.fit([[1.0], [math.nan]], alpha=0.05)
    with pytest.raises(BundleError, match="clean images"):
        StudyCalibration.fit([], alpha=0.05)
    with pytest.raises(ValueError, match="at least one image"):
        calibrated.judge([])
    for bands in ([(2, 5)], [(1, 3), (3, 5)], [(1, 3), (5, 6)], [(1, 0)]):
        with pytest.raises(ValueError, match="follow one another"):
            StudyCalibration.fit([[1.0], [2.0]], alpha=0.05, bands=bands)
    assert BANDS[0] == (1, 1)
