"""Our fused score (`scoring.calibration`), as the node computes it: with and without the guard's share in it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dicomguard.enrol.enrolling import plan
from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.sight import Scores, Sight, require
from dicomguard.scoring import calibration as fusing
from dicomguard.scoring import features
from dicomguard.scoring.calibration import COMPONENTS, Calibration, Evidence, smallest_margin
from dicomguard.scoring.consistency import NoiseSettings

_FOLDS = 5
_FILES = 30
AS_ENROLLED = "ours, as enrolled"


class Ours:
    """The fused score of noise check, feature distance and guard.

    Where the victim has an enrolment its feature distances are taken; else a feature model is fitted on the clean
    files, and their own distances are cross-fitted, so that none is measured by a model that knows it.
    """

    def __init__(
        self,
        settings: NoiseSettings,
        *,
        with_guard: bool = True,
        cascade: bool = True,
        floor: bool = True,
        alpha: float = 0.05,
    ) -> None:
        """`cascade`: stop early as the node does, instead of looking with the whole ladder. `floor`: a margin below
        nearly every clean one is infinitely suspicious (the node's INCONCLUSIVE). `alpha`: what the share of early
        exits and the margin floor are fitted for; the threshold is the judge's.
        """
        words = [] if with_guard else ["without the guard"]
        words += [] if cascade else ["whole ladder"]
        words += [] if floor else ["without the margin floor"]
        self.name = ", ".join(["ours", *words])
        self._plan = plan(settings) if cascade else (settings.ladder(),)
        self._with_guard = with_guard
        self._floor = floor
        self._alpha = alpha
        self._model: features.FeatureModel | None = None
        self.calibration: Calibration | None = None

    @property
    def feature_model(self) -> features.FeatureModel | None:
        """The one that was fitted here; None where the victim's enrolment has its own, or there are no features."""
        return self._model

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """See `sight.Detector`; `seed` says how the files are folded where distances are cross-fitted."""
        require(calibration, _FILES, self.name)
        has_guard = calibration.evidence[0].guard_share is not None
        if self._with_guard and not has_guard:
            raise DicomguardError(
                f"{self.name}: the files were looked at without a guard.",
                advice="Enrol the victim with an eps ('dicomguard enrol'), or take the score without the guard.",
            )
        evidence = list(calibration.evidence)
        self._model = None
        if evidence[0].distances is None and calibration.features.shape[1]:
            distances = _cross_fitted(calibration, seed)
            evidence = [_with(one, far) for one, far in zip(evidence, distances, strict=True)]
            self._model = _model(calibration)
        # A share of NaN is no vote: such files have no place in the distribution, and score infinity.
        evidence = [one for one in evidence if not self._with_guard or not math.isnan(one.guard_share or 0.0)]
        if not self._with_guard:
            evidence = [Evidence(one.seen, one.distances) for one in evidence]
        left_out = set() if self._with_guard else {"guard_share"}
        left_out |= {"feature_distance"} if evidence[0].distances is None else set()
        # The threshold that this fits, too, is on the reference itself and is never used: so that it exists at all, the
        # rate is as low as so few files allow.
        self.calibration = fusing.fit(
            evidence,
            evidence,
            alpha=max(self._alpha, 1 / (len(evidence) + 1)),
            plan=self._plan,
            used=[name for name in COMPONENTS if name not in left_out],
        )

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        return np.array([self._score(one, i, sight) for i, one in enumerate(sight.evidence)], np.float64)

    def _score(self, one: Evidence, place: int, sight: Sight) -> float:
        if self.calibration is None:
            raise ValueError(f"{self.name} is not fitted")
        if self._model is not None:
            answer = tuple(int(c) for c in sight.answers[place])
            one = _with(one, self._model.distances(sight.features[place], answer))
        return _scored(self.calibration, one, floor=self._floor)


class Enrolled:
    """The victim's own enrolment, as the node flags by it: nothing is fitted, and `theta` is its threshold."""

    name = AS_ENROLLED

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    @property
    def theta(self) -> float:
        """The threshold that the node compares with."""
        return self.calibration.threshold

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:
        """See `sight.Detector`; there is nothing to fit."""

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        return np.array([_scored(self.calibration, one) for one in sight.evidence], np.float64)


def _scored(calibration: Calibration, one: Evidence, *, floor: bool = True) -> float:
    """The statistic; infinity for what is held whatever it scores."""
    statistic = calibration.statistic_of(one)[0]
    is_low = floor and not smallest_margin(one.seen) >= calibration.margin_floor
    return math.inf if math.isnan(statistic) or is_low else statistic


def _with(one: Evidence, distances: NDArray[np.float64]) -> Evidence:
    return Evidence(one.seen, distances, one.guard_share)


def _model(clean: Sight) -> features.FeatureModel:
    model = features.fit(clean.features, clean.answers, clean.log_odds.shape[-1])
    assert model is not None  # only asked for where there are features
    return model


def _cross_fitted(clean: Sight, seed: int) -> NDArray[np.float64]:
    """The distance of each clean file by a model of the others' folds: (N, questions)."""
    fold = np.random.default_rng(seed).permutation(len(clean)) % _FOLDS
    found = np.empty(clean.answers.shape)
    for k in range(_FOLDS):
        model = _model(clean.only(fold != k))
        for place in np.flatnonzero(fold == k):
            answer = tuple(int(c) for c in clean.answers[place])
            found[place] = model.distances(clean.features[place], answer)
    return found
