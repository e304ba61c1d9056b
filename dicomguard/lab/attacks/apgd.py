"""Auto-PGD on the margin (Croce and Hein 2020, algorithm 1): momentum, and a step that halves where it stops helping.

The paper's losses are the cross-entropy and the difference-of-logits ratio; the latter is undefined for two classes,
and the margin has the former's sign of the gradient there without its saturation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked, RandomStarts, into_ball
from dicomguard.attacks.margins import CHUNK, Margins, slopes, values
from dicomguard.lab.attacks.found import wide

_MOMENTUM = 0.75
_ENOUGH = 0.75  # share of steps between two checkpoints that must have lowered the margin


@dataclass(frozen=True, slots=True)
class AutoPGD:
    """`eps` in fractions of the presentation range. Later restarts are for images that have not flipped.

    `stop_at_flip`: an image that has flipped is left alone, for robust accuracy; else it goes on to the most confident
    wrong answer that the budget lets it have.
    """

    eps: float = 0.004
    steps: int = 50
    restarts: int = 1
    stop_at_flip: bool = False


def checkpoints(steps: int) -> list[int]:
    """After how many steps the step size is reconsidered (equation 2 there and below it)."""
    found, share, width = [0], 0.0, 0.22
    while (share := share + width) < 1:
        found.append(math.ceil(share * steps - 1e-9))
        width = max(width - 0.03, 0.06)
    return sorted(set(found))


def apgd(
    margins: Margins, pixels: Tensor, seeds: Sequence[int], settings: AutoPGD | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """Of all iterates of all restarts, the one with the lowest margin. `seeds`: one for each image.

    `strength` of the result is `eps` where it flipped.
    """
    settings = settings or AutoPGD()
    starts = RandomStarts(list(seeds), pixels)
    found = Attacked.untried(pixels)
    lowest = torch.full_like(found.margin, torch.inf)
    for _ in range(settings.restarts):
        which = found.unflipped()
        if not len(which):
            break
        _Run(margins, found, lowest, settings, chunk).go(which, pixels[which], starts.inside(which, settings.eps))
    return found


class _Run:
    """One restart; rows do not depend on each other."""

    def __init__(self, margins: Margins, found: Attacked, lowest: Tensor, settings: AutoPGD, chunk: int) -> None:
        self.margins = margins
        self.found = found
        self.lowest = lowest
        self.settings = settings
        self.chunk = chunk

    def go(self, which: Tensor, clean: Tensor, start: Tensor) -> None:
        """The places `which` from `start`, each with a step size of its own."""
        eps, steps = self.settings.eps, self.settings.steps
        margin, gradient = self._look(start, which, last=steps == 0)
        # Row by row: where it was, where it is, the best point of this restart with its gradient and margin.
        state = {"before": start, "now": start, "gradient": gradient, "best": start, "slope": gradient}
        best = margin
        size = torch.full_like(margin, 2 * eps)
        helped, since = torch.zeros_like(margin), best.clone()
        halved = torch.zeros_like(margin, dtype=torch.bool)
        marks = checkpoints(steps)
        for taken in range(1, steps + 1):
            left = ~self.found.flipped[which] if self.settings.stop_at_flip else torch.ones_like(halved)
            if not bool(left.all()):
                which, clean, state = which[left], clean[left], {name: rows[left] for name, rows in state.items()}
                margin, best, size, helped = margin[left], best[left], size[left], helped[left]
                since, halved = since[left], halved[left]
            if not len(which):
                return
            now, before = state["now"], state["before"]
            ahead = into_ball(now - wide(size) * state["gradient"].sign(), clean, eps)
            share = 1.0 if taken == 1 else _MOMENTUM
            moved = into_ball(now + share * (ahead - now) + (1 - share) * (now - before), clean, eps)
            previous = margin
            margin, gradient = self._look(moved, which, last=taken == steps)
            state |= {"before": now, "now": moved, "gradient": gradient}
            helped = helped + (margin < previous)
            better = margin < best
            best = torch.where(better, margin, best)
            state["best"] = torch.where(wide(better), moved, state["best"])
            state["slope"] = torch.where(wide(better), gradient, state["slope"])
            if taken in marks:
                width = taken - marks[marks.index(taken) - 1]
                halve = (helped < _ENOUGH * width) | (~halved & (best >= since))
                size = torch.where(halve, size / 2, size)
                state["now"] = torch.where(wide(halve), state["best"], moved)
                state["gradient"] = torch.where(wide(halve), state["slope"], gradient)
                margin = torch.where(halve, best, margin)
                helped, since, halved = torch.zeros_like(helped), best.clone(), halve

    def _look(self, current: Tensor, which: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        if last:
            margin, gradient = values(self.margins, current, which, chunk=self.chunk), torch.zeros_like(current)
        else:
            margin, gradient = slopes(self.margins, current, which, chunk=self.chunk)
        better = margin < self.lowest[which]
        self.lowest[which[better]] = margin[better]
        self.found.record(which[better], current[better], margin[better], radius=self.settings.eps)
        return margin, gradient
