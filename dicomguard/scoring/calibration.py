"""From what was observed of an image to one number, and from clean images to the threshold it is held against.

The clean images are divided by patient. The reference part gives each component of the score its clean distribution.
Two lines of evidence are fused. In the first, what the protected model itself shows (noise check, features), components
depend on each other, so the largest surprise, -log p, over components and questions counts; the feature distance, the
weakest, with a Bonferroni weight of e^-3. The guard is another network under noise of its own: its surprise is added,
as Fisher combines independent tests. Measured against the plain maximum in docs/scoring.md. The held-back part, which
had no share in that, gives the threshold by split conformal prediction (Bates, Candes, Lei, Romano, Sesia 2023, arXiv
2104.08279), with the low-margin rule inside it, so that P(flagged) <= alpha for a clean image drawn like those of the
enrolment, INCONCLUSIVE included.

The noise is looked at in stages. Where the first one finds nothing the look ends, towards clean only; the score of
such an image is that of the first stage. The threshold is fitted on the scores of the whole cascade, so that early
exits are inside the promise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dicomguard.errors import BundleError
from dicomguard.scoring import head
from dicomguard.scoring.component import Component, Finite, Positive
from dicomguard.scoring.consistency import Draw, NoiseCurve, Observation, curve

# Which version of the statistic's definition a calibration was fitted with; part of every fingerprint.
STATISTIC: Final = (
    "max -log p of {probability drop, log-odds drop, -noisy margin, Mahalanobis - 3} + that of -guard share, staged; 3"
)
NOISE_COMPONENTS: Final = ("probability_drop", "log_odds_drop", "noisy_margin")
COMPONENTS: Final = (*NOISE_COMPONENTS, "feature_distance", "guard_share")

_REFERENCES = 20  # fewer values give a component no distribution to speak of
_CLASS_REFERENCES = 20  # fewer images of a class give its pairs of classes no scale of their own
_MARGIN_QUANTILE = 0.02
_GUARD = "guard_share"
_FEATURE_WEIGHT = 3.0  # -log of the share of alpha that the feature distance may spend
_VOTES = 0.01  # of a guard that was unanimous on every reference image: a missing hundredth of votes surprises by one

Unit = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the score of one image is made of. `distances`: (questions,); `guard_share` of the first look's votes.

    None where the enrolment has no feature model or no guard.
    """

    seen: Observation
    distances: NDArray[np.float64] | None = None
    guard_share: float | None = None


class Stage(BaseModel):
    """The clean reference of one stage of the cascade.

    `draws` are all draws made by the end of the stage. `probability_scale[q][l]` and `log_odds_scale[q][c][l][y]` are
    standard deviations (ddof 1) of the drops: question, class of the answer, level, other class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    draws: tuple[Draw, ...]
    probability_scale: tuple[tuple[Positive, ...], ...]
    log_odds_scale: tuple[tuple[tuple[tuple[Positive, ...], ...], ...], ...]
    probability_drop: tuple[Component, ...]
    log_odds_drop: tuple[Component, ...]
    noisy_margin: tuple[Component, ...]

    def standardised(self, seen: NoiseCurve) -> NDArray[np.float64]:
        """Log-odds drops in units of clean standard deviations: (questions, levels, classes), -inf at the answer."""
        scale = np.array([self.log_odds_scale[q][c] for q, c in enumerate(seen.answer)])
        return np.asarray(seen.log_odds_drops / scale)

    def values(self, seen: NoiseCurve) -> dict[str, NDArray[np.float64]]:
        """Each noise component's value for each question; larger is more suspicious."""
        scaled = seen.probability_drops / np.array(self.probability_scale)
        return {
            "probability_drop": scaled.max(1),
            "log_odds_drop": self.standardised(seen).max((1, 2)),
            "noisy_margin": -seen.noisy_margins.min(1),
        }

    def surprises(self, seen: NoiseCurve, used: Collection[str]) -> dict[str, float]:
        """The largest surprise of each noise component over the questions."""
        found = {}
        for name, values in self.values(seen).items():
            if name in used:
                fitted: tuple[Component, ...] = getattr(self, name)
                found[name] = _worst([c.surprise(float(v)) for c, v in zip(fitted, values, strict=True)])
        return found


class Calibration(BaseModel):
    """What was measured on clean images. `images`: how many in the reference and in the held-back part.

    `exits[s]`: the score at or below which the look ends after stage s. `held_back`: the sorted scores of the held-back
    images; those that are held whatever they score are left out and counted: `low_margins`, and `unenrolled`, which
    get no vote of the guard. `margin_floor` is for the smallest margin over the questions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    alpha: Unit
    used: tuple[str, ...]
    images: tuple[int, int]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    exits: tuple[Finite, ...]
    feature_distance: tuple[Component, ...] | None
    guard_share: Component | None
    margin_floor: Finite
    margin_quantile: Unit
    held_back: tuple[Finite, ...]
    low_margins: Annotated[int, Field(ge=0)]
    unenrolled: Annotated[int, Field(ge=0)]
    threshold: Finite

    def surprises(self, evidence: Evidence, stage: int) -> dict[str, float]:
        """-log p of each component that is in use, after `stage`.

        Raises:
            ValueError: `evidence` lacks what the score is made of; silence would lower it.

        """
        reference = self.stages[stage]
        found = reference.surprises(curve(evidence.seen.only(reference.draws)), self.used)
        if self.feature_distance is not None:
            if evidence.distances is None:
                raise ValueError("the score has a feature distance, the evidence has none")
            pairs = zip(self.feature_distance, evidence.distances, strict=True)
            found["feature_distance"] = _worst([component.surprise(float(value)) for component, value in pairs])
        if self.guard_share is not None:
            if evidence.guard_share is None:
                raise ValueError("the score has a guard's vote, the evidence has none")
            found["guard_share"] = self.guard_share.surprise(-evidence.guard_share)
        return found

    def statistic_after(self, evidence: Evidence, stage: int) -> float:
        """The fused score; NaN where any surprise is."""
        return fused(self.surprises(evidence, stage))

    def ends(self, statistic: float, stage: int) -> bool:
        """True when nothing more is drawn: nothing was found, or this was the last stage."""
        return stage == len(self.stages) - 1 or statistic <= self.exits[stage]

    def statistic_of(self, evidence: Evidence) -> tuple[float, int]:
        """The score of the whole cascade, and the stage at which it ended. `evidence` holds the draws of all stages."""
        for stage in range(len(self.stages)):
            statistic = self.statistic_after(evidence, stage)
            if self.ends(statistic, stage):
                return statistic, stage
        raise AssertionError("the last stage always ends")

    def p_value(self, statistic: float, margin: float) -> float:
        """The conformal p-value among the held-back clean images; uniform for clean traffic like theirs.

        An image that is held whatever it scores (no number, low margin) ties with the held-back ones that are.
        """
        above = self.low_margins + self.unenrolled
        images = len(self.held_back) + above
        if not math.isnan(statistic) and margin >= self.margin_floor:
            above += len(self.held_back) - int(np.searchsorted(np.asarray(self.held_back), statistic, side="left"))
        return (1 + above) / (images + 1)

    def flags(self, statistic: float, margin: float) -> bool:
        """True where the image would not pass as clean: over the threshold, low margin, or no number."""
        return not (statistic <= self.threshold and margin >= self.margin_floor)


def fused(surprises: Mapping[str, float]) -> float:
    """The score of -log p by component: the largest of the protected model's, plus the guard's. NaN where any is."""
    own = [s - _FEATURE_WEIGHT if name == "feature_distance" else s for name, s in surprises.items() if name != _GUARD]
    return _worst([0.0, *own]) + surprises.get(_GUARD, 0.0)


def _worst(surprises: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, surprises)) else max(surprises, default=0.0)


def images_needed(alpha: float) -> int:
    """Held-back images from which on a threshold exists at all: 1 / alpha - 1."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def require_enough(reference: int, held_back: int, alpha: float) -> None:
    """Raises BundleError where the parts are too small, saying how many images are needed."""
    needed = images_needed(alpha)
    if reference < _REFERENCES or held_back < needed:
        raise BundleError(
            f"the clean images are too few to calibrate at alpha {alpha:g}: {reference} for reference "
            f"({_REFERENCES} needed), {held_back} held back ({needed} needed).",
            advice="Give more clean images of different patients, or a larger alpha.",
        )


def fit(
    reference: Sequence[Evidence],
    held_back: Sequence[Evidence],
    *,
    alpha: float,
    plan: Sequence[Sequence[Draw]],
    exit_share: float = 0.7,
    used: Sequence[str] = COMPONENTS,
) -> Calibration:
    """Fit on clean images of different patients; one `Evidence` each, with the draws of every stage of `plan`.

    `plan[s]`: all draws made by the end of stage s. `exit_share` of clean images end at each stage but the last.

    Raises:
        BundleError: too few images for `alpha`, or numbers that cannot be calibrated.

    """
    # What gets no vote is held whatever it scores: it has no place in the distribution of scores.
    reference = [one for one in reference if one.guard_share is None or not math.isnan(one.guard_share)]
    require_enough(len(reference), len(held_back), alpha)
    quantile = min(_MARGIN_QUANTILE, alpha * _MARGIN_QUANTILE / 0.05)
    distances = [e.distances for e in reference if e.distances is not None and "feature_distance" in used]
    shares = [e.guard_share for e in reference if e.guard_share is not None and "guard_share" in used]
    draft = Calibration(
        alpha=alpha,
        used=tuple(used),
        images=(len(reference), len(held_back)),
        stages=tuple(_stage([e.seen.only(draws) for e in reference], tuple(draws)) for draws in plan),
        exits=(),
        feature_distance=tuple(Component.fit(column, "feature distance") for column in np.array(distances).T)
        if distances
        else None,
        guard_share=Component.fit(-np.array(shares), "guard's vote share", if_same=_VOTES) if shares else None,
        margin_floor=_floor(np.array([smallest_margin(e.seen) for e in reference]), quantile),
        margin_quantile=quantile,
        held_back=(),
        low_margins=0,
        unenrolled=0,
        threshold=0.0,
    )
    share = min(exit_share, max(1 - 2 * alpha, 0.0))  # an exit above the threshold would not lead towards clean only
    for stage in range(len(plan) - 1):
        scores = [draft.statistic_after(e, stage) for e in reference]
        draft = draft.model_copy(update={"exits": (*draft.exits, round(float(np.quantile(scores, share)), 6))})
    return _with_threshold(draft, held_back)


def smallest_margin(seen: Observation) -> float:
    """Over the questions: how far the answer is from being another one."""
    return float(head.smallest_margins(seen.clean))


def _stage(seen: Sequence[Observation], draws: tuple[Draw, ...]) -> Stage:
    curves = [curve(one) for one in seen]
    drops = np.array([c.log_odds_drops for c in curves])  # image, question, level, class
    probability = np.array([c.probability_drops for c in curves])
    answers = np.array([c.answer for c in curves])
    if not (np.isfinite(probability).all() and np.isfinite([c.margin for c in curves]).all()):
        raise BundleError("a clean image scores NaN or infinity.", advice="Check the weights of the bundle.")
    draft = Stage.model_construct(
        draws=draws,
        probability_scale=_tuples(np.maximum(probability.std(0, ddof=1), 1e-6)),
        log_odds_scale=tuple(_pair_scales(drops[:, q], answers[:, q]) for q in range(answers.shape[1])),
    )
    values = [draft.values(c) for c in curves]
    fitted = {
        name: tuple(Component.fit(column, name.replace("_", " ")) for column in np.array([v[name] for v in values]).T)
        for name in NOISE_COMPONENTS
    }
    return draft.model_copy(update=fitted)


def _pair_scales(drops: NDArray[np.float64], answers: NDArray[np.int64]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """(images, levels, classes) -> [answer][level][other class]; pairs with few images share one scale per level."""
    classes = drops.shape[2]
    pooled = np.array([drops[:, level][np.isfinite(drops[:, level])].std(ddof=1) for level in range(drops.shape[1])])
    scales = np.repeat(np.repeat(pooled[None, :, None], classes, 0), classes, 2)
    if classes > 2:
        for c in range(classes):
            mine = drops[answers == c]
            if len(mine) >= _CLASS_REFERENCES:
                others = np.arange(classes) != c
                scales[c][:, others] = mine[:, :, others].std(0, ddof=1)
    return tuple(_tuples(one) for one in np.maximum(scales, 1e-6))


def _tuples(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 9) for value in row) for row in matrix)


def _floor(margins: NDArray[np.float64], quantile: float) -> float:
    """The margin that at most `quantile` of clean images fall below: an order statistic, 0 where n allows none."""
    rank = math.floor((len(margins) + 1) * quantile)
    return float(np.sort(margins)[rank - 1]) if rank else 0.0


def _with_threshold(draft: Calibration, held_back: Sequence[Evidence]) -> Calibration:
    """The ceil((n + 1)(1 - alpha))-th smallest score of the held-back part; what is held anyway counts as infinite."""
    scores = []
    low_margins = unenrolled = 0
    for one in held_back:
        if one.guard_share is not None and math.isnan(one.guard_share):
            unenrolled += 1
        elif smallest_margin(one.seen) < draft.margin_floor:
            low_margins += 1
        else:
            scores.append(draft.statistic_of(one)[0])
    if not all(map(math.isfinite, scores)):
        raise BundleError("a clean image scores NaN or infinity.", advice="Check the weights of the bundle.")
    scores.sort()
    rank = math.ceil((len(held_back) + 1) * (1 - draft.alpha) - 1e-9)
    if rank > len(scores):
        raise BundleError(
            f"of {len(held_back)} held-back clean images {low_margins} lie below the margin floor and {unenrolled} are"
            " of a kind, a range or a contrast that no other clean image has: more than alpha allows.",
            advice="Give more clean images of every kind, mixed from all sources; or enrol without a guard (--eps 0)"
            " where the range differs from image to image.",
        )
    # Not rounded: an image that scores exactly the threshold passes, and rounding down would hold all such ties.
    return draft.model_copy(
        update={
            "held_back": tuple(scores),
            "low_margins": low_margins,
            "unenrolled": unenrolled,
            "threshold": scores[rank - 1],
        }
    )
