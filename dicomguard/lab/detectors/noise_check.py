"""The random-noise check of the noise-consistency paper (section 2.3), and its parts at a fixed level.

t_l(x) = median over the draws r of [p_c(x) - p_c(clip(x + n_lr))], c the class of the answer: positive where noise
moves the answer away. theta_l = 2 std of t_l over correctly classified clean files. The paper judges at one level,
chosen by what it detects; here by Youden's index at theta on attacked files of the validation, not the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed, require
from dicomguard.scoring import head
from dicomguard.scoring.consistency import Observation, curve

_FILES = 10  # fewer have no standard deviation to speak of


class Kind(StrEnum):
    """What t is. `raw`: p(x) - p(x + n) of the second class, whatever the answer, as the paper's Figure 4 shows it."""

    SIGNED = "signed"
    ABS = "abs"
    RAW = "raw"


class Aggregate(StrEnum):
    """How the draws of one level become one number; `median` of an even count is the mean of the middle two."""

    MEDIAN = "median"
    MEAN = "mean"
    LOWER_MEDIAN = "lower_median"


class Theta(StrEnum):
    """Where the paper's threshold lies: at 2 std, or that above the mean of clean files."""

    TWO_STD = "2std"
    MEAN_PLUS = "mean+2std"


@dataclass(frozen=True, slots=True)
class Reading:
    """The ambiguities of the paper's text, decided (defaults) or otherwise."""

    kind: Kind = Kind.SIGNED
    aggregate: Aggregate = Aggregate.MEDIAN
    theta: Theta = Theta.TWO_STD


def drops(seen: Observation, reading: Reading = Reading()) -> Scores:
    """One file's t: (questions, levels).

    Raises:
        DicomguardError: a raw score of more than two classes.

    """
    answer = seen.answer
    if reading.kind is Kind.RAW:
        if seen.clean.shape[-1] != 2:
            raise DicomguardError(
                f"the raw score is defined for two classes, not {seen.clean.shape[-1]}.",
                advice="Use the signed or the absolute score.",
            )
        answer = (1,) * len(answer)
    difference = head.probability(seen.clean, answer) - head.probability(seen.noisy, answer)  # draws, questions
    of_level = np.array([level for level, _ in seen.draws])
    levels = sorted(set(of_level.tolist()))
    found = np.stack([_aggregated(difference[of_level == level], reading.aggregate) for level in levels], 1)
    return np.abs(found) if reading.kind is Kind.ABS else found


def _aggregated(values: Scores, aggregate: Aggregate) -> Scores:
    if aggregate is Aggregate.MEDIAN:
        return np.asarray(np.median(values, 0))
    if aggregate is Aggregate.MEAN:
        return np.asarray(values.mean(0))
    ordered = np.sort(values, 0)
    found: Scores = ordered[(len(values) - 1) // 2]
    return found


class NoiseCheck:
    """The paper's check at one level. After `fit`: `level` (its place among the bundle's), `theta` and all `thetas`.

    Of several questions the one that the noise shakes most counts. `flags` is the paper's own decision.
    """

    def __init__(self, reading: Reading = Reading(), *, level: int | None = None) -> None:
        """`level`: None to choose it by attacked files."""
        words = [] if reading.kind is Kind.SIGNED else [reading.kind.value]
        words += [] if reading.aggregate is Aggregate.MEDIAN else [reading.aggregate.value.replace("_", " ")]
        words += [] if reading.theta is Theta.TWO_STD else [reading.theta.value]
        words += [] if level is None else [f"level {level + 1}"]
        self.name = ", ".join(["noise check of the paper", *words])
        self.reading = reading
        self.level = 0 if level is None else level
        self.thetas: NDArray[np.float64] = np.empty(0)
        self._is_given = level is not None

    @property
    def theta(self) -> float:
        """The paper's threshold at the chosen level."""
        return float(self.thetas[self.level])

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """`calibration`: clean files that the victim answers rightly; `attacked`: of the validation split.

        Attacked files only choose the level, and are not looked at where it is given.

        Raises:
            DicomguardError: too few files, no such level, or none to choose it by.

        """
        require(calibration, _FILES, self.name)
        clean = self._values(calibration)
        if not np.isfinite(clean).all():
            raise DicomguardError(
                f"{self.name}: a noisy copy of a clean file has no probability.", advice="Check the victim's weights."
            )
        spread = 2 * clean.std(0, ddof=1)
        self.thetas = spread + (clean.mean(0) if self.reading.theta is Theta.MEAN_PLUS else 0.0)
        if self._is_given:
            if not 0 <= self.level < len(self.thetas):
                raise DicomguardError(
                    f"there is no noise level {self.level + 1}: the victim's bundle has {len(self.thetas)}.",
                    advice="Choose one of them.",
                )
            return
        if attacked is None or not len(attacked):
            raise DicomguardError(
                f"{self.name} chooses its noise level by attacked files, and there are none.",
                advice="Give attacked files of the validation split, or a level.",
            )
        hits = (failed_closed(self._values(attacked)) > self.thetas).mean(0)
        alarms = (clean > self.thetas).mean(0)
        self.level = int(np.argmax(hits - alarms))

    def _values(self, sight: Sight) -> Scores:
        """(N, levels): t of the question that the noise shakes most."""
        return np.array([drops(one.seen, self.reading).max(0) for one in sight.evidence])

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        return failed_closed(self._values(sight)[:, self.level]) if len(sight) else np.empty(0)

    def flags(self, sight: Sight) -> NDArray[np.bool_]:
        """What the paper calls attacked: t > theta."""
        found: NDArray[np.bool_] = self.scores(sight) > self.theta
        return found


class Fixed(StrEnum):
    """One number of the noise check; larger is more suspicious."""

    PROBABILITY = "probability drop"
    LOGIT = "logit drop"
    MARGIN = "smallest noisy margin"


class FixedLevel:
    """A number of the noise check at one level; the smallest noisy margin over all levels where `level` is None.

    Nothing is learned. Of several questions and other classes the most suspicious counts.
    """

    def __init__(self, value: Fixed, level: int | None = None) -> None:
        """Raises ValueError for a drop without a level: drops at different levels have no common scale."""
        if level is None and value is not Fixed.MARGIN:
            raise ValueError(f"the {value} needs a level")
        self.name = value.value if level is None else f"{value.value}, level {level + 1}"
        self._value = value
        self._level = level

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """See `sight.Detector`; raises DicomguardError where the files were not looked at with this level."""
        if self._level is not None and self._level not in {level for level, _ in calibration.draws}:
            raise DicomguardError(
                f"{self.name}: the files were not looked at with that level.", advice="Choose one of the bundle's."
            )

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        return failed_closed([self._of(one.seen) for one in sight.evidence])

    def _of(self, seen: Observation) -> float:
        found = curve(seen)
        chosen = slice(None) if self._level is None else [found.levels.index(self._level)]
        if self._value is Fixed.PROBABILITY:
            return float(found.probability_drops[:, chosen].max())
        if self._value is Fixed.LOGIT:
            return float(found.log_odds_drops[:, chosen].max())
        return float(-found.noisy_margins[:, chosen].min())
