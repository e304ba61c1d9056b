"""The noise-consistency check as a differentiable function, for attacks that have to pass it.

The same definitions as `scoring.consistency`, in torch: on the same noise both give the same numbers. What the attacker
cannot have is the site's key, so the noise here comes from seeds of the attacker's own, over the same levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dicomguard.attacks.margins import Logits
from dicomguard.lab.attacks.found import seed_bytes
from dicomguard.scoring import head
from dicomguard.scoring.consistency import Draw, NoiseSettings, noisy_copies

Prepare = Callable[[Tensor, Tensor], Tensor]
"""Attacked pixels at places (n,) to prepared ones (n, planes, H, W), to which the check adds its noise.

Differentiable. `stored_bits.as_node` is the way of a file; none where the attacked pixels are prepared already.
"""


@dataclass(frozen=True, slots=True)
class Looked:
    """Log-odds of images and of their noisy copies: (n, questions, classes) and (n, draws, questions, classes)."""

    clean: Tensor
    noisy: Tensor
    draws: tuple[Draw, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """`scoring.consistency.NoiseCurve` of n images, differentiable; the fields have n as their first dimension."""

    levels: tuple[int, ...]
    probability: Tensor
    margin: Tensor
    probability_drops: Tensor
    log_odds_drops: Tensor
    noisy_margins: Tensor


def pairwise(log_odds: Tensor, answers: Tensor) -> Tensor:
    """Log-odds of the answers' classes against every class, (..., questions, classes); 0 against themselves.

    `answers`: (..., questions), of as many dimensions less one.
    """
    chosen: Tensor = log_odds.gather(-1, answers.unsqueeze(-1))
    return chosen - log_odds


def curves(seen: Looked, answers: Tensor | None = None) -> Curves:
    """Medians over the draws of each level, towards `answers` (n, questions), or those of the images themselves."""
    kept = head.answers(seen.clean.detach()) if answers is None else answers
    own = torch.nn.functional.one_hot(kept, seen.clean.shape[-1]).bool()
    clean = pairwise(seen.clean, kept)
    noisy = pairwise(seen.noisy, kept.unsqueeze(1).expand(seen.noisy.shape[:3]))
    levels = tuple(sorted({level for level, _ in seen.draws}))
    of_level = torch.tensor([level for level, _ in seen.draws], device=clean.device)
    probability = _probability(seen.clean, kept)
    shaken = _probability(seen.noisy, kept.unsqueeze(1).expand(seen.noisy.shape[:3]))
    smallest = noisy.masked_fill(own.unsqueeze(1), torch.inf).amin(-1)
    drops = torch.stack([clean - _median(noisy[:, of_level == level]) for level in levels], 2)
    return Curves(
        levels=levels,
        probability=probability,
        margin=clean.masked_fill(own, torch.inf).amin(-1),
        probability_drops=torch.stack([probability - _median(shaken[:, of_level == level]) for level in levels], 2),
        log_odds_drops=drops.masked_fill(own.unsqueeze(2), -torch.inf),
        noisy_margins=torch.stack([_median(smallest[:, of_level == level]) for level in levels], 2),
    )


class NoiseCheck:
    """The check of one batch with noise of the attacker's own: fresh at every step, the same for the same step."""

    def __init__(
        self, log_odds: Logits, settings: NoiseSettings, seeds: Sequence[int], prepare: Prepare | None = None
    ) -> None:
        """`log_odds`: prepared pixels (n, planes, H, W) to (n, questions, classes); `seeds`: one for each image."""
        self.settings = settings
        self._prepare = prepare
        self._log_odds = log_odds
        self._seeds = list(seeds)

    def ladder(self, draws: int, step: int = 0) -> tuple[Draw, ...]:
        """`draws` draws spread evenly over the levels; with fewer draws than levels the next step has the next ones."""
        levels = len(self.settings.levels)
        return tuple(((step * draws + i) % levels, i // levels) for i in range(draws))

    def look(self, pixels: Tensor, which: Tensor, draws: Sequence[Draw], step: int = 0) -> Looked:
        """Images of places `which` and their noisy copies in one forward pass; gradients reach `pixels`."""
        draws = tuple(draws)
        prepared = self.prepare(pixels, which)
        if not draws:
            clean = self._log_odds(prepared)
            return Looked(clean, clean.new_empty((len(clean), 0, *clean.shape[1:])), ())
        found = self._log_odds(torch.cat([prepared, self.copies(prepared, which, draws, step)]))
        noisy = found[len(pixels) :].reshape(len(pixels), len(draws), *found.shape[1:])
        return Looked(found[: len(pixels)], noisy, draws)

    def prepare(self, pixels: Tensor, which: Tensor) -> Tensor:
        """What the noise is added to."""
        return pixels if self._prepare is None else self._prepare(pixels, which)

    def copies(self, prepared: Tensor, which: Tensor, draws: Sequence[Draw], step: int = 0) -> Tensor:
        """The noisy copies themselves, (n x draws, planes, H, W), those of one image together."""
        # A stream is level x repeats + repeat: with enough repeats no two draws share one.
        repeats = max(self.settings.repeats, 1 + max(repeat for _, repeat in draws))
        seeds = [seed_bytes(self._seeds[place], "noise", step) for place in which.tolist()]
        return noisy_copies(prepared, seeds, replace(self.settings, repeats=repeats), draws)


def _probability(log_odds: Tensor, answers: Tensor) -> Tensor:
    shares = log_odds.softmax(-1)
    chosen: Tensor = shares.gather(-1, answers.unsqueeze(-1)).squeeze(-1)
    return chosen


def _median(rows: Tensor) -> Tensor:
    """Over dimension 1, of an even count the mean of the two middle ones, as numpy has it."""
    ordered = rows.sort(1).values
    count = rows.shape[1]
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
