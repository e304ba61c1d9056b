"""A Gaussian whose covariance is shrunk as Ledoit and Wolf 2004 prescribe: there are more features than files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class ShrunkGaussian:
    """(1 - s) S + s (trace S / F) I of centred features (N, F), exactly, in the directions that S has (rank, F).

    `inner`: (rank,) what one over a direction's variance adds to `outer`, one over the variance of all others.
    """

    basis: NDArray[np.float64]
    inner: NDArray[np.float64]
    outer: float

    @classmethod
    def fit(cls, residuals: NDArray[np.float64]) -> Self:
        """From (N, F), each row less the mean of its class."""
        from sklearn.covariance import ledoit_wolf_shrinkage  # noqa: PLC0415 - what only sees noise starts faster

        shrinkage = float(ledoit_wolf_shrinkage(residuals, assume_centered=True))
        _, singular, directions = np.linalg.svd(residuals, full_matrices=False)
        variances = singular**2 / len(residuals)
        outside = max(shrinkage * variances.sum() / residuals.shape[1], _FLOOR)
        inside = np.maximum((1 - shrinkage) * variances + outside, _FLOOR)
        return cls(directions, 1 / inside - 1 / outside, 1 / outside)

    def distances(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared Mahalanobis distances of (N, F): (N,). NaN where a feature is."""
        along = residuals @ self.basis.T
        found: NDArray[np.float64] = self.outer * (residuals**2).sum(1) + (along**2) @ self.inner
        return np.where(np.isfinite(residuals).all(1), found, np.nan)
