"""A flat-panel detector: quantum noise that depends on the signal, its blur, electronic noise, 12 bits, log curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Scatter lifts the shadows: share of the open beam that arrives everywhere behind the body.
_SCATTER = 0.006
# Electronic noise, in quanta (standard deviation).
_ELECTRONIC = 6.0
# Stored value = _ZERO + _PER_E * attenuation: air is dark, spine is bright, neither end of the 12 bits is reached.
_ZERO, _PER_E = 260.0, 820.0


def expose(attenuation: NDArray[np.float32], dose: float, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Stored values, 12 bits, shape (rows, columns), for an open beam of `dose` quanta a pixel.

    Quanta arrive with variance equal to their mean (Gaussian for the hundreds and more that arrive here); light
    spreads to the neighbouring pixels, so quantum noise is correlated and electronic noise is not.
    """
    mean = np.float32(dose) * (np.exp(-attenuation) + np.float32(_SCATTER))
    quantum = _spread(np.sqrt(mean) * rng.standard_normal(mean.shape, dtype=np.float32))
    arrived = mean + quantum + np.float32(_ELECTRONIC) * rng.standard_normal(mean.shape, dtype=np.float32)
    seen = -np.log(np.maximum(arrived, np.float32(1.0)) / np.float32(dose * (1.0 + _SCATTER)))
    return np.clip(np.rint(_ZERO + _PER_E * seen), 0, 4095).astype(np.uint16)


def _spread(noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share light with the neighbours: kernel (1, 4, 1)/6 along each axis."""
    for axis in (0, 1):
        noise = (noise * 4 + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) * np.float32(1 / 6)
    return noise
