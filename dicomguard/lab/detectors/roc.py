"""Areas under ROC curves, with intervals that know which clean and which attacked file are the same picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dicomguard.enrol.ranks import auroc

Scores = NDArray[np.float64]

_BOOTSTRAPS = 2000
_TOGETHER = 200  # resamples whose weights are held at once


def auroc_interval(
    clean: ArrayLike, attacked: ArrayLike, clean_keys: Sequence[str], attacked_keys: Sequence[str], *, seed: int = 2026
) -> dict[str, Any]:
    """The area and its 95 % bootstrap interval: pictures are drawn, and bring their clean and attacked files along.

    None in place of numbers where either side is empty. `clean`, `attacked`: how many files of each there are.
    """
    negatives, positives = _checked(clean), _checked(attacked)
    area = auroc(negatives, positives)
    counts = {"clean": len(negatives), "attacked": len(positives)}
    if area is None:
        return {"area": None, "interval": None, **counts}
    drawn = _resampled(negatives, positives, clean_keys, attacked_keys, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"area": area, "interval": [float(low), float(high)], **counts}


def _resampled(
    negatives: Scores, positives: Scores, clean_keys: Sequence[str], attacked_keys: Sequence[str], seed: int
) -> Scores:
    """The areas over draws of pictures; draws that leave a side empty are drawn anew."""
    keys = {key: place for place, key in enumerate(dict.fromkeys([*clean_keys, *attacked_keys]))}
    own, others = (np.array([keys[key] for key in side]) for side in (clean_keys, attacked_keys))
    if (len(negatives), len(positives)) != (len(own), len(others)):
        raise ValueError("as many keys as scores are needed")
    wins = (positives > negatives[:, None]) + 0.5 * (positives == negatives[:, None])
    rng = np.random.default_rng(seed)
    areas: list[Scores] = []
    have = 0
    while have < _BOOTSTRAPS:
        drawn = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=_TOGETHER).astype(np.float64)
        weights, against = drawn[:, own], drawn[:, others]
        total = weights.sum(1) * against.sum(1)
        kept = total > 0
        areas.append((((weights @ wins) * against).sum(1)[kept]) / total[kept])
        have += int(kept.sum())
    return np.concatenate(areas)[:_BOOTSTRAPS]


def _checked(scores: ArrayLike) -> Scores:
    found = np.asarray(scores, np.float64)
    if np.isnan(found).any():
        raise ValueError("a score is NaN; a detector that cannot see a file scores infinity")
    return found
