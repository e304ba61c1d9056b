"""Deep features against class-conditional Gaussians (Lee, Lee, Lee, Shin 2018, arXiv 1807.03888), as a baseline.

At the end of each of the last three stages: global average pooling, a mean for each class of the victim's answer, one
covariance for all, Ledoit-Wolf; the squared distance to the class that is answered. The layers' distances are
standardised on clean files and summed; no attacked files tune their weights. Clean distances are cross-fitted, because
those of files that the Gaussians know are nearly all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.gaussian import ShrunkGaussian
from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed, require
from dicomguard.lab.detectors.stages import Layers

_FOLDS = 5
_FILES = 30
_CLASS_FILES = 10  # of each class, so that every fold leaves some for its mean


@dataclass(frozen=True, slots=True)
class _Layer:
    """Of one layer and question: `means` (classes, F), the covariance, and the Gaussian of all classes together."""

    means: NDArray[np.float64]
    tied: ShrunkGaussian
    overall: NDArray[np.float64]
    background: ShrunkGaussian | None

    @classmethod
    def fit(cls, seen: NDArray[np.float64], answers: NDArray[np.int64], classes: int, *, relative: bool) -> _Layer:
        means = np.stack([seen[answers == c].mean(0) for c in range(classes)])
        overall = seen.mean(0)
        background = ShrunkGaussian.fit(seen - overall) if relative else None
        return cls(means, ShrunkGaussian.fit(seen - means[answers]), overall, background)

    def distances(self, seen: NDArray[np.float64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
        found = self.tied.distances(seen - self.means[answers])
        return found if self.background is None else found - self.background.distances(seen - self.overall)


class Mahalanobis:
    """Score: the sum over layers of the standardised squared distance to the answered class; of questions the worst."""

    def __init__(self, layers: Layers, *, relative: bool = False) -> None:
        """`layers`: `stages.victim_layers`. `relative`: less the distance to all classes together (Ren et al. 2021)."""
        self.name = "Mahalanobis, relative" if relative else "Mahalanobis"
        self._layers = layers
        self._relative = relative
        self._fitted: list[list[_Layer]] = []  # question, layer
        self._scales: NDArray[np.float64] = np.empty(0)  # question, layer, (mean, std)

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """See `sight.Detector`; `seed` says how the files are folded."""
        require(calibration, _FILES, self.name)
        answers, classes = calibration.answers, calibration.log_odds.shape[-1]
        self._require_classes(answers, classes)
        seen = self._layers(calibration.pixels)
        if not all(np.isfinite(one).all() for one in seen):
            raise DicomguardError(
                f"{self.name} cannot be fitted: a layer's features of a clean file are NaN or infinite.",
                advice="Check the victim's weights and transforms.",
            )
        fitted, scales = [], []
        for q in range(answers.shape[1]):
            fold = _folds(answers[:, q], classes, seed)
            fitted.append([_Layer.fit(one, answers[:, q], classes, relative=self._relative) for one in seen])
            apart = [self._cross_fitted(one, answers[:, q], classes, fold) for one in seen]
            scales.append([(float(values.mean()), max(float(values.std(ddof=1)), 1e-12)) for values in apart])
        self._fitted, self._scales = fitted, np.array(scales)

    def _require_classes(self, answers: NDArray[np.int64], classes: int) -> None:
        for q in range(answers.shape[1]):
            counts = np.bincount(answers[:, q], minlength=classes)
            if counts.min() < _CLASS_FILES:
                raise DicomguardError(
                    f"{self.name} needs {_CLASS_FILES} clean files of each class; the victim answers class"
                    f" {int(counts.argmin())} of question {q} for {int(counts.min())}.",
                    advice="Give clean files of every class to the calibration split.",
                )

    def _cross_fitted(
        self, seen: NDArray[np.float64], answers: NDArray[np.int64], classes: int, fold: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        found = np.empty(len(seen))
        for k in range(_FOLDS):
            out = fold == k
            layer = _Layer.fit(seen[~out], answers[~out], classes, relative=self._relative)
            found[out] = layer.distances(seen[out], answers[out])
        return found

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        if not self._fitted:
            raise ValueError(f"{self.name} is not fitted")
        if not len(sight):
            return np.empty(0)
        seen, answers = self._layers(sight.pixels), sight.answers
        found = []
        for q, layers in enumerate(self._fitted):
            apart = [layer.distances(one, answers[:, q]) for layer, one in zip(layers, seen, strict=True)]
            scaled = (np.stack(apart, 1) - self._scales[q, :, 0]) / self._scales[q, :, 1]
            found.append(scaled.sum(1))
        return np.asarray(np.max([failed_closed(values) for values in found], 0))


def _folds(answers: NDArray[np.int64], classes: int, seed: int) -> NDArray[np.int64]:
    """A fold for each file, each class spread over all of them."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(answers), np.int64)
    for c in range(classes):
        (mine,) = np.nonzero(answers == c)
        fold[mine] = rng.permutation(len(mine)) % _FOLDS
    return fold
