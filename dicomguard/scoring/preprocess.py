"""From an `Image` at native resolution to the tensor a network was trained on: MONAI transforms by name, all of them
deterministic and differentiable, so that an attack's gradient reaches the presentation pixels.

Mean and standard deviation are not here: noise is added to the unit range, and normalised afterwards (`classifier`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import monai.transforms
import torch
from monai.data import set_track_meta
from torch import Tensor

from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.pixels.presentation import LUMINANCE

# Each name with the arguments it may carry. Resize averages areas by default: with non-negative weights that sum to one
# a change of at most eps per pixel stays at most eps, which bicubic and Lanczos filters do not promise.
_ALLOWED: Mapping[str, frozenset[str]] = {
    "Resize": frozenset({"spatial_size", "mode", "anti_aliasing", "size_mode"}),
    "CenterSpatialCrop": frozenset({"roi_size"}),
    "ResizeWithPadOrCrop": frozenset({"spatial_size", "value"}),
    "DivisiblePad": frozenset({"k"}),
}
_MODES = frozenset({"area", "bilinear", "nearest"})


class Preprocess:
    """The chain of one bundle: planes, clip to [0, 1], then the named transforms."""

    def __init__(self, planes: int, transforms: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """`transforms`: (MONAI class name, literal arguments) pairs in order.

        Raises:
            BundleError: a name or an argument is not on the allow list, or MONAI refuses it.

        """
        self.planes = planes
        self._chain = [_construct(name, arguments) for name, arguments in transforms]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Shape (C, H, W) in presentation values, C = 1 or 3, to (planes, H', W') in [0, 1]. Gradients pass through."""
        pixels = self._to_planes(pixels.float()).clamp(0, 1)
        for transform in self._chain:
            pixels = transform(pixels)
        return torch.as_tensor(pixels).clamp(0, 1)

    def images(self, images: Sequence[Image]) -> Tensor:
        """Shape (N, planes, H', W'): several images of any size."""
        return torch.stack([self(torch.from_numpy(image.pixels)) for image in images])

    def _to_planes(self, pixels: Tensor) -> Tensor:
        if pixels.shape[0] == self.planes:
            return pixels
        if self.planes == 1:
            weights = pixels.new_tensor(LUMINANCE.tolist()).view(3, 1, 1)
            return (pixels * weights).sum(0, keepdim=True)
        return pixels.expand(self.planes, -1, -1)


def _construct(name: str, arguments: Mapping[str, Any]) -> Any:
    if name not in _ALLOWED:
        raise BundleError(f"transform {name} is not on the allow list.", advice=f"Use one of {', '.join(_ALLOWED)}.")
    unknown = sorted(arguments.keys() - _ALLOWED[name])
    if unknown:
        raise BundleError(
            f"transform {name}: argument {unknown[0]} is not allowed.",
            advice=f"It takes {', '.join(sorted(_ALLOWED[name]))}.",
        )
    if arguments.get("mode", "area") not in _MODES:
        raise BundleError(f"transform {name}: mode must be one of {', '.join(sorted(_MODES))}.")
    # Plain tensors in, plain tensors out: MONAI's metadata would only slow the chain down.
    set_track_meta(False)
    try:
        return cast("Any", getattr(monai.transforms, name)(**arguments))
    except (TypeError, ValueError) as error:
        raise BundleError(f"transform {name} does not accept {dict(arguments)}: {error}.") from error
