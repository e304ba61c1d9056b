"""A frame's stored values, area-averaged to 64 x 64: what the certified guard looks at.

Each pixel of the miniature is a weighted mean of stored pixels with weights that are not negative and sum to one. So a
change of at most eps in every stored pixel changes no pixel of the miniature by more than eps, whatever the native
size: the averaging is a contraction in L-inf, which bicubic, Lanczos and integer resampling are not.

No window is applied: the header's window is the sender's to choose, and would scale the budget with it. Rescale Slope
and Intercept are (PS3.3 C.11.1.2), because a fixed range of a CT is one of Hounsfield units.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SIDE = 64
_STRIP: Final = 128  # rows that are converted at once: a mammogram in float64 would double what decoding needs


@dataclass(frozen=True, slots=True)
class Miniature:
    """Shape (64, 64), in modality units, bright = large. `low`, `high`: what Bits Stored can hold, likewise.

    In double precision, because an intercept may be far larger than the contrast beside it. A colour frame is reduced
    to its luminance (again a mean with weights that sum to one), in 0..1. Behind a Modality LUT, which has no slope,
    the values are stored ones and `has_table` is true.
    """

    values: NDArray[np.float64]
    low: float
    high: float
    has_table: bool = False


@functools.lru_cache(maxsize=16)
def area_weights(size: int) -> NDArray[np.float32]:
    """Row-stochastic (64, size): entry [i, j] is the share of cell i that pixel j covers."""
    edges = np.linspace(0.0, size, SIDE + 1)
    pixels = np.arange(size, dtype=np.float64)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    found: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    found.flags.writeable = False  # shared by all frames of this size
    return found


def averaged(plane: NDArray[Any]) -> NDArray[np.float64]:
    """Shape (H, W) of any size to (64, 64). Frames smaller than 64 pixels are repeated, which contracts too."""
    down, across = (_exact(area_weights(size)) for size in plane.shape)
    found = np.zeros((SIDE, SIDE))
    for start in range(0, len(plane), _STRIP):
        strip = plane[start : start + _STRIP].astype(np.float64)
        found += down[:, start : start + _STRIP] @ (strip @ across.T)
    return found


def _exact(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows that sum to one in double precision: rounded weights are still shares, but an offset would show the sum."""
    wide = weights.astype(np.float64)
    return np.asarray(wide / wide.sum(1, keepdims=True))
