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
    settings = settings or FixedEps()
    starts = RandomStarts(list(seeds), pixels)
    found = Attacked.untried(pixels)
    which = found.unflipped()
    if not len(which):
        return found
    lowest = torch.full((len(pixels),), torch.inf, device=pixels.device)
    for _ in range(settings.restarts):
        current = starts.inside(which, settings.eps)
        for taken in range(settings.steps + 1):
            if taken < settings.steps:
                margin, gradient = slopes(margins, current, which, chunk=chunk)
            else:
                margin, gradient = values(margins, current, which, chunk=chunk), None
            better = margin < lowest
            lowest = torch.where(better, margin, lowest)
            found.record(which[better], current[better], margin[better], radius=settings.eps)
            if gradient is not None:
                moved = current - settings.relative_step * settings.eps * gradient.sign()
                current = into_ball(moved, pixels, settings.eps)
    return found
