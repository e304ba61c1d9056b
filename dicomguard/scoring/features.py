"""How far an image's deep features are from those of clean images with the same answer (Lee et al. 2018, Mahalanobis).

Blind to attacks that stop at the class border, strong on confident ones: it complements the noise check. The covariance
is shrunk as Ledoit and Wolf 2004 prescribe, because there are more features than images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomguard.errors import BundleError
from dicomguard.scoring.head import Answer

_CLASS_IMAGES = 5  # fewer images of a class give it no mean of its own
_DIRECTIONS = 64
_TENSORS = ("means", "basis", "inner", "outer")


@dataclass(frozen=True, slots=True)
class FeatureModel:
    """One Gaussian for each class of a question, with a shared covariance.

    `means`: (questions, classes, F). `basis`: (r, F), the leading directions of the residuals, `inner`: (r,) what one
    over their variance adds to `outer`, one over the variance of all other directions.
    """

    means: NDArray[np.float32]
    basis: NDArray[np.float32]
    inner: NDArray[np.float32]
    outer: float

    def distances(self, features: NDArray[np.float64], answer: Answer) -> NDArray[np.float64]:
        """Squared Mahalanobis distance of (F,) to the class of each question's answer: (questions,)."""
        residuals = features - self.means[np.arange(len(answer)), list(answer)]
        along = residuals @ self.basis.T
        found: NDArray[np.float64] = self.outer * (residuals**2).sum(1) + (along**2) @ self.inner.astype(np.float64)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What an enrolment stores."""
        return {
            "features.means": torch.from_numpy(self.means),
            "features.basis": torch.from_numpy(self.basis),
            "features.inner": torch.from_numpy(self.inner),
            "features.outer": torch.tensor([self.outer]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FeatureModel | None:
        """The inverse of `tensors`; None where there is none among them.

        Raises:
            BundleError: one is missing, or they do not fit each other.

        """
        found = {name: tensors[f"features.{name}"].numpy() for name in _TENSORS if f"features.{name}" in tensors}
        if not found:
            return None
        shapes = [found[name].shape if name in found else None for name in _TENSORS]
        match shapes:
            case [(_, _, width), (rank, across), (along,), (1,)] if (rank, width) == (along, across):
                return cls(found["means"], found["basis"], found["inner"], float(found["outer"][0]))
        raise BundleError(f"the feature model's tensors do not fit: {shapes}.", advice="Enrol again.")


def fit(features: NDArray[np.float64], answers: NDArray[np.int64], classes: int) -> FeatureModel | None:
    """From clean images: features (N, F) and answers (N, questions). None where the network has no features.

    Raises:
        BundleError: features that are not finite or all the same.

    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # noqa: PLC0415 - enrolment only; the node starts faster

    if features.shape[1] == 0:
        return None
    if not np.isfinite(features).all() or float(features.std(0).max()) == 0:
        raise BundleError(
            "the features of clean images are NaN, infinite or all the same.", advice="Check the weights of the bundle."
        )
    questions = answers.shape[1]
    overall = features.mean(0)
    means = np.tile(overall, (questions, classes, 1))
    residuals = []
    for q in range(questions):
        for c in range(classes):
            mine = answers[:, q] == c
            if mine.sum() >= _CLASS_IMAGES:
                means[q, c] = features[mine].mean(0)
        residuals.append(features - means[q, answers[:, q]])
    pooled = np.concatenate(residuals)
    shrinkage = float(ledoit_wolf_shrinkage(pooled, assume_centered=True))
    _, singular, directions = np.linalg.svd(pooled, full_matrices=False)
    variances = singular**2 / len(pooled)
    average = variances.sum() / features.shape[1]
    kept = min(_DIRECTIONS, len(variances) - 1)
    # The directions that are not kept share their mean variance, so that the trace stays Ledoit and Wolf's.
    rest = shrinkage * average + (1 - shrinkage) * variances[kept:].sum() / max(features.shape[1] - kept, 1)
    rest = max(rest, 1e-12)
    leading = shrinkage * average + (1 - shrinkage) * variances[:kept]
    return FeatureModel(
        means.astype(np.float32),
        directions[:kept].astype(np.float32),
        (1 / leading - 1 / rest).astype(np.float32),
        float(1 / rest),
    )
