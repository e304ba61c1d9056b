"""Attacks that know that they will be stored: every picture is seen as the integers of a file would show it.

An attack that is rounded afterwards may die of it. Here the margin is that of the rounded picture, and the gradient
passes the rounding as if it were not there (straight-through; Athalye et al. 2018, BPDA). What comes out still has to
be forged (`attacks.forge`), which rounds in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dicomguard.attacks.margins import Margins
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.found import wide
from dicomguard.lab.attacks.noise_check import Prepare
from dicomguard.pixels.image import Image, StoredMapping
from dicomguard.scoring.preprocess import Preprocess


def rounding(images: Sequence[Image]) -> Prepare:
    """Presentation pixels (n, 1, H, W) at places (n,) of `images`, rounded to what their files can hold.

    Raises:
        DicomguardError: an image's way from stored values to presentation is not affine; see `attacks.forge`.

    """
    mappings = [_mapping(image) for image in images]

    def column(name: str) -> Tensor:
        return torch.tensor([float(getattr(mapping, name)) for mapping in mappings], dtype=torch.float64)

    scale, offset, low, high = (wide(column(name)) for name in ("scale", "offset", "low", "high"))

    def rounded(current: Tensor, which: Tensor) -> Tensor:
        places = which.cpu()
        own = [part[places].to(current.device) for part in (scale, offset, low, high)]
        with torch.no_grad():
            stored = (current.double() / own[0] + own[1]).round().maximum(own[2]).minimum(own[3])
            moved = ((stored - own[1]) * own[0]).clamp(0, 1).to(current.dtype) - current
        return current + moved

    return rounded


def on_stored(margins: Margins, images: Sequence[Image]) -> Margins:
    """The same margins of presentation pixels, each rounded as its image's file will be.

    Raises:
        DicomguardError: see `rounding`.

    """
    rounded = rounding(images)
    return lambda current, which: margins(rounded(current, which), which)


def as_node(preprocess: Preprocess, images: Sequence[Image] | None = None) -> Prepare:
    """What the node makes of presentation pixels before it adds noise; with `images`, of the files they become.

    Raises:
        DicomguardError: see `rounding`.

    """
    rounded = None if images is None else rounding(images)

    def prepare(current: Tensor, which: Tensor) -> Tensor:
        shown = current if rounded is None else rounded(current, which)
        return torch.stack([preprocess(one) for one in shown])

    return prepare


def _mapping(image: Image) -> StoredMapping:
    if image.mapping is None or image.pixels.shape[0] != 1:
        raise DicomguardError(
            f"frame {image.frame} cannot be forged: {image.voi} on {image.photometric_interpretation} has no inverse.",
            advice="Use a grayscale image with a linear window or none.",
        )
    return image.mapping
