"""Descent on any loss inside an L-inf ball, with momentum and a step that falls: what the adaptive attacks share.

Those that match something need precision more than reach, so the step falls linearly to a tenth, and the gradient goes
into a momentum (MI-FGSM, Dong et al. 2018), which averages the noise of a stochastic loss over steps as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked, RandomStarts, into_ball
from dicomguard.attacks.margins import CHUNK
from dicomguard.errors import DicomguardError

Loss = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""`loss(pixels, which, step)` -> losses (n,) and margins (n,), of pixels (n, C, H, W) at places `which` (n,).

Differentiable in `pixels`. A stochastic loss draws from seeds of its places and of the step, so that neighbours in the
batch make no difference. Margins are those of `attacks.margins`: negative where the answer has changed.
"""


@dataclass(frozen=True, slots=True)
class Descent:
    """`eps` in fractions of the presentation range; the first step is `relative_step` of it.

    An image whose loss is below `enough` has what it wants and is left alone. `random_start`: from a random point of
    the ball instead of the image itself.
    """

    eps: float = 0.008
    steps: int = 60
    relative_step: float = 0.2
    momentum: float = 0.75
    random_start: bool = False
    enough: float = 0.0


def descend(
    loss: Loss,
    pixels: Tensor,
    seeds: Sequence[int],
    descent: Descent | None = None,
    *,
    exact: bool = False,
    chunk: int = CHUNK,
) -> Attacked:
    """Of the iterates that flipped the one with the lowest loss, where the loss is `exact`: the same at every step.

    Of a stochastic loss, whose values at two steps do not compare, the latest, which the falling step has brought
    nearest to what is wanted. `seeds`: one for each image. `strength` of the result is eps where it flipped.

    Raises:
        DicomguardError: a loss, a margin or a gradient is not a finite number.

    """
    descent = descent or Descent()
    starts = RandomStarts(list(seeds), pixels)
    found = Attacked.untried(pixels)
    which = found.unflipped()
    current = starts.inside(which, descent.eps) if descent.random_start else pixels.detach()
    speed = torch.zeros_like(found.pixels)
    lowest = torch.full_like(found.margin, torch.inf)
    for step in range(descent.steps + 1):
        if not len(which):
            break
        value, margin, gradient = _slopes(loss, current, which, step, last=step == descent.steps, chunk=chunk)
        better = (margin < 0) & ((value <= lowest[which]) | (not exact))
        lowest[which[better]] = value[better]
        shown = better | ~found.flipped[which]
        found.record(which[shown], current[shown], margin[shown], radius=descent.eps)
        left = ~((value < descent.enough) & (margin < 0))
        which, current, speed, gradient = which[left], current[left], speed[left], gradient[left]
        speed = descent.momentum * speed + gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-20)
        size = descent.eps * descent.relative_step * (1 - 0.9 * step / max(descent.steps, 1))
        current = into_ball(current - size * speed.sign(), pixels[which], descent.eps)
    return found


def _slopes(
    loss: Loss, pixels: Tensor, which: Tensor, step: int, *, last: bool, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, margins and gradients; after the last step there is nothing to go down to, and the gradients are zero."""
    values, margins, gradients = [], [], []
    for part, places in zip(torch.split(pixels, chunk), torch.split(which, chunk), strict=True):
        with torch.inference_mode(mode=False), torch.set_grad_enabled(not last):
            current = part.detach().clone().requires_grad_(not last)
            value, margin = loss(current, places, step)
            gradient = torch.zeros_like(current) if last else torch.autograd.grad(value.sum(), current)[0]
        for what, found in (("loss", value), ("margin", margin), ("gradient", gradient)):
            if not bool(found.detach().isfinite().all()):
                raise DicomguardError(
                    f"The network cannot be attacked: a {what} is not a finite number.",
                    advice="Check the weights of the bundle, and the clean images that are imitated.",
                )
        values.append(value.detach())
        margins.append(margin.detach())
        gradients.append(gradient.detach())
    return torch.cat(values), torch.cat(margins), torch.cat(gradients)
