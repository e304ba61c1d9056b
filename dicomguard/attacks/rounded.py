"""An adversarial picture as the image that a node would read: before it is stored, and what is left of it then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomguard.attacks.forge import interleaved, presentation, stored_values
from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import Miniature, averaged
from dicomguard.pixels.presentation import LUMINANCE


def rounded(image: Image, adversarial: NDArray[np.float32]) -> Image:
    """`adversarial` (C, H, W) in presentation values, rounded to stored integers, as an image with its miniature.

    The same as forging a file and reading it back, without the file. Pixels outside the window, which an attack in
    presentation values does not reach, count as stored at its edge.

    Raises:
        DicomguardError: the way from stored values to presentation is not affine; see `forge.stored_values`.

    """
    before = _stored(image)
    after = stored_values(image, adversarial, before)
    return replace(image, pixels=presentation(image, after), miniature=_moved(image, after - before))


def unrounded(image: Image, adversarial: NDArray[np.float32]) -> Image:
    """`adversarial` (C, H, W) in presentation values as an image with its miniature, as if files held floats."""
    change = interleaved(adversarial.astype(np.float64) - image.pixels)
    scale = 1.0 if image.mapping is None else image.mapping.scale
    return replace(image, pixels=adversarial, miniature=_moved(image, change / scale))


def _stored(image: Image) -> NDArray[np.int64]:
    """Shape (H, W) of a grayscale image, (H, W, 3) of an RGB one."""
    mapping = image.mapping
    pixels = interleaved(image.pixels)
    if mapping is None:
        return np.zeros(pixels.shape, np.int64)  # `stored_values` then says why it cannot be done
    stored = np.rint(pixels.astype(np.float64) / mapping.scale + mapping.offset)
    found: NDArray[np.int64] = np.clip(stored, mapping.low, mapping.high).astype(np.int64)
    return found


def _moved(image: Image, change: NDArray[Any]) -> Miniature | None:
    """The miniature after a change of stored values: averaging is linear, and its slope is that of its two ends."""
    small, mapping = image.miniature, image.mapping
    if small is None or mapping is None:
        return small
    slope = (small.high - small.low) / max(mapping.high - mapping.low, 1)
    if change.ndim == 3:  # the miniature of a colour frame is its luminance
        change = change @ LUMINANCE
    # In a miniature bright is large; a negative scale says that large stored values are dark.
    moved = averaged(change.astype(np.float32)) * np.float32(slope if mapping.scale > 0 else -slope)
    return Miniature(small.values + moved, small.low, small.high)
