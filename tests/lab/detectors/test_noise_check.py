from __future__ import annotations

import numpy as np
import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.noise_check import Aggregate, Fixed, FixedLevel, Kind, NoiseCheck, Reading, Theta, drops
from dicomguard.scoring.consistency import Observation, curve
from tests.lab.detectors.made import SETTINGS, sight


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def observed(clean: float, noisy: list[float]) -> Observation:
    """One level, four draws; probabilities of the second class."""
    odds = [[[0.0, logit(p)]] for p in [clean, *noisy]]
    return Observation(np.array(odds[0]), np.array(odds[1:]), tuple((0, r) for r in range(len(noisy))))


def test_the_score_by_hand() -> None:
    seen = observed(0.9, [0.85, 0.8, 0.6, 0.1])
    of = {
        (kind, aggregate): float(drops(seen, Reading(kind, aggregate))[0, 0])
        for kind in Kind
        for aggregate in Aggregate
    }
    assert of[Kind.SIGNED, Aggregate.MEDIAN] == pytest.approx(0.2)
    assert of[Kind.SIGNED, Aggregate.MEAN] == pytest.approx(0.3125)
    assert of[Kind.SIGNED, Aggregate.LOWER_MEDIAN] == pytest.approx(0.1)
    assert of[Kind.RAW, Aggregate.MEDIAN] == pytest.approx(0.2)
    # The answer is the first class: towards it is negative, and raw still looks at the second.
    other = observed(0.2, [0.1, 0.1, 0.05, 0.1])
    assert drops(other)[0, 0] == pytest.approx(-0.1)
    assert drops(other, Reading(Kind.ABS))[0, 0] == pytest.approx(0.1)
    assert drops(other, Reading(Kind.RAW))[0, 0] == pytest.approx(0.1)


def test_the_signed_median_is_the_scorers_probability_drop() -> None:
    for one in sight(1, 10).evidence:
        assert np.allclose(drops(one.seen), curve(one.seen).probability_drops)


def test_a_raw_score_needs_two_classes() -> None:
    seen = Observation(np.zeros((1, 3)), np.zeros((1, 1, 3)), ((0, 0),))
    assert drops(seen).shape == (1, 1)
    with pytest.raises(DicomguardError, match="two classes, not 3"):
        drops(seen, Reading(Kind.RAW))


def test_the_level_is_the_one_with_the_best_youden_index() -> None:
    check = NoiseCheck()
    clean, attacked = sight(2, 80, margin=3), sight(3, 40, margin=3, drop=8)
    check.fit(clean, attacked)
    values = np.array([drops(one.seen)[0] for one in clean.evidence])
    assert np.allclose(check.thetas, 2 * values.std(0, ddof=1))
    hits = [
        (np.array([drops(one.seen)[0, level] for one in attacked.evidence]) > check.thetas[level]).mean()
        - (values[:, level] > check.thetas[level]).mean()
        for level in range(3)
    ]
    assert check.level == int(np.argmax(hits))
    assert check.theta == check.thetas[check.level]
    assert check.flags(attacked).mean() > 0.8
    assert check.flags(sight(4, 80, margin=3)).mean() < 0.1
    assert np.array_equal(check.flags(attacked), check.scores(attacked) > check.theta)


def test_a_given_level_is_kept_and_needs_no_attacked_files() -> None:
    check = NoiseCheck(level=1)
    check.fit(sight(2, 40))
    assert check.level == 1
    assert "level 2" in check.name
    above = NoiseCheck(Reading(theta=Theta.MEAN_PLUS), level=1)
    above.fit(sight(2, 40))
    values = [drops(one.seen)[0, 1] for one in sight(2, 40).evidence]
    assert above.theta == pytest.approx(check.theta + np.mean(values))
    names = {
        NoiseCheck(Reading(kind, aggregate, theta)).name for kind in Kind for aggregate in Aggregate for theta in Theta
    }
    assert len(names) == 18


def test_what_it_cannot_be_fitted_on() -> None:
    with pytest.raises(DicomguardError, match="needs 10 clean files"):
        NoiseCheck(level=0).fit(sight(1, 9))
    with pytest.raises(DicomguardError, match="chooses its noise level"):
        NoiseCheck().fit(sight(1, 20))
    with pytest.raises(DicomguardError, match="no noise level 9"):
        NoiseCheck(level=8).fit(sight(1, 20))
    broken = sight(1, 20)
    broken.evidence[3].seen.noisy[0] = np.nan
    with pytest.raises(DicomguardError, match="no probability"):
        NoiseCheck(level=0).fit(broken)
    fitted = NoiseCheck(level=0)
    fitted.fit(sight(1, 20))
    assert np.isinf(fitted.scores(broken)).tolist() == [i == 3 for i in range(20)]
    assert len(fitted.scores(broken.only([]))) == 0


@pytest.mark.parametrize("level", range(len(SETTINGS.levels)))
def test_fixed_levels_are_the_scorers_numbers(level: int) -> None:
    some = sight(5, 8)
    seen = [curve(one.seen) for one in some.evidence]
    assert np.allclose(
        FixedLevel(Fixed.PROBABILITY, level).scores(some), [one.probability_drops[0, level] for one in seen]
    )
    assert np.allclose(
        FixedLevel(Fixed.LOGIT, level).scores(some), [one.log_odds_drops[0, level].max() for one in seen]
    )
    assert np.allclose(FixedLevel(Fixed.MARGIN, level).scores(some), [-one.noisy_margins[0, level] for one in seen])


def test_the_smallest_noisy_margin_is_over_all_levels() -> None:
    some = sight(5, 8)
    found = FixedLevel(Fixed.MARGIN)
    found.fit(some)
    assert np.allclose(found.scores(some), [-curve(one.seen).noisy_margins.min() for one in some.evidence])
    with pytest.raises(ValueError, match="needs a level"):
        FixedLevel(Fixed.LOGIT)
    with pytest.raises(DicomguardError, match="not looked at"):
        FixedLevel(Fixed.LOGIT, 7).fit(some)


def test_confident_attacks_show_in_the_logit_and_not_in_the_probability() -> None:
    clean, attacked = sight(6, 60, margin=5), sight(7, 30, margin=25, drop=8)
    bar = np.sort(FixedLevel(Fixed.PROBABILITY, 2).scores(clean))[-3]
    assert (FixedLevel(Fixed.PROBABILITY, 2).scores(attacked) > bar).mean() < 0.2
    bar = np.sort(FixedLevel(Fixed.LOGIT, 2).scores(clean))[-3]
    assert (FixedLevel(Fixed.LOGIT, 2).scores(attacked) > bar).mean() > 0.9
