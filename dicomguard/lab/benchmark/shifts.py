"""Clean files as another scanner, archive or reading room would have made them: false alarms under natural change.

Each takes presentation values (C, H, W) in [0, 1] and gives such values back; they are then stored as any file is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float32]
Shift = Callable[[Picture, int], Picture]
"""`shift(picture, seed)`; only noise draws by the seed."""


def _each(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Shift:
    """The same on every plane."""

    def shift(picture: Picture, seed: int) -> Picture:
        del seed
        return np.clip(np.stack([change(plane) for plane in picture]), 0, 1).astype(np.float32)

    return shift


def coded(picture: Picture, seed: int = 0, *, kind: str, options: Mapping[str, object]) -> Picture:
    """Written to a picture file of 8 bits and read again. `kind`, `options`: for Pillow."""
    del seed
    pixels = np.rint(picture * 255).astype(np.uint8)
    image = PIL.Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    with PIL.Image.open(buffer) as back:
        found = np.asarray(back, np.float32) / np.float32(255)
    planes = found[np.newaxis] if found.ndim == 2 else np.moveaxis(found, -1, 0)
    return np.ascontiguousarray(planes, np.float32)


def _resized(plane: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    rows, columns = plane.shape
    image = PIL.Image.fromarray(plane)
    small = image.resize((round(columns * share), round(rows * share)), PIL.Image.Resampling.BILINEAR)
    return np.asarray(small.resize((columns, rows), PIL.Image.Resampling.BILINEAR), np.float32)


def _noisy(picture: Picture, seed: int, *, sigma: float) -> Picture:
    drawn = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(picture + drawn, 0, 1).astype(np.float32)


def _blurred(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(plane, 1.0), np.float32)


def _same(picture: Picture, seed: int) -> Picture:
    del seed
    return picture


UNCHANGED = "stored again, unchanged"
"""No change at all: its false alarms are those of clean files, or storing is what is detected."""

SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {
        UNCHANGED: _same,
        "JPEG, quality 75": partial(coded, kind="JPEG", options={"quality": 75}),
        "JPEG, quality 40": partial(coded, kind="JPEG", options={"quality": 40}),
        "JPEG 2000, 20 to 1": partial(
            coded, kind="JPEG2000", options={"quality_mode": "rates", "quality_layers": [20], "irreversible": True}
        ),
        "three quarters of the size and back": _each(partial(_resized, share=0.75)),
        "Gaussian noise, 1 %": partial(_noisy, sigma=0.01),
        "Gaussian noise, 3 %": partial(_noisy, sigma=0.03),
        "gamma 0.8": _each(lambda plane: plane**0.8),
        "gamma 1.25": _each(lambda plane: plane**1.25),
        "window moved by 5 %": _each(lambda plane: plane + np.float32(0.05)),
        "contrast 0.85": _each(lambda plane: np.float32(0.5) + np.float32(0.85) * (plane - np.float32(0.5))),
        "blurred, sigma 1 pixel": _each(_blurred),
    }
)
