"""The L2 attack of Carlini and Wagner 2017: minimise |x' - x|^2 + c max(m(x') + kappa, 0), m the margin in log-odds.

In tanh space, where every point is a picture; Adam; for each image a binary search of its own over c. A larger kappa
asks for a more confident wrong answer, which is what a detector of borderline images has to be tested on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins, slopes
from dicomguard.lab.attacks.found import measured, wide

KAPPAS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Log-odds; the sweep that an evaluation should contain."""

_INSIDE = 0.999999  # tanh reaches its ends only at infinity
_BETAS = (0.9, 0.999)
_TINY = 1e-12
_LARGEST = 1e10


@dataclass(frozen=True, slots=True)
class Carlini:
    """`rate`: of Adam at first, in tanh space, falling linearly to a tenth; `constant`: the first c of the search.

    An image whose loss falls no more over a tenth of the steps leaves its search before `steps`.
    """

    kappa: float = 0.0
    steps: int = 100
    searches: int = 5
    rate: float = 0.01
    constant: float = 1.0


def carlini_l2(margins: Margins, pixels: Tensor, settings: Carlini | None = None, *, chunk: int = CHUNK) -> Attacked:
    """Of all pictures that were looked at and flipped by more than kappa, the nearest in L2.

    `strength` of the result is its L-inf distance.
    """
    settings = settings or Carlini()
    found = Attacked.untried(pixels)
    if not len(pixels):
        return found
    clean = found.pixels.clone()
    constant = torch.full_like(found.margin, settings.constant)
    low, high = torch.zeros_like(constant), torch.full_like(constant, _LARGEST)
    nearest = torch.full_like(constant, torch.inf)
    for _ in range(settings.searches):
        hit = _search(margins, clean, constant, nearest, found, settings, chunk)
        high = torch.where(hit, constant.minimum(high), high)
        low = torch.where(hit, low, constant.maximum(low))
        constant = torch.where(high < _LARGEST, (low + high) / 2, constant * 10)
    return measured(found, clean)


def _search(
    margins: Margins,
    clean: Tensor,
    constant: Tensor,
    nearest: Tensor,
    found: Attacked,
    settings: Carlini,
    chunk: int,
) -> Tensor:
    """One c for each image; returns (N,), whether it flipped by kappa. Writes what is nearer into `found`."""
    which = torch.arange(len(clean), device=clean.device)
    hits = torch.zeros_like(found.flipped)
    point = torch.atanh((2 * clean - 1) * _INSIDE)
    first, second = torch.zeros_like(point), torch.zeros_like(point)
    before = torch.full_like(constant, torch.inf)
    every = max(settings.steps // 10, 1)
    for taken in range(settings.steps + 1):
        bent = point.tanh()
        current = (bent + 1) / 2
        change = current - clean[which]
        margin, gradient = slopes(margins, current, which, stop=-settings.kappa, chunk=chunk)
        distance = change.square().sum((1, 2, 3))
        hit = margin < -settings.kappa
        hits[which[hit]] = True
        better = hit & (distance < nearest[which])
        nearest[which[better]] = distance[better]
        # Where nothing has flipped yet the last picture stands, as every attack leaves it.
        shown = better | ~found.flipped[which]
        found.record(which[shown], current[shown], margin[shown], radius=0.0, kappa=settings.kappa)
        if taken == settings.steps:
            break
        left = torch.ones_like(hit)
        if taken % every == every - 1:
            loss = distance + constant[which] * (margin + settings.kappa).clamp(min=0)
            left = loss < 0.9999 * before[which]
            before[which] = loss
        wanting = constant[which] * (margin >= -settings.kappa)
        slope = (2 * change + wide(wanting) * gradient) * (1 - bent.square()) / 2
        first = _BETAS[0] * first + (1 - _BETAS[0]) * slope
        second = _BETAS[1] * second + (1 - _BETAS[1]) * slope.square()
        rate = settings.rate * (1 - 0.9 * taken / settings.steps)
        straight, squared = first / (1 - _BETAS[0] ** (taken + 1)), second / (1 - _BETAS[1] ** (taken + 1))
        point = point - rate * straight / (squared.sqrt() + _TINY)
        which, point, first, second = which[left], point[left], first[left], second[left]
        if not len(which):
            break
    return hits
