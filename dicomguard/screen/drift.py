"""Whether recent p-values still look like those of the enrolment's clean images. Pure: values in, values out.

A conformal p-value is (1 + k) / (m + 1), where k of the enrolment's m held-back clean images are at least as surprising
as the image (Vovk, Gammerman and Shafer 2005, section 2.2). The m images are drawn once and then kept, so over a long
stream the p-values are uniform only up to a deviation of about 1 / sqrt(m). A one-sample test of uniformity finds that
deviation sooner or later and calls it drift. So every test here is a two-sample test of the images against the m, and
all that it needs of either is the ranks k.

Three tests, on parts of a sample that are independent of each other when nothing has changed:

- the tail: how many images are flagged (p <= alpha), against the beta-binomial law of such a count;
- the body, which is the images that are not flagged, against the held-back ones that are not: Kolmogorov and Smirnov's
  distance with its exact two-sample law, for any shape, and Mann and Whitney's rank sum, which sees a shift earlier.

A body that moved says that the images are others now, and the promise of alpha is void. A body as it was with a longer
tail says that a part of the images is unlike any clean one, which is what an attack looks like too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Of either side, below which the rank sum is no normal deviate; the distance has its exact law whatever they are.
_LEAST_BODY: Final = 30
_TESTS: Final = 3
# The newest window, which sees a large change early, and the newest few together, which see a small one.
SCALES: Final = (1, 5)

Ranks = NDArray[np.int64]


class State(StrEnum):
    """What stands about one stream. Each is shown, recorded and documented under this very word."""

    COLLECTING = "collecting"
    UNIFORM = "uniform"
    MOVED = "moved"
    MORE_ALARMS = "more_alarms"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a stream's p-values are relative to: `images` held-back clean ones (m), and the level of a flag."""

    enrolment: str
    images: int
    alpha: float

    @property
    def flagged_ranks(self) -> int:
        """An image is flagged when its rank is below this number: (1 + k) / (m + 1) <= alpha."""
        return math.floor(self.alpha * (self.images + 1) * (1 + 1e-12))


@dataclass(frozen=True, slots=True)
class Look:
    """One sample of images held against the enrolment's.

    `distance` is the Kolmogorov-Smirnov distance of the bodies in [0, 1]; `shift` the rank sum's z, positive where the
    images are more surprising than the enrolment's were. `expected_flags` is the central 99 % of the flags' law.
    """

    images: int
    flags: int
    expected_flags: tuple[int, int]
    distance: float
    shift: float
    p_shape: float
    p_shift: float
    p_tail: float

    @property
    def p(self) -> float:
        """The smallest of the three, corrected for there being three."""
        return min(1.0, _TESTS * min(self.p_shape, self.p_shift, self.p_tail))

    @property
    def p_body(self) -> float:
        """Of the body alone, corrected like `p`."""
        return min(1.0, _TESTS * min(self.p_shape, self.p_shift))

    @property
    def has_more_flags(self) -> bool:
        """True where more are flagged than the law's centre has."""
        return self.flags > self.expected_flags[1]


def ranks_of(p_values: Sequence[float], images: int) -> Ranks:
    """The ranks k in 0..m of conformal p-values. Raises ValueError for what is no p-value of so many images."""
    scaled = np.asarray(p_values, dtype=np.float64) * (images + 1) - 1
    ranks = np.rint(scaled)
    if not np.isfinite(scaled).all() or (ranks < 0).any() or (ranks > images).any():
        raise ValueError(f"not p-values against {images} images")
    return ranks.astype(np.int64)


def look(ranks: Ranks, baseline: Baseline) -> Look:
    """Hold the ranks of a sample against the baseline."""
    cut, images = baseline.flagged_ranks, len(ranks)
    flags = int((ranks < cut).sum())
    body, of_baseline = ranks[ranks >= cut] - cut, baseline.images - cut
    p_tail, expected = _tail(flags, images, cut, baseline.images)
    distance, shift, p_shape, p_shift = 0.0, 0.0, 1.0, 1.0
    if len(body) and of_baseline > 0:
        steps = distance_steps(body, of_baseline)
        distance = steps / (len(body) * of_baseline)
        p_shape = distance_p(steps, len(body), of_baseline)
    if min(len(body), of_baseline) >= _LEAST_BODY:
        shift = _rank_sum_z(body, of_baseline)
        p_shift = math.erfc(abs(shift) / math.sqrt(2))
    return Look(images, flags, expected, distance, shift, p_shape, p_shift, p_tail)


def judge(looks: Sequence[Look], level: float, before: State) -> State:
    """The state of a stream after the looks at one moment, one for each scale that has enough images.

    Raised where any look is below its share of `level`; over again where every look is well inside what nothing at all
    gives. In between it stays as it was, so that a stream at the edge does not ring at every window.
    """
    share = level / len(SCALES)
    if any(one.p_body <= share for one in looks):
        return State.MOVED
    tails = [one for one in looks if one.p <= share]
    if tails:
        # Fewer flags than clean images give is a change of the images, too: the scores have become blunter.
        return State.MORE_ALARMS if any(one.has_more_flags for one in tails) else State.MOVED
    is_over = all(one.p > 0.05 for one in looks)
    return State.UNIFORM if is_over or before is State.COLLECTING else before


def distance_steps(ranks: Ranks, images: int) -> int:
    """The Kolmogorov-Smirnov distance of a sample to the baseline, times n * m, which makes it a whole number."""
    n = len(ranks)
    here = np.bincount(ranks, minlength=images + 1)
    after = np.cumsum(here)
    of_baseline = np.arange(images + 1) * n
    return int(max(np.abs(after * images - of_baseline).max(), np.abs((after - here) * images - of_baseline).max()))


@lru_cache(maxsize=4096)
def distance_p(steps: int, n: int, m: int) -> float:
    """P(distance * n * m >= steps) for two samples of one continuous law, exactly (Hodges 1958, section 3).

    Merged in their order, two such samples are a random lattice path from (0, 0) to (n, m), all paths equally likely.
    The answer is the share of paths that come as far from the diagonal. Summed over where they first do, so that small
    answers keep their digits.
    """
    if steps <= 0:
        return 1.0
    i = np.arange(n + 1)
    inside = np.zeros(n + 1)
    inside[0] = 1.0
    far = 0.0
    for step in range(1, n + m + 1):
        left = n + m - step + 1
        to_sample = inside * (n - i) / left
        inside *= (m - (step - 1 - i)) / left
        inside[1:] += to_sample[:-1]
        out = np.abs(i * m - (step - i) * n) >= steps
        far += float(inside[out].sum())
        inside[out] = 0.0
    return min(1.0, far)


def _rank_sum_z(ranks: Ranks, images: int) -> float:
    """Mann and Whitney's U as a normal deviate; positive where the ranks are low, which is where surprise is high."""
    n = len(ranks)
    deviation = math.sqrt(n * images * (n + images + 1) / 12)
    return (n * images / 2 - float(ranks.sum())) / deviation


def _tail(flags: int, n: int, cut: int, images: int) -> tuple[float, tuple[int, int]]:
    """Two-sided p-value of a number of flags among n, and the central 99 % of its law.

    The chance of a flag, given the held-back images, is Beta(cut, images + 1 - cut): so the count is beta-binomial.
    """
    if cut < 1:
        return 1.0, (0, 0)  # alpha is too small for so few images: nothing can be flagged, and so much is known anyway
    mass = np.array(_count_law(n, cut, images))
    p = 2 * min(float(mass[: flags + 1].sum()), float(mass[flags:].sum()))
    return min(1.0, p), expected_count(n, cut, images)


def expected_count(n: int, ranks: int, images: int, outside: float = 0.01) -> tuple[int, int]:
    """How many of n images fall on so many of the images + 1 ranks, but for a share `outside`, if nothing changed."""
    below = np.cumsum(_count_law(n, ranks, images))
    return int(np.searchsorted(below, outside / 2)), int(np.searchsorted(below, 1 - outside / 2))


@lru_cache(maxsize=256)
def _count_law(n: int, cut: int, images: int) -> tuple[float, ...]:
    rest = images + 1 - cut

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return tuple(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(x + 1)
            - math.lgamma(n - x + 1)
            + log_beta(x + cut, n - x + rest)
            - log_beta(cut, rest)
        )
        for x in range(n + 1)
    )
