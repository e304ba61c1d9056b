"""Feature squeezing (Xu, Evans, Qi 2018, arXiv 1704.01155): how far the answer moves when detail is squeezed out.

Squeezers work on prepared pixels in [0, 1], each image for itself. The paper's best set for ImageNet is the default:
five bits, a 2 x 2 median and non-local means (11, 3, 4). The largest L1 distance of the probabilities counts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed
from dicomguard.scoring import head

Squeezer = Callable[[Tensor], Tensor]
"""(N, planes, H, W) in [0, 1] to the same shape."""
LogOdds = Callable[[Tensor], NDArray[np.float64]]
"""Prepared pixels to log-odds (N, questions, classes): `lambda pixels: scorer.answer(pixels).log_odds`."""


def bit_depth(pixels: Tensor, bits: int) -> Tensor:
    """Round to 2^bits gray levels."""
    steps = float((1 << bits) - 1)
    return (pixels * steps).round() / steps


def median(pixels: Tensor, side: int) -> Tensor:
    """The median of side x side pixels of each plane; edges are mirrored. Of an even number the upper middle one."""
    found = ndimage.median_filter(pixels.numpy(), size=(1, 1, side, side), mode="reflect")
    return torch.from_numpy(found)


def non_local_means(pixels: Tensor, search: int = 11, patch: int = 3, strength: float = 4 / 255) -> Tensor:
    """Each pixel as the mean of those in its window, weighted by exp(-(patch distance)^2 / strength^2).

    Buades, Coll, Morel 2005; patches are compared by their mean squared difference over all planes.
    """
    reach = search // 2
    padded = F.pad(pixels, (reach,) * 4, mode="reflect")
    rows, columns = pixels.shape[-2:]
    total, weights = torch.zeros_like(pixels), torch.zeros_like(pixels[:, :1])
    for down in range(search):
        for right in range(search):
            moved = padded[..., down : down + rows, right : right + columns]
            apart = ((moved - pixels) ** 2).mean(1, keepdim=True)
            apart = F.avg_pool2d(apart, patch, stride=1, padding=patch // 2, count_include_pad=False)
            weight = torch.exp(-apart / strength**2)
            total += weight * moved
            weights += weight
    return total / weights


def jpeg(pixels: Tensor, quality: int = 75) -> Tensor:
    """Eight bits through a baseline JPEG and back."""
    planes = (pixels.clamp(0, 1) * 255).round().byte().numpy()
    return torch.from_numpy(np.stack([_through_jpeg(one, quality) for one in planes])).float().div(255)


def _through_jpeg(planes: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    picture = PIL.Image.fromarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    back = np.asarray(PIL.Image.open(file))
    return back[np.newaxis] if back.ndim == 2 else back.transpose(2, 0, 1)


SQUEEZERS: Mapping[str, Squeezer] = {
    "5 bits": partial(bit_depth, bits=5),
    "median 2x2": partial(median, side=2),
    "median 3x3": partial(median, side=3),
    "non-local means": non_local_means,
    "JPEG 75": jpeg,
}
JOINT = ("5 bits", "median 2x2", "non-local means")


class FeatureSqueezing:
    """Score: the largest L1 distance, over squeezers and questions, between the probabilities before and after.

    Costs one forward pass for each squeezer. Nothing is learned.
    """

    def __init__(self, log_odds: LogOdds, squeezers: tuple[str, ...] = JOINT, *, chunk: int = 16) -> None:
        """Raises DicomguardError for an unknown squeezer."""
        if unknown := [name for name in squeezers if name not in SQUEEZERS]:
            raise DicomguardError(f"there is no squeezer {unknown[0]!r}.", advice=f"Use {', '.join(SQUEEZERS)}.")
        self.name = "feature squeezing" if squeezers == JOINT else f"feature squeezing ({', '.join(squeezers)})"
        self._log_odds = log_odds
        self._squeezers = squeezers
        self._chunk = chunk

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:
        """Nothing is learned."""

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        if not len(sight):
            return np.empty(0)
        before = head.probabilities(sight.log_odds)
        found = [self._moved(sight.pixels, SQUEEZERS[name], before) for name in self._squeezers]
        return np.asarray(np.max([failed_closed(values) for values in found], 0))

    def _moved(self, pixels: Tensor, squeezer: Squeezer, before: Scores) -> Scores:
        after = np.concatenate([self._log_odds(squeezer(part)) for part in torch.split(pixels, self._chunk)])
        return np.asarray(np.abs(before - head.probabilities(after)).sum(-1).max(-1))
