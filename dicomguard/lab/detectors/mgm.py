"""One Gaussian on the penultimate features, whatever the class.

Li, Zhu 2020, "Robust detection of adversarial attacks on medical images" (ISBI). Its covariance is shrunk here, because
clean files are fewer than features.
"""

from __future__ import annotations

import numpy as np

from dicomguard.lab.detectors.gaussian import ShrunkGaussian
from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed, require, require_features

_FILES = 20


class UnimodalGaussian:
    """Score: the squared Mahalanobis distance to all clean files, which falls as their likelihood rises."""

    def __init__(self) -> None:
        self.name = "MGM"
        self._mean: Scores = np.empty(0)
        self._law: ShrunkGaussian | None = None

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """See `sight.Detector`."""
        require(calibration, _FILES, self.name)
        require_features(calibration, self.name)
        self._mean = calibration.features.mean(0)
        self._law = ShrunkGaussian.fit(calibration.features - self._mean)

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        if self._law is None:
            raise ValueError(f"{self.name} is not fitted")
        return failed_closed(self._law.distances(sight.features - self._mean))
