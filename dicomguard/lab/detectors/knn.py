"""The distance to the k-th nearest clean file in feature space: no class, no law.

Sun, Ming, Zhu, Li 2022, "Out-of-distribution detection with deep nearest neighbors"; penultimate features, length one.
"""

from __future__ import annotations

import numpy as np

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed, require, require_features


class NearestNeighbours:
    """Score: the Euclidean distance between the file's features and those of the k-th nearest clean one."""

    def __init__(self, k: int = 10) -> None:
        if k < 1:
            raise ValueError("k is at least 1")
        self.name = f"kNN, k = {k}"
        self._k = k
        self._clean: Scores = np.empty((0, 0))

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """See `sight.Detector`."""
        require(calibration, self._k + 1, self.name)
        require_features(calibration, self.name)
        if not np.linalg.norm(calibration.features, axis=1).all():
            raise DicomguardError(
                f"{self.name}: the features of a clean file are all zero.", advice="Check the victim's weights."
            )
        self._clean = _unit(calibration.features)

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`; a file without any feature is as far as can be."""
        if not len(self._clean):
            raise ValueError(f"{self.name} is not fitted")
        cosines = _unit(sight.features) @ self._clean.T
        kth = np.sort(cosines, 1)[:, -self._k] if len(sight) else np.empty(0)
        return failed_closed(np.sqrt(np.maximum(2 - 2 * kth, 0)))


def _unit(features: Scores) -> Scores:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(features / length)
