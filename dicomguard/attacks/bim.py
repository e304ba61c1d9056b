"""The basic iterative method, stopped at the first flip (Kurakin et al. 2016; the noise-consistency paper, 2.2).

For each strength a of a ladder: ten steps of .001 along the sign of the gradient, projected onto the L-inf ball of
radius a around the image, checked after every step; the first flipped iterate is the answer. Steps are taken on the
presentation pixels at native resolution, through the bundle's own preprocessing; the gradient is that of the margin,
which has the sign of the cross-entropy's without its saturation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LADDER = tuple(round(0.001 * rung, 3) for rung in range(1, 11))


@dataclass(frozen=True, slots=True)
class Ladder:
    """Strengths and step as fractions of the presentation range.

    The paper's attack has kappa 0. A larger `kappa` goes on until the wrong margin exceeds it, so that the flip
    survives rounding to stored bits: another attack, to be named as such.
    """

    strengths: tuple[float, ...] = LADDER
    step: float = 0.001
    steps: int = 10
    kappa: float = 0.0


@dataclass(frozen=True, slots=True)
class Attacked:
    """Result for a batch. `pixels` (N, C, H, W): the first flipped iterate, or the last one where nothing flipped.

    `flipped` (N,) bool; `strength` (N,) the rung that flipped it, NaN where none did; `margin` (N,) the margin towards
    the answer before the attack, negative where it flipped.
    """

    pixels: Tensor
    flipped: Tensor
    strength: Tensor
    margin: Tensor


def early_stopped_bim(logits: Callable[[Tensor], Tensor], pixels: Tensor, ladder: Ladder | None = None) -> Attacked:
    """Attack every image of a batch away from the class that `logits` gives it now.

    `pixels`: (N, C, H, W) in [0, 1]; `logits` maps any sub-batch of such pixels differentiably to (n,). Only images
    that have not flipped yet are computed. Each rung starts again from the image itself.
    """
    ladder = ladder or Ladder()
    with torch.no_grad():
        sign = torch.where(logits(pixels) >= 0, 1.0, -1.0)
    strength = torch.full((len(pixels),), float("nan"))
    found = Attacked(pixels.clone(), torch.zeros(len(pixels), dtype=torch.bool), strength, strength.clone())
    for radius in ladder.strengths:
        _rung(logits, pixels, sign, found, radius=radius, ladder=ladder)
    return found


def _rung(
    logits: Callable[[Tensor], Tensor], clean: Tensor, sign: Tensor, found: Attacked, *, radius: float, ladder: Ladder
) -> None:
    """One strength, on the images that have not flipped; writes into `found`."""
    active = (~found.flipped).nonzero()[:, 0]
    current = clean[active]
    for taken in range(ladder.steps + 1):
        if not len(active):
            return
        # One forward pass serves both the check of this iterate and the gradient for the next.
        current = current.detach().requires_grad_()
        with torch.enable_grad():
            margins = sign[active] * logits(current)
        if taken:
            found.pixels[active] = current.detach()
            found.margin[active] = margins.detach()
            # Strict: a margin of exactly zero has not changed sides.
            found.flipped[active] = margins.detach() < -ladder.kappa
            found.strength[active[found.flipped[active]]] = radius
        if taken == ladder.steps:
            return
        (gradient,) = torch.autograd.grad(margins.sum(), current)
        remains = ~found.flipped[active]
        active = active[remains]
        moved = current.detach()[remains] - ladder.step * gradient[remains].sign()
        current = moved.clamp(clean[active] - radius, clean[active] + radius).clamp(0, 1)
