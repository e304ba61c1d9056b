"""The pixel values of one frame as the scorer sees them, with where they came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomguard.pixels.miniature import Miniature


@dataclass(frozen=True, slots=True)
class StoredMapping:
    """The affine part of stored value -> presentation value: `p = clip((stored - offset) * scale, 0, 1)`.

    `scale` is negative for MONOCHROME1. `low` and `high` are the smallest and largest stored value that Bits Stored and
    Pixel Representation allow (PS3.3 C.7.6.3.1).
    """

    scale: float
    offset: float
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Image:
    """One frame in presentation values: float32, shape (C, H, W), C = 1 or 3, 0 = black, 1 = white.

    Modality LUT or rescale, VOI (first window or LUT; without one the full range of Bits Stored) and MONOCHROME1
    inversion have been applied (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2; PS3.4 Annex N.2). Never scaled by the image's own
    minimum and maximum, which an attacker moves. `mapping` is None where the way back is not affine (LUTs, a step or
    sigmoid VOI, palette and YBR colour). `voi` says in words what was applied. `miniature` is for the certified guard;
    None behind a palette, and in images made by hand.
    """

    pixels: NDArray[np.float32]
    frame: int
    bits_stored: int
    photometric_interpretation: str
    voi: str
    mapping: StoredMapping | None
    miniature: Miniature | None = None
