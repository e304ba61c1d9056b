"""Projected gradient descent at a fixed budget, for the most confident wrong answer (Madry et al. 2018).

No early stop: where the ladders end just past the boundary, this goes as far as the budget lets it, and tests what a
detector of borderline images cannot see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked, RandomStarts, into_ball
from dicomguard.attacks.margins import CHUNK, Margins, slopes, values

BUDGETS = (0.004, 0.008, 0.016)


@dataclass(frozen=True, slots=True)
class FixedEps:
    """`eps` in fractions of the presentation range; each step is `relative_step` of it."""

    eps: float = 0.004
    steps: int = 20
    relative_step: float = 0.125
    restarts: int = 1


def fixed_eps_pgd(
    margins: Margins, pixels: Tensor, seeds: Sequence[int], settings: FixedEps | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """Of all iterates of all restarts, the one with the lowest margin. `seeds`: one for each image.

    `strength` of the result is `eps` where it flipped.
    """
    starts = RandomStarts(list(seeds), pixels)
    return signed_steps(margins, pixels, starts, settings or FixedEps(), chunk=chunk)


def signed_steps(
    margins: Margins,
    pixels: Tensor,
    starts: RandomStarts | None,
    settings: FixedEps,
    *,
    last: bool = False,
    chunk: int = CHUNK,
) -> Attacked:
    """Steps along the sign of the gradient inside the ball, once from each start; None: from the images themselves.

    The lowest margin of all iterates counts; with `last` that of the last iterates.
    """
    found = Attacked.untried(pixels)
    which = found.unflipped()
    if not len(which):
        return found
    lowest = torch.full_like(found.margin, torch.inf)
    for _ in range(settings.restarts):
        current = pixels.detach() if starts is None else starts.inside(which, settings.eps)
        for taken in range(settings.steps + 1):
            ended = taken == settings.steps
            if ended:
                margin, gradient = values(margins, current, which, chunk=chunk), None
            else:
                margin, gradient = slopes(margins, current, which, chunk=chunk)
            if ended or not last:
                better = margin < lowest
                lowest = torch.where(better, margin, lowest)
                found.record(which[better], current[better], margin[better], radius=settings.eps)
            if gradient is not None:
                moved = current - settings.relative_step * settings.eps * gradient.sign()
                current = into_ball(moved, pixels, settings.eps)
    return found
