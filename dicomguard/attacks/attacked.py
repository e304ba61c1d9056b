"""The result of every attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Attacked:
    """Result for a batch. `pixels` (N, C, H, W): the adversarial pictures, or the last tried where nothing flipped.

    `flipped` (N,) bool; `strength` (N,) the L-inf radius that flipped it, NaN where none did; `margin` (N,) of
    `pixels`, towards the answer before the attack: negative where it flipped. NaN: nothing was tried.
    """

    pixels: Tensor
    flipped: Tensor
    strength: Tensor
    margin: Tensor

    @classmethod
    def untried(cls, pixels: Tensor) -> Self:
        """Nothing has flipped yet."""
        nothing = pixels.new_full((len(pixels),), torch.nan)
        return cls(pixels.detach().clone(), torch.zeros_like(nothing, dtype=torch.bool), nothing, nothing.clone())

    def unflipped(self) -> Tensor:
        """The places in the batch that have not flipped, (n,) int64."""
        return (~self.flipped).nonzero()[:, 0]

    def record(self, which: Tensor, pixels: Tensor, margin: Tensor, *, radius: float, kappa: float = 0.0) -> Tensor:
        """Write what was found at places `which`; a flip is a margin below -kappa. Returns (n,): what has not flipped.

        Strict: a margin of exactly zero has not changed sides.
        """
        hit = margin < -kappa
        self.pixels[which] = pixels
        self.margin[which] = margin.to(self.margin)
        self.flipped[which] = hit
        self.strength[which] = torch.where(hit, radius, torch.nan).to(self.strength)
        return ~hit


def into_ball(moved: Tensor, clean: Tensor, radius: float) -> Tensor:
    """The nearest pixels that lie within `radius` of `clean` and in [0, 1]."""
    return moved.clamp(clean - radius, clean + radius).clamp(0, 1)


class RandomStarts:
    """Uniform offsets in [-1, 1) from one generator per image, so that neighbours in the batch change nothing."""

    def __init__(self, seeds: list[int], pixels: Tensor) -> None:
        """`seeds`: one for each image of `pixels` (N, C, H, W)."""
        if len(seeds) != len(pixels):
            raise ValueError(f"{len(pixels)} images need as many seeds, not {len(seeds)}")
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._pixels = pixels

    def inside(self, which: Tensor, radius: float) -> Tensor:
        """The next start for each place of `which`: uniform in its ball, cut to [0, 1]."""
        clean = self._pixels[which]
        shape = clean.shape[1:]
        offsets = [torch.rand(shape, generator=self._generators[place]) for place in which.tolist()]
        if not offsets:
            return clean
        return into_ball(clean + radius * (2 * torch.stack(offsets).to(clean) - 1), clean, radius)
