"""The batched random-noise consistency check of the noise-consistency paper (section 2.3), as numbers of one image.

With c the class of the answer, m_y = z_c - z_y its log-odds against another class and p_c its probability:
t_l = median over r of [p_c(x) - p_c(clip(x + n_lr))], g_ly the same of m_y, M_l the median over r of the smallest noisy
m_y. Noise is uniform in [-e_l, e_l], drawn once on the gray plane (the network sees it replicated), and the sum is
clipped to [0, 1]. Two classes are the paper's case; more are the pairwise log-odds of Roth, Kilcher, Hofmann 2019
(arXiv 1902.04818).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomguard.scoring import head, noise
from dicomguard.scoring.head import Answer

Draw = tuple[int, int]  # (index of the noise level, repeat)


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """Noise levels as fractions of the unit input range, and how many draws of each there are."""

    levels: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05)
    repeats: int = 8

    def ladder(self, repeats: int | None = None) -> tuple[Draw, ...]:
        """Every level with its first `repeats` draws; all of them is the paper's check."""
        return tuple((level, r) for level in range(len(self.levels)) for r in range(repeats or self.repeats))


@dataclass(frozen=True, slots=True)
class Observation:
    """The log-odds of one image and of its noisy copies: (questions, classes) and (draws, questions, classes)."""

    clean: NDArray[np.float64]
    noisy: NDArray[np.float64]
    draws: tuple[Draw, ...]

    @property
    def answer(self) -> Answer:
        """The class of each question."""
        return head.answer(self.clean)

    def joined(self, more: NDArray[np.float64], draws: tuple[Draw, ...]) -> Observation:
        """The same image after further draws."""
        return Observation(self.clean, np.concatenate([self.noisy, more]), (*self.draws, *draws))

    def only(self, draws: Sequence[Draw]) -> Observation:
        """What would have been seen with some of the draws alone."""
        kept = [self.draws.index(draw) for draw in draws]
        return Observation(self.clean, self.noisy[kept], tuple(draws))


@dataclass(frozen=True, slots=True)
class NoiseCurve:
    """What the check saw of one image, for each question and noise level.

    `probability`, `margin`: (questions,). `probability_drops`, `noisy_margins`: (questions, levels). `log_odds_drops`:
    (questions, levels, classes), minus infinity at the answer's own class. `levels`: indices into the settings'.
    """

    answer: Answer
    levels: tuple[int, ...]
    probability: NDArray[np.float64]
    margin: NDArray[np.float64]
    probability_drops: NDArray[np.float64]
    log_odds_drops: NDArray[np.float64]
    noisy_margins: NDArray[np.float64]


def curve(seen: Observation) -> NoiseCurve:
    """Medians over the draws of each level."""
    answer = seen.answer
    levels = tuple(sorted({level for level, _ in seen.draws}))
    of_level = np.array([level for level, _ in seen.draws])
    clean_odds, noisy_odds = head.pairwise(seen.clean, answer), head.pairwise(seen.noisy, answer)
    clean_p, noisy_p = head.probability(seen.clean, answer), head.probability(seen.noisy, answer)
    with np.errstate(invalid="ignore"):  # infinity minus infinity, at the answer's own class
        odds_drops = [clean_odds - np.median(noisy_odds[of_level == level], 0) for level in levels]
    drops = np.stack(odds_drops, 1)
    own = np.arange(seen.clean.shape[-1]) == np.asarray(answer)[:, None]
    drops[np.broadcast_to(own[:, None, :], drops.shape)] = -np.inf
    return NoiseCurve(
        answer=answer,
        levels=levels,
        probability=clean_p,
        margin=clean_odds.min(-1),
        probability_drops=np.stack([clean_p - np.median(noisy_p[of_level == level], 0) for level in levels], 1),
        log_odds_drops=drops,
        noisy_margins=np.stack([np.median(noisy_odds[of_level == level].min(-1), 0) for level in levels], 1),
    )


def noisy_copies(images: Tensor, seeds: Sequence[bytes], settings: NoiseSettings, draws: Sequence[Draw]) -> Tensor:
    """Noisy copies of images (N, planes, H, W): (N x draws, planes, H, W), those of one image together.

    A draw is a stream of its image's seed, so that it is the same whichever others are made beside it.
    """
    streams = [level * settings.repeats + repeat for level, repeat in draws]
    drawn = noise.uniform(seeds, streams, tuple(images.shape[1:]), images.device)
    strength = torch.tensor([settings.levels[level] for level, _ in draws], device=images.device)
    return drawn.mul_(strength.view(-1, 1, 1, 1)).add_(images.unsqueeze(1)).clamp_(0, 1).flatten(0, 1)


def observe(
    log_odds: Callable[[Tensor], Tensor],
    batch: Tensor,
    seeds: Sequence[bytes],
    settings: NoiseSettings,
    draws: Sequence[Draw],
    *,
    chunk: int,
) -> NDArray[np.float64]:
    """The log-odds of every noisy copy of a batch (N, planes, H, W): shape (N, draws, questions, classes).

    The copies of neighbouring images share forward passes of `chunk` copies, so that a batch of single-image studies is
    as fast as one long study. `log_odds` maps (M, planes, H, W) to (M, questions, classes).
    """
    if len(seeds) != len(batch):
        raise ValueError(f"{len(batch)} images need as many seeds, not {len(seeds)}")
    found: list[Tensor] = []
    together = -(-chunk // len(draws))
    with torch.inference_mode():
        left = batch[:0]
        for start in range(0, len(batch), together):
            part = slice(start, start + together)
            left = torch.cat([left, noisy_copies(batch[part], seeds[part], settings, draws)])
            whole = len(left) - len(left) % chunk
            found += [log_odds(copies) for copies in torch.split(left[:whole], chunk)] if whole else []
            left = left[whole:]
        if len(left):
            found.append(log_odds(left))
    values = torch.cat(found).double().cpu().numpy()
    return values.reshape(len(batch), len(draws), *values.shape[1:])
