"""The L2 attack of Carlini and Wagner 2017: minimise |x' - x|^2 + c max(m(x') + kappa, 0), m the margin in log-odds.

In tanh space, where every point is a picture, and for each image a binary search of its own over c. A larger kappa
asks for a more confident wrong answer, which is what a detector of borderline images has to be tested on.

Two things are measured on each image instead of being the same for all, because networks differ in how near their
boundaries are by a factor of a hundred. With the linearised network crossed at L2 distance d = (m + kappa) / |grad m|,
the first c and the step are multiples of what d asks for. And Adam has one second moment for each image, not one for
each pixel: per pixel its first steps follow the sign of the gradient, which is the wrong direction in L2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins, slopes
from dicomguard.lab.attacks.found import lengths, measured, wide

KAPPAS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Log-odds; the sweep that an evaluation should contain."""

_INSIDE = 0.999999  # tanh reaches its ends only at infinity
_BETAS = (0.9, 0.999)
_TINY = 1e-12
_NEAR = 1e-6  # L2: an image on the boundary already still has steps to take


@dataclass(frozen=True, slots=True)
class Carlini:
    """`rate`: the first step as a share of the linearised distance, falling linearly to a hundredth of that.

    `constant`: the first c, as a multiple of the smallest that crosses the boundary of the linearised network. An image
    whose loss falls no more over a tenth of the steps leaves its search before `steps`.
    """

    kappa: float = 0.0
    steps: int = 100
    searches: int = 5
    rate: float = 0.1
    constant: float = 2.0


def carlini_l2(margins: Margins, pixels: Tensor, settings: Carlini | None = None, *, chunk: int = CHUNK) -> Attacked:
    """Of all pictures that were looked at and flipped by more than kappa, the nearest in L2.

    `strength` of the result is its L-inf distance.
    """
    settings = settings or Carlini()
    found = Attacked.untried(pixels)
    if not len(pixels):
        return found
    clean = found.pixels.clone()
    margin, gradient = slopes(margins, clean, found.unflipped(), chunk=chunk)
    steepness = lengths(gradient).clamp(min=_TINY)
    far = ((margin + settings.kappa) / steepness).clamp(min=_NEAR)
    constant = settings.constant * 2 * far / steepness
    low, high = torch.zeros_like(constant), torch.full_like(constant, torch.inf)
    nearest = torch.full_like(constant, torch.inf)
    for _ in range(settings.searches):
        hit = _search(margins, clean, constant, far, nearest, found, settings, chunk)
        high = torch.where(hit, constant.minimum(high), high)
        low = torch.where(hit, low, constant.maximum(low))
        constant = torch.where(high.isfinite(), (low + high) / 2, constant * 10)
    return measured(found, clean)


def _search(
    margins: Margins,
    clean: Tensor,
    constant: Tensor,
    far: Tensor,
    nearest: Tensor,
    found: Attacked,
    settings: Carlini,
    chunk: int,
) -> Tensor:
    """One c for each image; returns (N,), whether it flipped by kappa. Writes what is nearer into `found`."""
    which = torch.arange(len(clean), device=clean.device)
    hits = torch.zeros_like(found.flipped)
    point = torch.atanh((2 * clean - 1) * _INSIDE)
    first, second = torch.zeros_like(point), torch.zeros_like(constant)
    stride = torch.zeros_like(constant)
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
        stretch = (1 - bent.square()) / 2
        slope = (2 * change + wide(wanting) * gradient) * stretch
        length = lengths(slope)
        if taken == 0:
            # So long that the picture, not the point in tanh space, moves by `far` along the first slope.
            stride = far * length / lengths(slope * stretch).clamp(min=_TINY)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * slope
        second = _BETAS[1] * second + (1 - _BETAS[1]) * length.square()
        rate = settings.rate * (1 - 0.99 * taken / settings.steps)
        straight, squared = first / (1 - _BETAS[0] ** (taken + 1)), second / (1 - _BETAS[1] ** (taken + 1))
        point = point - wide(rate * stride / (squared.sqrt() + _TINY)) * straight
        which, point, first = which[left], point[left], first[left]
        second, stride = second[left], stride[left]
        if not len(which):
            break
    return hits
