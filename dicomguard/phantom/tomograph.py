"""A CT scanner's noise on planes of Hounsfield units, and 12 stored bits.

Filtered back-projection lets through little of the lowest and none of the highest frequencies, so that neighbouring
pixels and neighbouring, overlapping slices share their noise; it is stronger in the middle of a body than at its skin.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

INTERCEPT = -1024
# Weights of a slice's own noise field and of its two neighbours': slices 1.5 increments thick overlap that much.
_OVERLAP = np.array([0.5, 1.0, 0.5], dtype=np.float32) / np.float32(np.sqrt(1.5))
# Where the transfer function rolls off, in cycles a pixel of a picture with 512 pixels a side.
_ROLL_OFF = 0.22


class Noise:
    """Noise fields of one series. Field k is a function of the key and k alone, whichever slices are asked for."""

    def __init__(self, key: list[int], rows: int, columns: int) -> None:
        self._key = key
        self._size = rows, columns
        self._transfer = _transfer(rows, columns)
        self._strength = _strength(rows, columns)
        self._field = functools.lru_cache(maxsize=4)(self._filtered)

    def at(self, index: int) -> NDArray[np.float32]:
        """Shape (rows, columns), standard deviation about 1: the noise of slice `index` >= 0."""
        fields = (self._field(index + offset) for offset in range(3))
        total: NDArray[np.float32] = sum(
            (weight * field for weight, field in zip(_OVERLAP, fields, strict=True)),
            start=np.zeros(self._size, dtype=np.float32),
        )
        return total * self._strength

    def _filtered(self, index: int) -> NDArray[np.float32]:
        white = np.random.default_rng([*self._key, index]).standard_normal(self._size, dtype=np.float32)
        filtered = np.fft.irfft2(np.fft.rfft2(white) * self._transfer, s=self._size)
        return np.asarray(filtered, dtype=np.float32)


def _transfer(rows: int, columns: int) -> NDArray[np.float32]:
    """Ramp times a roll-off, scaled so that white noise of variance 1 keeps it."""
    per_pixel = 512 / max(rows, columns)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None, :]) / min(per_pixel, 1.0)
    transfer = (0.02 + frequency) * np.exp(-((frequency / (_ROLL_OFF * max(per_pixel, 1.0) ** 0.5)) ** 2))
    doubled = np.full(transfer.shape[1], 2.0)
    doubled[0] = 1.0
    if columns % 2 == 0:
        doubled[-1] = 1.0
    power = float((transfer**2 * doubled).sum()) / (rows * columns)
    return np.asarray(transfer / np.sqrt(power), dtype=np.float32)


def _strength(rows: int, columns: int) -> NDArray[np.float32]:
    v, u = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    return np.asarray(0.55 + 0.65 * np.exp(-(u * u + v * v) / 0.45), dtype=np.float32)


def store(hounsfield: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Stored values, 12 bits: HU - `INTERCEPT`, rounded and clipped."""
    return np.clip(np.rint(hounsfield - INTERCEPT), 0, 4095).astype(np.uint16)
