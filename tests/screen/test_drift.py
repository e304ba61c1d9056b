"""The drift watch's tests: exact laws, blind to what the held-back images are, two kinds of change told apart."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dicomguard.screen import drift
from dicomguard.screen.drift import SCALES, Baseline, State

CLEAR = drift.Look(200, 10, (2, 22), 0.05, 0.1, 0.8, 0.9, 0.7)


def ranks(u, m, random):
    return np.searchsorted(np.sort(random.random(m)), u)


class TestLaws:
    @pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 5), (30, 40), (64, 91)])
    def test_the_distance_and_its_law_are_those_of_two_samples(self, n, m):
        random = np.random.default_rng([n, m])
        for power in (1.0, 0.8, 0.3):
            ours, theirs = random.random(n) ** power, random.random(m)
            found = np.searchsorted(np.sort(theirs), ours)
            known = stats.ks_2samp(ours, theirs, method="exact")
            steps = drift.distance_steps(found, m)
            assert steps / (n * m) == pytest.approx(known.statistic)
            assert drift.distance_p(steps, n, m) == pytest.approx(known.pvalue, rel=1e-9)

    def test_small_answers_keep_their_digits(self):
        # The whole lattice's corner: of all C(n + m, n) paths, two go along its edges.
        assert drift.distance_p(40 * 50, 40, 50) == pytest.approx(2 / math.comb(90, 40), rel=1e-9)

    def test_the_rank_sum_and_the_tail_are_the_textbooks(self):
        random = np.random.default_rng(1)
        ours, theirs = random.random(200) ** 1.2, random.random(300)
        found = np.searchsorted(np.sort(theirs), ours)
        baseline = Baseline("e", 300, 0.05)
        look = drift.look(found, baseline)
        cut = baseline.flagged_ranks
        limit = np.sort(theirs)[cut - 1]
        known = stats.mannwhitneyu(
            ours[ours > limit], theirs[theirs > limit], use_continuity=False, method="asymptotic"
        )
        assert look.p_shift == pytest.approx(known.pvalue)
        law = stats.betabinom(200, cut, 301 - cut)
        assert look.flags == (ours < limit).sum() > 0
        assert look.p_tail == pytest.approx(min(1, 2 * min(law.cdf(look.flags), law.sf(look.flags - 1))), rel=1e-6)
        assert look.expected_flags == tuple(law.interval(0.99))

    @pytest.mark.parametrize("m", [19, 25, 30, 31])
    def test_of_few_held_back_images_a_large_change_is_seen_and_none_is_made_up(self, m):
        baseline = Baseline("e", m, 0.05)
        random = np.random.default_rng(m)
        # All less surprising than nine of ten: nothing is flagged, and the promise is void.
        changed = drift.look(ranks(0.9 + 0.1 * random.random(200), m, random), baseline)
        assert drift.judge([changed], 1e-4, State.UNIFORM) is State.MOVED
        alike = [drift.look(ranks(random.random(200), m, random), baseline) for _ in range(400)]
        assert sum(look.p_body <= 0.05 for look in alike) <= 30  # 20 expected at most; 30 is beyond its 98 %

    @given(st.integers(1, 400), st.integers(1, 1000), st.floats(0.001, 0.2), st.integers(0, 2**32 - 1))
    def test_any_sample_gives_probabilities(self, n, m, alpha, seed):
        random = np.random.default_rng(seed)
        found = ranks(random.random(n) ** random.uniform(0.1, 5), m, random)
        look = drift.look(found, Baseline("e", m, alpha))
        assert all(0 <= p <= 1 for p in (look.p, look.p_body, look.p_shape, look.p_shift, look.p_tail))
        assert look.p <= look.p_body
        assert 0 <= look.expected_flags[0] <= look.expected_flags[1] <= n
        again = drift.ranks_of((found + 1) / (m + 1), m)
        assert (again == found).all()

    @pytest.mark.parametrize("p", [0.0, -0.1, 1.1, math.nan, math.inf])
    def test_what_is_no_p_value_is_refused(self, p):
        with pytest.raises(ValueError, match="p-values"):
            drift.ranks_of([0.5, p], 100)

    def test_an_alpha_that_nothing_can_reach_has_no_tail(self):
        look = drift.look(np.arange(100), Baseline("e", 99, 0.005))
        assert (look.flags, look.expected_flags, look.p_tail) == (0, (0, 0), 1.0)


class TestStates:
    @staticmethod
    def look(**changes):
        import dataclasses

        return dataclasses.replace(CLEAR, **changes)

    def test_a_change_below_the_flags_is_told_from_more_flags(self):
        assert drift.judge([CLEAR], 1e-4, State.COLLECTING) is State.UNIFORM
        assert drift.judge([self.look(p_shape=1e-9), CLEAR], 1e-4, State.UNIFORM) is State.MOVED
        assert drift.judge([CLEAR, self.look(p_shift=1e-9)], 1e-4, State.UNIFORM) is State.MOVED
        assert drift.judge([self.look(p_tail=1e-9, flags=60)], 1e-4, State.UNIFORM) is State.MORE_ALARMS
        both = self.look(p_tail=1e-9, flags=60, p_shape=1e-9)
        assert drift.judge([both], 1e-4, State.UNIFORM) is State.MOVED
        assert drift.judge([self.look(p_tail=1e-9, flags=0)], 1e-4, State.UNIFORM) is State.MOVED

    def test_in_between_it_stays_as_it_was(self):
        unsure = self.look(p_shape=0.01)
        for before in (State.UNIFORM, State.MOVED, State.MORE_ALARMS):
            assert drift.judge([unsure, CLEAR], 1e-4, before) is before
        assert drift.judge([unsure], 1e-4, State.COLLECTING) is State.UNIFORM
        assert drift.judge([CLEAR, CLEAR], 1e-4, State.MOVED) is State.UNIFORM

    def test_the_level_is_shared_by_all_tests_and_scales(self):
        share = 1e-4 / len(SCALES) / 3
        assert drift.judge([self.look(p_shape=share * 0.99)], 1e-4, State.UNIFORM) is State.MOVED
        assert drift.judge([self.look(p_shape=share * 1.01)], 1e-4, State.UNIFORM) is State.UNIFORM


class TestStreams:
    def test_held_back_images_that_are_unlucky_do_not_ring_for_ever(self):
        """Forty sets of 270: a one-sample test of the whole stream calls nearly each of them drift."""
        random = np.random.default_rng(5)
        naive, rung = 0, []
        for _ in range(40):
            found = ranks(random.random(20_000), 270, random)
            naive += stats.kstest((found + 1) / 271, "uniform").pvalue < 1e-3
            looks = [drift.look(found[start : start + 300], Baseline("e", 270, 0.05)) for start in range(0, 2400, 300)]
            rung += [look.p < 1e-2 for look in looks]
        assert len(rung) == 320
        assert naive > 20
        assert sum(rung) < 10

    @pytest.mark.parametrize(
        ("change", "state"),
        [
            (lambda u, r: u * math.exp(-0.5), State.MOVED),
            (lambda u, r: u**0.5, State.MOVED),
            (lambda u, r: np.where(r.random(u.shape) < 0.25, 1e-4 * u, u), State.MORE_ALARMS),
        ],
        ids=["a scanner's change", "less surprise", "an attack"],
    )
    def test_named_changes_are_found_in_one_long_window(self, change, state):
        random = np.random.default_rng(6)
        for _ in range(5):
            found = ranks(change(random.random(1000), random), 700, random)
            assert drift.judge([drift.look(found, Baseline("e", 700, 0.05))], 1e-4, State.UNIFORM) is state
