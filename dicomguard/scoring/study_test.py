"""From the surprises of a study's images to one decision whose false-hold rate is promised, or said not to be.

Images of one study are alike, so tests that multiply p-values of images (Bonferroni, Simes) promise nothing about a
study. Here the exchangeable unit is the study: `score` makes one number of all its images, and that number is held
against those of clean studies of about the same size by split conformal prediction (Vovk 2012; Bates, Candes, Lei,
Romano, Sesia 2023, arXiv 2104.08279). P(held) <= alpha then holds for a clean study drawn like those of its size band,
whatever the correlation within it. A band with too few clean studies has no promise, and is judged by Bonferroni on
tail-extrapolated p-values of the images instead, labelled so. Bonferroni asks for a surprise that grows with the size
of the study, and whoever sends the study chooses that: beyond what the clean studies can show, a study that is not
flagged has shown nothing, and the judgement says that too. docs/study-level.md tells how `score` was chosen.

Pure numpy: no images, no model, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from dicomguard.errors import BundleError

Surprises = NDArray[np.float64]

# Which version of `score` a calibration was fitted with; part of the enrolment's hash.
STATISTIC: Final = "sum of the surprises beyond log n; 1"
# Smallest and largest number of images in a band. One image is a band of its own: there the test is the image's own.
BANDS: Final = ((1, 1), (2, 20), (21, 200), (201, 2000))
_TAIL_SHARE = 0.05
_TAIL_LEAST = 10  # fewer values above the quantile say nothing about a tail
_HEAVIEST = 0.5  # shape at which a generalized Pareto tail has no variance any more

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def score(surprises: Surprises) -> float:
    """Sum over the n images of what each surprise exceeds log n by; the deficit of the largest where none does.

    A surprise is about -log p of its image, so log n is what one of n independent clean images would reach, and the
    sum is -log of the product of those Bonferroni-adjusted p-values n p that are below 1 (a truncated product, Zaykin
    et al. 2002, that truncates at 1/n). One image that is surprising enough holds a study alone, several that are less
    so do it together. Never falls when a surprise grows, so that no image can be made to look worse in order to hide
    another. The surprise itself where there is one image.
    """
    excess = surprises - math.log(len(surprises))
    largest = float(excess.max())
    return float(excess[excess > 0].sum()) if largest > 0 else largest


def studies_needed(alpha: float) -> int:
    """The fewest clean studies of a band from which a promise at `alpha` can be made."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def conformal_threshold(scores: Sequence[float] | Surprises, alpha: float) -> float | None:
    """The ceil((n + 1)(1 - alpha))-th smallest score; None where n is too small, or that score is infinite."""
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    if rank > len(scores):
        return None
    threshold = float(np.sort(np.asarray(scores, np.float64))[rank - 1])
    return threshold if math.isfinite(threshold) else None


class Band(BaseModel):
    """Clean studies of `low` to `high` images: their sorted scores, the largest of them, and the threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: Count
    high: Count
    studies: Annotated[int, Field(ge=0)]
    largest: Annotated[int, Field(ge=0)]
    scores: tuple[Finite, ...]
    threshold: Finite | None


class Tail(BaseModel):
    """The upper tail of a clean image's surprise: P(S > s) = share (1 + shape (s - start) / scale)^(-1 / shape)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    start: Finite
    share: Annotated[float, Field(gt=0, le=1)]
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    shape: Annotated[float, Field(ge=0, le=_HEAVIEST)]

    @classmethod
    def fit(cls, values: Surprises, weights: Surprises) -> Tail:
        """Generalized Pareto by probability-weighted moments (Hosking, Wallis 1987), never lighter than exponential."""
        order = np.argsort(values)
        values, weights = values[order], weights[order] / weights.sum()
        above = np.cumsum(weights[::-1])[::-1]
        count = max(int((above <= _TAIL_SHARE).sum()), min(_TAIL_LEAST, len(values) - 1), 1)
        start = float(values[-count - 1]) if count < len(values) else float(values[0])
        excess, weight = values[-count:] - start, weights[-count:]
        share = float(weight.sum())
        mean = max(float(np.sum(weight * excess) / share), 1e-6)
        rank = (np.cumsum(weight[::-1])[::-1] - weight / 2) / share
        moment = float(np.sum(weight * excess * rank) / share)
        # Exponential: moment = mean / 4. The heavier the tail, the smaller it is beside the mean.
        shape = 2 - mean / (mean - 2 * moment) if mean > 2 * moment else 0.0
        shape = min(max(shape, 0.0), _HEAVIEST) if count >= _TAIL_LEAST else 0.0
        return cls(start=start, share=share, scale=mean * (1 - shape), shape=shape)

    def p_value(self, surprise: float) -> float:
        """P(S > surprise), extrapolated; `share` at the most, because nothing is known below `start` here."""
        beyond = max(surprise - self.start, 0.0) / self.scale
        if math.isinf(beyond):
            return 0.0
        if self.shape < 1e-6:
            return self.share * math.exp(-beyond)
        return float(self.share * (1 + self.shape * beyond) ** (-1 / self.shape))

    def quantile(self, p: float) -> float:
        """The surprise that a clean image exceeds with probability `p`; `start` where `p` is `share` or more."""
        ratio = min(p / self.share, 1.0)
        if self.shape < 1e-6:
            return self.start - self.scale * math.log(ratio)
        return float(self.start + self.scale / self.shape * (ratio**-self.shape - 1))


@dataclass(frozen=True, slots=True)
class StudyJudgement:
    """One study. `score` and `threshold` are in the band's units; flagged means that the study would be held.

    Without a promise `score` is the largest surprise, `threshold` and `p_value` (at most 1) come from Bonferroni on the
    extrapolated tail, and nothing guarantees `alpha`. `suspects`: indices of the fewest images, most surprising first,
    without whose surprise the study would pass; empty where it passes.

    `beyond`: there is no promise, and alpha / n is less than the clean studies could ever show. Flagged means what it
    always does; not flagged means nothing, because clean images enough would have hidden any other.
    """

    score: float
    threshold: float
    p_value: float
    band: tuple[int, int] | None
    has_promise: bool
    beyond: bool
    flagged: bool
    suspects: tuple[int, ...]


class StudyCalibration(BaseModel):
    """What clean studies of a site allow to be promised about a whole study. JSON-ready; part of an enrolment."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    statistic: str
    alpha: Annotated[float, Field(gt=0, lt=1)]
    bands: tuple[Band, ...]
    tail: Tail

    @classmethod
    def fit(
        cls,
        studies: Sequence[ArrayLike],
        *,
        alpha: float,
        bands: Sequence[tuple[int, int]] = BANDS,
    ) -> StudyCalibration:
        """From the surprises of clean studies, one sequence for each study, of different patients.

        The images must be unseen by whatever made surprises of them. An image counts as its own study where it came
        alone. Studies larger than the last band shape the tail only. A band with fewer than `studies_needed(alpha)`
        studies gets no threshold; that is no error.

        Raises:
            BundleError: a surprise is NaN, or there are fewer than two images in all.
            ValueError: bands that overlap or do not start at 1.

        """
        _check_bands(bands)
        arrays = [np.asarray(study, np.float64) for study in studies]
        arrays = [study for study in arrays if len(study)]
        if any(np.isnan(study).any() for study in arrays):
            raise BundleError(
                "a clean image of the study calibration scores NaN.", advice="Check the bundle's weights."
            )
        values = np.concatenate(arrays) if arrays else np.empty(0)
        # Each study weighs the same: three hundred slices of one patient are one look at the tail, or little more.
        weights = np.concatenate([np.full(len(study), 1 / len(study)) for study in arrays]) if arrays else values
        finite = np.isfinite(values)
        if finite.sum() < 2:
            raise BundleError("study decisions need clean images to be calibrated on.", advice="Give clean studies.")
        return cls(
            statistic=STATISTIC,
            alpha=alpha,
            bands=tuple(_band(low, high, arrays, alpha) for low, high in bands),
            tail=Tail.fit(values[finite], weights[finite]),
        )

    def judge(self, surprises: ArrayLike) -> StudyJudgement:
        """Judge one study by the surprises of its images, in any order. NaN counts as infinitely surprising.

        Raises:
            ValueError: there is no image.

        """
        values = np.asarray(surprises, np.float64)
        if values.ndim != 1 or not len(values):
            raise ValueError("a study is judged by the surprises of at least one image")
        values = np.where(np.isnan(values), np.inf, values)
        band = next((band for band in self.bands if band.low <= len(values) <= band.high), None)
        if band is not None and band.threshold is not None and len(values) <= band.largest:
            found, threshold, has_promise = score(values), band.threshold, True
            below = sum(clean < found for clean in band.scores)  # infinite ones are not among `scores`
            p_value = (1 + band.studies - below) / (band.studies + 1)
            flagged = not found <= threshold
            suspects = _suspects(values, threshold) if flagged else ()
        else:
            found, has_promise = float(values.max()), False
            threshold = self.tail.quantile(self.alpha / len(values))
            p_value = min(1.0, len(values) * self.tail.p_value(found))
            flagged = not found <= threshold
            order = np.argsort(-values, kind="stable")
            suspects = tuple(int(i) for i in order if not values[i] <= threshold)
        edges = None if band is None else (band.low, band.high)
        beyond = not has_promise and len(values) > self.largest_shown
        return StudyJudgement(found, threshold, p_value, edges, has_promise, beyond, flagged, suspects)

    @property
    def largest_shown(self) -> int:
        """The most images n of a study without a promise for which alpha / n is still 1 / (m + 1) or more.

        m counts the clean studies in the bands, because images of one study are no independent looks at the tail;
        those with an infinite surprise show nothing of it. No p-value among m clean ones is smaller than 1 / (m + 1).
        """
        shown = sum(len(band.scores) for band in self.bands)
        return math.floor(self.alpha * (shown + 1) + 1e-9)

    def judged(self) -> tuple[tuple[int, int], ...]:
        """The spans of sizes that are not `beyond`: those with a promise, and from 1 to `largest_shown`."""
        shown = ((1, self.largest_shown),) if self.largest_shown else ()
        merged: list[tuple[int, int]] = []
        for low, high in sorted((*shown, *self.promised())):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        return tuple(merged)

    def promised(self) -> tuple[tuple[int, int], ...]:
        """The spans of sizes, smallest and largest number of images, in which every study has a promise."""
        return tuple((band.low, min(band.high, band.largest)) for band in self.bands if band.threshold is not None)


def _band(low: int, high: int, studies: Sequence[Surprises], alpha: float) -> Band:
    members = [study for study in studies if low <= len(study) <= high]
    scores = sorted(score(study) for study in members)
    return Band(
        low=low,
        high=high,
        studies=len(members),
        largest=max(map(len, members), default=0),
        # Infinite ones have no place in JSON. They are the largest, so ranks and thresholds stay as they are.
        scores=tuple(value for value in scores if math.isfinite(value)),
        threshold=conformal_threshold(scores, alpha),
    )


def _suspects(values: Surprises, threshold: float) -> tuple[int, ...]:
    """The most surprising images, as many as must be set to no surprise at all before the rest passes (bisection)."""
    order = np.argsort(-values, kind="stable")
    low, high = 1, len(values)
    while low < high:
        middle = (low + high) // 2
        rest = values.copy()
        rest[order[:middle]] = 0.0
        if score(rest) <= threshold:
            high = middle
        else:
            low = middle + 1
    return tuple(int(index) for index in order[:low])


def _check_bands(bands: Sequence[tuple[int, int]]) -> None:
    reached = 0
    for low, high in bands:
        if low != reached + 1 or high < low:
            raise ValueError(f"size bands must follow one another from 1 on, not {list(bands)}")
        reached = high
