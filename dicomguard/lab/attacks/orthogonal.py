"""Two aims without a weight between them: the network's answer and a detector's score (Bryniarski et al. 2021).

A weighted sum lets the easier aim eat the budget. Selective descent follows only the aim that is not reached;
orthogonal descent takes out of its gradient what lies along the other's, so that a step for one does not undo the
other. Steps follow the gradient itself, not its sign, which is orthogonal to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked, RandomStarts, into_ball
from dicomguard.attacks.margins import CHUNK, Margins, slopes
from dicomguard.lab.attacks.found import lengths, wide

DetectorScore = Callable[[Tensor, Tensor, int], Tensor]
"""`score(pixels, which, step)` -> (n,), differentiable, larger = more suspicious; noise drawn by place and step."""


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """`eps` in fractions of the presentation range; the first step's root mean square is `relative_step` of it.

    `slack`: how far below the threshold a score has to be, and how far below zero a margin, to count as reached.
    `orthogonal` False: selective descent alone.
    """

    eps: float = 0.008
    steps: int = 80
    relative_step: float = 0.2
    slack: tuple[float, float] = (0.0, 0.0)
    orthogonal: bool = True
    random_start: bool = False


@dataclass(frozen=True, slots=True)
class Evaded:
    """What was found, the detector's `score` (N,) of it, and `passed` (N,): flipped, and the score below the threshold.

    The score is the attacker's own, with noise of its own: what the node says is another matter.
    """

    attacked: Attacked
    score: Tensor
    passed: Tensor


def orthogonal_pgd(
    margins: Margins,
    score: DetectorScore,
    threshold: float,
    pixels: Tensor,
    seeds: Sequence[int],
    settings: Orthogonal | None = None,
    *,
    chunk: int = CHUNK,
) -> Evaded:
    """Flip the answer with a score below `threshold`. An image that has both, with slack, is done.

    Where none has, the iterate with the lowest score of those that flipped. `strength` is eps where it flipped.

    Raises:
        DicomguardError: a margin, a score or a gradient is not a finite number.

    """
    settings = settings or Orthogonal()
    starts = RandomStarts(list(seeds), pixels)
    found = Attacked.untried(pixels)
    lowest = torch.full_like(found.margin, torch.inf)
    which = found.unflipped()
    current = starts.inside(which, settings.eps) if settings.random_start else pixels.detach()
    below, past = settings.slack
    for step in range(settings.steps + 1):
        if not len(which):
            break
        margin, away = slopes(margins, current, which, chunk=chunk)
        suspicion, towards = slopes(_at(score, step), current, which, chunk=chunk)
        flipped, hidden = margin < -past, suspicion < threshold - below
        better = (margin < 0) & ((suspicion < lowest[which]) | (flipped & hidden))
        lowest[which[better]] = suspicion[better]
        shown = better | ~found.flipped[which]
        found.record(which[shown], current[shown], margin[shown], radius=settings.eps)
        left = ~(flipped & hidden)
        which, current, flipped, away, towards = (rows[left] for rows in (which, current, flipped, away, towards))
        if settings.orthogonal:
            away, towards = _without(away, towards), _without(towards, away)
        direction = torch.where(wide(flipped), towards, away)
        size = settings.eps * settings.relative_step * (1 - 0.9 * step / max(settings.steps, 1))
        length = lengths(direction).clamp(min=1e-20) / direction[:1].numel() ** 0.5
        current = into_ball(current - direction * wide(size / length), pixels[which], settings.eps)
    passed = found.flipped & (lowest < threshold)
    return Evaded(found, torch.where(found.flipped, lowest, torch.nan), passed)


def _at(score: DetectorScore, step: int) -> Margins:
    """Its score at a step; some count in double precision, margins do not."""
    return lambda current, which: score(current, which, step).to(current)


def _without(one: Tensor, other: Tensor) -> Tensor:
    """`one` less its part along `other`, for each image; as it is where that leaves nothing but rounding errors."""
    along = (one * other).sum((1, 2, 3)) / other.square().sum((1, 2, 3)).clamp(min=1e-30)
    left = one - wide(along) * other
    return torch.where(wide(lengths(left) > 1e-3 * lengths(one)), left, one)
