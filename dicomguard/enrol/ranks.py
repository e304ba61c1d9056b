"""How well two groups of scores are told apart, by their ranks alone: scores may be infinite, and may tie."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def auroc(clean: ArrayLike, attacked: ArrayLike) -> float | None:
    """Area under the ROC curve: P(an attacked image scores above a clean one), ties one half (Mann, Whitney 1947).

    None where either side is empty; NaN where a score is NaN, which the caller has refused or given a rank before.
    """
    below, above = np.asarray(clean, np.float64), np.asarray(attacked, np.float64)
    n, m = len(below), len(above)
    if not n or not m:
        return None
    ranks = stats.rankdata(np.concatenate([below, above]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
