"""From noise curves to one number, and from clean images to the threshold it is held against.

The clean images are halved by patient. Half A gives each component its distribution; the fused score of an image is the
largest of -log p over the components. Half B, which had no part in that, gives the threshold by split conformal
prediction (Bates, Candes, Lei, Romano, Sesia 2023, arXiv 2104.08279) with the low-margin rule inside it, so that
P(flagged) <= alpha for a clean image drawn like those of the calibration, INCONCLUSIVE included.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dicomguard.decision import Thresholds
from dicomguard.errors import BundleError
from dicomguard.scoring.consistency import NoiseCurve

# Which version of the statistic's definition a calibration was fitted with; part of every fingerprint.
STATISTIC = "max -log p of {probability drop, logit drop, -noisy margin}, exponential tail; 1"
_TAIL_SHARE = 0.1  # of half A lies in the tail whose mean excess sets the exponential beyond the largest value
_MARGIN_QUANTILE = 0.02
_REFERENCES = 20  # fewer values give a component no distribution to speak of

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Unit = Annotated[float, Field(gt=0, lt=1)]


class Component(BaseModel):
    """The clean distribution of one component of the score: sorted values of half A, and the tail's mean excess."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    values: Annotated[tuple[Finite, ...], Field(min_length=2)]
    tail: Positive

    def surprise(self, value: float) -> float:
        """-log of the conformal p-value of `value`, continuous and increasing.

        Between order statistics the rank is interpolated linearly; beyond the largest the tail is exponential.
        """
        n = len(self.values)
        largest = self.values[-1]
        if not math.isfinite(value):
            return math.nan if math.isnan(value) else math.copysign(math.inf, value)
        if value >= largest:
            return math.log(n + 1) + (value - largest) / self.tail
        # n values at or above the smallest, 0 above the largest: p falls from (n + 1) / (n + 1) to 1 / (n + 1).
        above = float(np.interp(value, self.values, np.arange(n - 1, -1, -1)))
        return -math.log((1 + above) / (n + 1))

    @classmethod
    def fit(cls, values: NDArray[np.float64]) -> Component:
        """From the values of half A; rounded, because the last digits only make the file long."""
        ordered = np.unique(np.round(np.sort(values), 6))
        if len(ordered) < 2:
            raise BundleError(
                "all calibration images score the same: the network does not react to its input.",
                advice="Check the weights and the normalisation (mean, std) of the bundle.",
            )
        head = max(int(len(ordered) * _TAIL_SHARE), 2)
        excess = float(np.mean(ordered[-head:] - ordered[-head]))
        return cls(values=tuple(float(v) for v in ordered), tail=max(excess, 1e-6))


class Calibration(BaseModel):
    """What was measured on clean images, with the fingerprint of the scorer it was measured with.

    `probability_scale[l]` and `logit_scale[l]` are the standard deviations (ddof 1) of the drops at each noise level.
    `images` and `groups` count what half A and half B were made of; `source` says in words where they came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fingerprint: str
    source: str
    statistic: str
    alpha: Unit
    images: tuple[int, int]
    probability_scale: tuple[Positive, ...]
    logit_scale: tuple[Positive, ...]
    probability: Component
    logit: Component
    noisy_margin: Component
    threshold: Finite
    margin_floor: Finite
    margin_quantile: Unit
    paper_theta: tuple[Positive, ...]
    paper_level: Annotated[int, Field(ge=0)]
    paper_images: int
    mode: Literal["labelled", "unlabelled"]

    def statistic_of(self, curve: NoiseCurve) -> float:
        """The fused score of one image, NaN where any number of its curve is."""
        parts = _components(curve, np.array(self.probability_scale), np.array(self.logit_scale))
        surprises = [
            component.surprise(float(value))
            for component, value in zip((self.probability, self.logit, self.noisy_margin), parts, strict=True)
        ]
        return math.nan if any(map(math.isnan, surprises)) else max(surprises)

    def thresholds(self) -> Thresholds:
        """What the decision holds a score against."""
        return Thresholds(self.threshold, self.alpha, self.margin_floor, self.paper_theta, self.paper_level)

    def flags(self, curve: NoiseCurve) -> bool:
        """True where the image would not pass as clean: over the threshold, low margin, or no number."""
        value = self.statistic_of(curve)
        return not (value <= self.threshold and curve.margin >= self.margin_floor)


def halve(groups: Sequence[str]) -> NDArray[np.bool_]:
    """True where an image belongs to half A: by a hash of its patient, one third of them (the threshold needs more)."""
    digests = (hashlib.sha256(f"calibration half\0{group}".encode()).digest() for group in groups)
    return np.array([int.from_bytes(digest[:4], "big") < 2**32 // 3 for digest in digests], dtype=bool)


def require_enough(groups: Sequence[str], alpha: float) -> tuple[int, int]:
    """How many images fall to half A and half B. A threshold exists from 1 / alpha - 1 images in B on.

    Raises:
        BundleError: too few, saying how many to give.

    """
    half_a = halve(groups)
    needed = math.ceil(1 / alpha - 1)
    counts = int(half_a.sum()), int((~half_a).sum())
    if counts[0] < _REFERENCES or counts[1] < needed:
        raise BundleError(
            f"{len(groups)} clean images are too few to calibrate at alpha {alpha:g}: the reference third got "
            f"{counts[0]} ({_REFERENCES} needed) and the threshold part {counts[1]} ({needed} needed).",
            advice=f"Give at least {max(4 * _REFERENCES, 2 * needed)} clean images of different patients, "
            "or a larger alpha.",
        )
    return counts


def fit(
    curves: Sequence[NoiseCurve],
    groups: Sequence[str],
    *,
    fingerprint: str,
    source: str,
    alpha: float = 0.05,
    is_correct: Sequence[bool] | None = None,
    paper_level: int = 2,
) -> Calibration:
    """Fit the calibration of one scorer on clean images; `groups` are patients (or anything that repeats together).

    `is_correct` says which images were classified rightly, where labels are known: the paper's theta uses those only.

    Raises:
        BundleError: too few images for `alpha`, or scores that cannot be calibrated.

    """
    counts = require_enough(groups, alpha)
    half_a = halve(groups)
    probability = np.array([curve.probability_drops for curve in curves])
    logit = np.array([curve.logit_drops for curve in curves])
    if not (np.isfinite(probability).all() and np.isfinite(logit).all()):
        raise BundleError("a calibration image scores NaN or infinity.", advice="Check the weights of the bundle.")
    scales = [np.maximum(drops[half_a].std(0, ddof=1), 1e-6) for drops in (probability, logit)]
    parts = np.array([_components(curve, *scales) for curve in curves])
    margins = np.array([curve.margin for curve in curves])
    quantile = min(_MARGIN_QUANTILE, alpha * _MARGIN_QUANTILE / 0.05)
    correct = np.ones(len(curves), bool) if is_correct is None else np.asarray(is_correct, bool)
    draft = Calibration(
        fingerprint=fingerprint,
        source=source,
        statistic=STATISTIC,
        alpha=alpha,
        images=counts,
        probability_scale=tuple(map(float, scales[0])),
        logit_scale=tuple(map(float, scales[1])),
        probability=Component.fit(parts[half_a, 0]),
        logit=Component.fit(parts[half_a, 1]),
        noisy_margin=Component.fit(parts[half_a, 2]),
        threshold=0.0,
        margin_floor=_floor(margins[half_a], quantile),
        margin_quantile=quantile,
        paper_theta=tuple(float(max(2 * value, 1e-9)) for value in probability[correct].std(0, ddof=1)),
        paper_level=paper_level,
        paper_images=int(correct.sum()),
        mode="unlabelled" if is_correct is None else "labelled",
    )
    held_back = [curve for curve, is_a in zip(curves, half_a, strict=True) if not is_a]
    return draft.model_copy(update={"threshold": _threshold(draft, held_back)})


def _floor(margins: NDArray[np.float64], quantile: float) -> float:
    """The margin that at most `quantile` of clean images fall below: an order statistic, 0 where n allows none."""
    rank = math.floor((len(margins) + 1) * quantile)
    return float(np.sort(margins)[rank - 1]) if rank else 0.0


def _threshold(draft: Calibration, curves: Sequence[NoiseCurve]) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest fused score of half B; a low margin counts as an infinite score."""
    scores = sorted(math.inf if curve.margin < draft.margin_floor else draft.statistic_of(curve) for curve in curves)
    threshold = scores[math.ceil((len(scores) + 1) * (1 - draft.alpha)) - 1]
    if not math.isfinite(threshold):
        raise BundleError(
            f"more than {draft.alpha:.0%} of the held-back clean images lie below the margin floor.",
            advice="The two parts of the calibration images differ; mix their sources, or give more images.",
        )
    return threshold


def _components(
    curve: NoiseCurve, probability_scale: NDArray[np.float64], logit_scale: NDArray[np.float64]
) -> tuple[float, float, float]:
    return (
        float(np.max(curve.probability_drops / probability_scale)),
        float(np.max(curve.logit_drops / logit_scale)),
        float(-np.min(curve.noisy_margins)),
    )
