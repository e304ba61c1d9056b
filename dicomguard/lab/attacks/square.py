"""The Square attack in L-inf (Andriushchenko et al. 2020, algorithms 1 and 2): a random search without gradients.

It starts with vertical stripes at the edges of the ball and then tries one square after another, smaller and smaller,
keeping what lowers the margin. It needs what a stranger with access to the model's output has, and counts its queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked, into_ball
from dicomguard.attacks.margins import CHUNK, Margins, values

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
_SAME = 1e-7


@dataclass(frozen=True, slots=True)
class Square:
    """`queries`: pictures that each image may show to the network; `share`: of the area, changed by the first square.

    Ends where the wrong margin exceeds `kappa`.
    """

    eps: float = 0.016
    queries: int = 500
    share: float = 0.05
    kappa: float = 0.0


@dataclass(frozen=True, slots=True)
class Queried:
    """What was found, and after how many `queries` (N,) int64 each image's search ended."""

    attacked: Attacked
    queries: Tensor


Reply = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""What one query of pictures (n, C, H, W) at places (n,) tells: what to lower (n,), margins (n,), and who is done."""


def square(
    margins: Margins, pixels: Tensor, seeds: Sequence[int], settings: Square | None = None, *, chunk: int = CHUNK
) -> Queried:
    """Search until the margin is below -kappa or the queries are spent. `seeds`: one for each image.

    `strength` of the result is `eps` where it flipped.
    """
    settings = settings or Square()

    def ask(current: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        margin = values(margins, current, which, chunk=chunk)
        return margin, margin, margin < -settings.kappa

    return search(ask, pixels, seeds, settings)


def search(ask: Reply, pixels: Tensor, seeds: Sequence[int], settings: Square) -> Queried:
    """The random search on anything that can be asked; a square that changes nothing for the worse is kept.

    Raises ValueError where there are not as many seeds as images.
    """
    if len(seeds) != len(pixels):
        raise ValueError(f"{len(pixels)} images need as many seeds, not {len(seeds)}")
    found = Attacked.untried(pixels)
    spent = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    clean, which = found.pixels.clone(), found.unflipped()
    best = torch.full_like(found.margin, torch.inf)
    change = torch.zeros_like(clean)
    for query in range(settings.queries):
        if not len(which):
            break
        tried = change[which]
        side = _side(query, settings, clean.shape[-2], clean.shape[-1])
        for row, place in enumerate(which.tolist()):
            if query == 0:
                tried[row] = _stripes(generators[place], tried[row], settings.eps)
            else:
                _put_square(generators[place], tried[row], clean[place], settings.eps, side)
        current = into_ball(clean[which] + tried, clean[which], settings.eps)
        value, margin, done = ask(current, which)
        spent[which] += 1
        better = (value <= best[which]) | done
        kept = which[better]
        best[kept] = value[better]
        change[kept] = tried[better]
        found.record(kept, current[better], margin[better], radius=settings.eps, kappa=settings.kappa)
        which = which[~done]
    return Queried(found, spent)


def _side(query: int, settings: Square, height: int, width: int) -> int:
    """The side of the square, in pixels: its share of the area halves at fixed places of the budget."""
    place = query * 10_000 / max(settings.queries, 1)
    share = settings.share / 2 ** sum(place > halving for halving in _HALVINGS)
    return max(min(round(math.sqrt(share * height * width)), height - 1, width - 1), 1)


def _signs(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


def _stripes(generator: torch.Generator, like: Tensor, eps: float) -> Tensor:
    planes, _, width = like.shape
    return (eps * _signs(generator, (planes, 1, width))).to(like).expand_as(like)


def _put_square(generator: torch.Generator, change: Tensor, clean: Tensor, eps: float, side: int) -> None:
    """Write +-eps for each plane into a square of `change` (C, H, W), in place: one that changes what is seen."""
    planes, height, width = change.shape
    top, left = (int(torch.randint(size - side + 1, (1,), generator=generator)) for size in (height, width))
    place = (slice(None), slice(top, top + side), slice(left, left + side))
    shown = (clean[place] + change[place]).clamp(0, 1)
    for _ in range(8):
        fresh = (eps * _signs(generator, (planes, 1, 1))).to(change).expand_as(change[place])
        if bool(((clean[place] + fresh).clamp(0, 1) - shown).abs().max() > _SAME):
            change[place] = fresh
            return
