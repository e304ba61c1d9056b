"""The noise draws of an enrolled bundle, stage by stage: each goes on with the images that the one before did not end.

Exits lead towards clean only, and the enrolment is calibrated on the cascade as a whole. A score so close to a bound
that rounding might have turned it is made again on the canonical path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomguard.scoring.calibration import Calibration, Evidence
from dicomguard.scoring.consistency import Draw, Observation


@dataclass(frozen=True, slots=True)
class Reached:
    """How far one image came: what was seen of it, its score after `stage`, and the forward passes that it took."""

    evidence: Evidence
    statistic: float
    stage: int
    passes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """The model's exact answer to one image, log-odds (questions, classes), and its feature distances (questions,)."""

    log_odds: NDArray[np.float64]
    distances: NDArray[np.float64] | None


Noisy = Callable[[Sequence[int], Sequence[Draw], bool], NDArray[np.float64]]
"""`noisy(places, draws, canonical)`: log-odds (n, D, questions, classes) of the images at those places of the batch."""

Exact = Callable[[Sequence[int]], Sequence[Asked]]
"""The canonical path's answers to the images at those places."""


class Cascade:
    """One batch on its way through the stages of a calibration."""

    def __init__(self, calibration: Calibration, noisy: Noisy, exact: Exact, tolerance: float | None) -> None:
        """`tolerance`: how far the fast path's scores may be off; None where there is one path only."""
        self._calibration = calibration
        self._noisy = noisy
        self._exact = exact
        self._tolerance = tolerance

    def run(self, evidence: Sequence[Evidence]) -> list[Reached]:
        """Start from what was seen without noise, one forward pass for each image of the batch."""
        found = [Reached(one, math.nan, 0, 1) for one in evidence]
        left = list(range(len(found)))
        for stage in range(len(self._calibration.stages)):
            if not left:
                break
            self._draw(found, left, stage)
            if close := [i for i in left if self._is_close(found[i].statistic, stage)]:
                self._draw_again(found, close, stage)
            left = [i for i in left if not self._calibration.ends(found[i].statistic, stage)]
        return found

    def _draw(self, found: list[Reached], places: Sequence[int], stage: int) -> None:
        """The draws of a stage that were not made before."""
        had = found[places[0]].evidence.seen.draws
        fresh = tuple(draw for draw in self._calibration.stages[stage].draws if draw not in had)
        noisy = self._noisy(places, fresh, False)
        for row, i in enumerate(places):
            evidence = found[i].evidence
            seen = evidence.seen.joined(noisy[row], fresh)
            joined = Evidence(seen, evidence.distances, evidence.guard_share)
            found[i] = self._reached(joined, stage, found[i].passes + len(fresh))

    def _draw_again(self, found: list[Reached], places: Sequence[int], stage: int) -> None:
        """All draws of a stage and the answer without noise, on the canonical path."""
        draws = self._calibration.stages[stage].draws
        noisy = self._noisy(places, draws, True)
        for row, (i, asked) in enumerate(zip(places, self._exact(places), strict=True)):
            seen = Observation(asked.log_odds, noisy[row], draws)
            evidence = Evidence(seen, asked.distances, found[i].evidence.guard_share)
            found[i] = self._reached(evidence, stage, found[i].passes + 1 + len(draws))

    def _reached(self, evidence: Evidence, stage: int, passes: int) -> Reached:
        return Reached(evidence, self._calibration.statistic_after(evidence, stage), stage, passes)

    def _is_close(self, statistic: float, stage: int) -> bool:
        """True where rounding on the fast path might have turned the decision; what is not finite always is."""
        if self._tolerance is None or not math.isfinite(statistic):
            return self._tolerance is not None
        tolerance = self._tolerance
        bounds = (self._calibration.threshold, *self._calibration.exits[stage : stage + 1])
        return any(abs(statistic - bound) <= tolerance for bound in bounds)
