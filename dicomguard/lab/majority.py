"""The guard's vote counted again by other code than the node's, with as many fresh draws as a proof deserves.

The smoothed answer G and its certificate are those of Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918), the class fixed
before any noise is drawn.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from dicomguard.attacks.margins import Logits

Answer = tuple[int, ...]  # the class of each question, as in `scoring.head`


@dataclass(frozen=True, slots=True)
class Terms:
    """The certificate under test: `eps` of the fixed range, `alpha` for each image; `draws` of each long vote."""

    eps: float
    alpha: float = 1e-6
    draws: int = 100_000


def votes(
    guard: Logits,
    planes: Tensor,
    *,
    sigma: float,
    draws: int,
    seed: int,
    enough: int | None = None,
    batch: int = 500,
) -> dict[Answer, int]:
    """How many of `draws` noise draws give each answer, for one image's `planes` (P, S, S), the most frequent first.

    `guard`: planes (n, P, S, S) to log-odds (n, questions, classes). It ends early where an answer has `enough` votes
    already, which is exact for whoever only asks whether one reaches that number in `draws`.
    """
    generator = torch.Generator().manual_seed(seed)
    counted: Counter[Answer] = Counter()
    with torch.inference_mode():
        for start in range(0, draws, batch):
            noise = torch.randn((min(batch, draws - start), *planes.shape), generator=generator).to(planes)
            found = guard(planes + sigma * noise).argmax(-1)
            distinct, times = torch.unique(found, dim=0, return_counts=True)
            counted.update(dict(zip(map(tuple, distinct.tolist()), times.tolist(), strict=True)))
            if enough is not None and max(counted.values()) >= enough:
                break
    return dict(counted.most_common())


def lower_bound(count: int, draws: int, alpha: float) -> float:
    """One-sided exact lower bound of a vote share (Clopper, Pearson 1934)."""
    return 0.0 if count == 0 else float(stats.beta.ppf(alpha, count, draws - count + 1))


def majority_needs(draws: int, alpha: float) -> int:
    """The smallest number of votes of `draws` that proves a majority at level `alpha`; draws + 1 where none does."""
    return bisect.bisect_left(range(draws + 1), x=True, key=lambda count: lower_bound(count, draws, alpha) > 0.5)


def needed_share(shape: tuple[int, ...], *, eps: float, sigma: float) -> float:
    """The vote share above which no change of at most eps a pixel can have moved G: Phi(S sqrt(P) eps / sigma).

    `shape`: (P, S, S) of the planes, which averaging keeps within eps in L-inf, hence within S sqrt(P) eps in L2.
    """
    return float(stats.norm.cdf(math.sqrt(math.prod(shape)) * eps / sigma))


def is_certified(
    counted: dict[Answer, int], answer: Answer, shape: tuple[int, ...], *, eps: float, sigma: float, alpha: float
) -> bool:
    """Whether these votes prove `answer` for every image within eps."""
    bound = lower_bound(counted.get(answer, 0), sum(counted.values()), alpha)
    return bound > needed_share(shape, eps=eps, sigma=sigma)
