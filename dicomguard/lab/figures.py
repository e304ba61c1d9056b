"""Detection figures with exact intervals, as they stand in model cards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dicomguard.enrol.intervals import clopper_pearson


def beta_binomial_band(calibrated: int, alpha: float, tested: int, confidence: float = 0.95) -> tuple[int, int]:
    """How many of `tested` clean images a split-conformal threshold flags, as a central interval of counts.

    With n calibration images and k = floor(alpha (n + 1)) allowed above the threshold, the false-alarm rate is
    Beta(k, n + 1 - k) over calibrations, and the count beta-binomial (Vovk 2012).
    """
    k = max(calibrated + 1 - math.ceil((calibrated + 1) * (1 - alpha)), 1)
    law = stats.betabinom(tested, k, calibrated + 1 - k)
    tail = (1 - confidence) / 2
    return int(law.ppf(tail)), int(law.ppf(1 - tail))


def share(flags: Sequence[bool] | NDArray[np.bool_]) -> dict[str, Any]:
    """Hits, count, rate and its exact 95 % interval; rate None where there is nothing to count."""
    hits, count = int(np.sum(flags)), len(flags)
    if count == 0:
        return {"hits": 0, "count": 0, "rate": None, "interval": None}
    low, high = clopper_pearson(hits, count)
    return {"hits": hits, "count": count, "rate": hits / count, "interval": [low, high]}


def clustered(
    flags: Sequence[bool] | NDArray[np.bool_], clusters: Sequence[str], *, draws: int = 2000, seed: int = 2026
) -> dict[str, Any]:
    """As `share`, where flags of one cluster (a picture before and after an attack, a patient) go together.

    The interval is a percentile bootstrap over clusters. Where all clusters have the same rate, of which a bootstrap
    would say that there is no doubt, it allows for as many clusters of another rate as none among so many leaves room
    for (the exact 95 % bound): as wide as that of independent flags at 0 and 1, and narrow in between.
    """
    found = share(np.asarray(flags, bool))
    if not len(flags):
        return {**found, "clusters": 0}
    return {**found, **_resampled(np.asarray(flags, np.float64), clusters, 0.0, draws, seed)}


def clustered_mean(
    values: NDArray[np.float64], clusters: Sequence[str], *, draws: int = 2000, seed: int = 2026
) -> dict[str, Any]:
    """The mean of differences from -1 to 1 with its interval, as `clustered`."""
    if not len(values):
        return {"mean": None, "interval": None, "count": 0, "clusters": 0}
    return {
        "mean": float(values.mean()),
        "count": len(values),
        **_resampled(values, clusters, -1.0, draws, seed),
    }


def _resampled(
    values: NDArray[np.float64], clusters: Sequence[str], least: float, draws: int, seed: int
) -> dict[str, Any]:
    """The interval of a mean of values from `least` to 1 over clusters, and how many those are."""
    if len(values) != len(clusters):
        raise ValueError("as many clusters as flags are needed")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    sizes, sums = np.bincount(member), np.bincount(member, values)
    count = len(sizes)
    if np.ptp(sums / sizes) == 0:
        _, other = clopper_pearson(0, count)
        mean = float(sums[0] / sizes[0])
        low, high = mean - (mean - least) * other, mean + (1 - mean) * other
    else:
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
        low, high = (float(bound) for bound in np.quantile(drawn @ sums / (drawn @ sizes), [0.025, 0.975]))
    return {"interval": [low, high], "clusters": count}


def worded(found: dict[str, Any]) -> str:
    """`.953 (286/300, 95 % interval .923-.974)`."""
    if found["rate"] is None:
        return "none to count"
    low, high = found["interval"]
    return f"{found['rate']:.3f} ({found['hits']}/{found['count']}, 95 % interval {low:.3f}-{high:.3f})"
