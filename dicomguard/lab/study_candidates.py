"""Statistics of a study that were measured against each other before `scoring.study_test.score` was chosen.

Each takes the surprises s of a study, largest first, and their p-values by a clean law fitted elsewhere, smallest
first, and gives one number, larger for more suspicious. Those in `MONOTONE` never fall when a surprise grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dicomguard.scoring.study_test import Tail

Values = NDArray[np.float64]
Candidate = Callable[[Values, Values], float]


class Law:
    """The clean law of one image's surprise: the rank among clean images (each study weighs the same), then a tail."""

    def __init__(self, studies: list[Values]) -> None:
        values = np.concatenate(studies)
        weights = np.concatenate([np.full(len(study), 1 / len(study)) for study in studies])
        self.tail = Tail.fit(values, weights)
        order = np.argsort(values)
        self._values = values[order]
        self._above = np.cumsum((weights[order] / weights.sum())[::-1])[::-1]

    def p_values(self, surprises: Values) -> Values:
        """P(S >= s) for each of `surprises`, never 0 or 1."""
        p: Values = np.interp(surprises, self._values, self._above)
        beyond = surprises > self.tail.start
        p[beyond] = [self.tail.p_value(float(s)) for s in surprises[beyond]]
        return np.asarray(np.clip(p, 1e-300, 1 - 1e-9), np.float64)


def kth(k: int) -> Candidate:
    """The k-th largest surprise (Bonferroni for k = 1, of which every threshold by size is a version)."""
    return lambda s, _p: float(s[min(k, len(s)) - 1])


def simes(_s: Values, p: Values) -> float:
    """Simes 1986: the smallest of n p_(i) / i, as -log."""
    return float(-np.min(np.log(p) + math.log(len(p)) - np.log(np.arange(1, len(p) + 1))))


def higher_criticism(*, small_sample: bool) -> Candidate:
    """Donoho, Jin 2004: max over i <= n / 2 of sqrt(n) (i/n - p) / sqrt(p (1 - p)); HC+ leaves p_(i) < 1/n out."""

    def statistic(_s: Values, p: Values) -> float:
        n = len(p)
        half = max(n // 2, 1)
        i, q = np.arange(1, half + 1), p[:half]
        z = math.sqrt(n) * (i / n - q) / np.sqrt(q * (1 - q))
        if small_sample:
            z = np.where(q >= 1 / n, z, -np.inf)
            if not np.isfinite(z).any():
                return float(math.sqrt(n) * (half / n - 1 / n) / math.sqrt(1 / n))
        return float(z.max())

    return statistic


def berk_jones(_s: Values, p: Values) -> float:
    """Berk, Jones 1979: max over i <= n / 2 with p < i/n of n KL(i/n, p)."""
    n = len(p)
    half = max(n // 2, 1)
    share, q = np.arange(1, half + 1) / n, p[:half]
    rest = np.where(share < 1, (1 - share) * np.log(np.maximum(1 - share, 1e-12) / (1 - q)), 0.0)
    divergence = share * np.log(share / q) + rest
    return float(n * np.max(np.where(q < share, divergence, 0.0)))


def tail_sum(start: float, cap: float = math.inf) -> Candidate:
    """Sum of what surprises exceed `start` by (at most `cap` each); the deficit of the largest where none does."""

    def statistic(s: Values, _p: Values) -> float:
        excess = np.minimum(s - start, cap)
        return float(excess[excess > 0].sum()) if excess[0] > 0 else float(excess[0])

    return statistic


def root_tail_sum(start: float) -> Candidate:
    """Sum of the square roots of what surprises exceed `start` by: many weigh more than one, and one still counts."""

    def statistic(s: Values, _p: Values) -> float:
        excess = s - start
        return float(np.sqrt(excess[excess > 0]).sum()) if excess[0] > 0 else float(excess[0])

    return statistic


def largest_few(power: float) -> Candidate:
    """Sum of the ceil(n^power) largest surprises."""
    return lambda s, _p: float(s[: math.ceil(len(s) ** power)].sum())


def sum_of_largest(count: int) -> Candidate:
    """Sum of the `count` largest surprises."""
    return lambda s, _p: float(s[:count].sum())


def growing_tail_sum(slope: float, offset: float) -> Candidate:
    """A tail sum whose start grows with the size of the study: slope log n + offset."""
    return lambda s, p: tail_sum(slope * math.log(len(s)) + offset)(s, p)


def kth_by_size(power: float) -> Candidate:
    """The k-th largest surprise with k = ceil(n^power / 2)."""
    return lambda s, _p: float(s[math.ceil(len(s) ** power / 2) - 1])


def fitted_tail_sum(share: float) -> Candidate:
    """Sum of -log(p / share) over p < share: exceedances in units of the fitted tail."""

    def statistic(_s: Values, p: Values) -> float:
        excess = math.log(share) - np.log(p)
        return float(excess[excess > 0].sum()) if excess[0] > 0 else float(excess[0])

    return statistic


def tempered(temperature: float) -> Candidate:
    """T log mean exp(s / T); near T = 1 the harmonic mean p-value (Wilson 2019)."""

    def statistic(s: Values, _p: Values) -> float:
        return float(s[0] + temperature * math.log(np.mean(np.exp((s - s[0]) / temperature))))

    return statistic


def centred_maximum(s: Values, _p: Values) -> float:
    """The largest surprise less the study's own upper quartile. Not monotone: an attacker could raise the rest."""
    return float(s[0] - np.quantile(s, 0.75))


CANDIDATES: dict[str, Candidate] = {
    "maximum": kth(1),
    "2nd largest": kth(2),
    "3rd largest": kth(3),
    "5th largest": kth(5),
    "Simes": simes,
    "higher criticism": higher_criticism(small_sample=False),
    "higher criticism +": higher_criticism(small_sample=True),
    "Berk-Jones": berk_jones,
    "tail sum over 3": tail_sum(3),
    "tail sum over 5": tail_sum(5),
    "tail sum over 4": tail_sum(4),
    "tail sum over 3, capped": tail_sum(3, 6),
    "root tail sum over 2": root_tail_sum(2),
    "root tail sum over 3": root_tail_sum(3),
    "root tail sum over 4": root_tail_sum(4),
    "root tail sum over 5": root_tail_sum(5),
    "tail sum over log n": growing_tail_sum(1, 0),
    "tail sum over log n + 1": growing_tail_sum(1, 1),
    "tail sum over log n + 2": growing_tail_sum(1, 2),
    "tail sum over 1.5 log n - 2": growing_tail_sum(1.5, -2),
    "tail sum over 2 log n - 4": growing_tail_sum(2, -4),
    "sum of 2 largest": sum_of_largest(2),
    "sum of 3 largest": sum_of_largest(3),
    "sum of n^.3 largest": largest_few(0.3),
    "sum of n^.4 largest": largest_few(0.4),
    "k-th largest, k = n^.4 / 2": kth_by_size(0.4),
    "fitted tail sum, .02": fitted_tail_sum(0.02),
    "fitted tail sum, .002": fitted_tail_sum(0.002),
    "tempered, T = 1": tempered(1),
    "tempered, T = 2": tempered(2),
    "tempered, T = 4": tempered(4),
    "centred maximum": centred_maximum,
}
# Leaving out p < 1/n is just what makes HC+ lose an image that grows more surprising.
MONOTONE = frozenset(CANDIDATES) - {"higher criticism +", "centred maximum"}
