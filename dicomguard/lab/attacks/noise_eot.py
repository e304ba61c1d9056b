"""The attack through the noise check: a wrong answer whose log-odds look clean, without noise and under it.

A detector of noise consistency sees how log-odds and probability fall under noise, and how small the margin gets. So
the attack does not make the wrong answer as confident as it can; it takes the log-odds to where those of clean images
with that answer typically are (logit matching, Tramer et al. 2020, section 5 and their attack on "The odds are odd"),
and keeps them there in expectation over noise (Athalye et al. 2018), at every level of the check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Logits, Margins
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.descend import Descent, descend
from dicomguard.lab.attacks.noise_check import NoiseCheck, Prepare, pairwise
from dicomguard.scoring import head
from dicomguard.scoring.consistency import NoiseSettings, Observation

_FEWEST = 3  # clean images of a class that make a typical one


@dataclass(frozen=True, slots=True)
class Typical:
    """Log-odds of clean images, by the class c of their answer against every class y; medians and standard deviations.

    `clean`, `spread`: (questions, c, y). `drops`, `drop_spread`: (questions, c, levels, y), how far they fall under
    noise. `images`: (questions, c), from how many images.
    """

    clean: NDArray[np.float64]
    spread: NDArray[np.float64]
    drops: NDArray[np.float64]
    drop_spread: NDArray[np.float64]
    images: NDArray[np.int64]

    @classmethod
    def of(cls, seen: Sequence[Observation], levels: int) -> Typical:
        """From clean images that were looked at with every one of `levels` levels of noise.

        Raises:
            DicomguardError: there are none, or a level was not drawn.

        """
        if not seen or {level for level, _ in seen[0].draws} != set(range(levels)):
            raise DicomguardError(
                "What is typical of clean images cannot be told: none were looked at under every level of noise.",
                advice="Look at clean images with the whole ladder first.",
            )
        questions, classes = seen[0].clean.shape
        shape = (questions, classes, levels, classes)
        clean, spread = np.zeros((questions, classes, classes)), np.ones((questions, classes, classes))
        drops, drop_spread = np.zeros(shape), np.ones(shape)
        answers = np.array([one.answer for one in seen])
        images = np.stack([(answers == c).sum(0) for c in range(classes)], 1)
        for q, c in np.argwhere(images >= _FEWEST):
            mine = [one for one in seen if one.answer[q] == c]
            odds = np.array([one.clean[q, c] - one.clean[q] for one in mine])
            falls = np.array([_drops(one, int(q), int(c), levels) for one in mine])
            clean[q, c], spread[q, c] = np.median(odds, 0), odds.std(0, ddof=1)
            drops[q, c], drop_spread[q, c] = np.median(falls, 0), falls.std(0, ddof=1)
        return cls(clean, np.maximum(spread, 1e-3), drops, np.maximum(drop_spread, 1e-3), images)

    def wanted(self, targets: Tensor) -> Wanted:
        """What an attack towards `targets` (n, questions) has to reach.

        Raises:
            DicomguardError: fewer than three clean images had one of these answers.

        """
        questions = torch.arange(targets.shape[1])
        place = targets.cpu()
        if bool((torch.from_numpy(self.images)[questions, place] < _FEWEST).any()):
            raise DicomguardError(
                "No attack towards an answer that fewer than three clean images had: nothing is typical of it.",
                advice="Look at more clean images of every class first.",
            )
        parts = (
            torch.from_numpy(part)[questions, place].float().to(targets.device)
            for part in (self.clean, self.spread, self.drops, self.drop_spread)
        )
        return Wanted(targets, *parts)


@dataclass(frozen=True, slots=True)
class Wanted:
    """For each image of a batch: the answer `targets` (n, questions), and what its log-odds should be.

    Against every class: `clean`, `spread` (n, questions, classes); `drops`, `drop_spread` (n, questions, levels,
    classes).
    """

    targets: Tensor
    clean: Tensor
    spread: Tensor
    drops: Tensor
    drop_spread: Tensor


@dataclass(frozen=True, slots=True)
class NoiseEOT:
    """`draws`: of noise for each step, K. `stay`: weight of what noise does, against 1 for the log-odds themselves.

    `one_sided`: log-odds, with and without noise, need not be typical of the wrong answer, but at least as large. An
    attack that is drawn back to what is typical may stay on the near side of a boundary that is steep under noise.
    """

    descent: Descent = field(default_factory=Descent)
    draws: int = 8
    stay: float = 1.0
    one_sided: bool = False


def others(log_odds: Tensor) -> Tensor:
    """The answers to attack towards, (n, questions): the runner-up of the question whose margin is least.

    The other questions keep their answers, as one changed finding is a flip.
    """
    kept = head.answers(log_odds)
    ordered = log_odds.topk(2, -1)
    question = (ordered.values[..., 0] - ordered.values[..., 1]).argmin(1, keepdim=True)
    return kept.scatter(1, question, ordered.indices[..., 1].gather(1, question))


def noise_eot(
    log_odds: Logits,
    wanted: Wanted,
    noise: NoiseSettings,
    pixels: Tensor,
    seeds: Sequence[int],
    settings: NoiseEOT | None = None,
    *,
    prepare: Prepare | None = None,
    hide: Margins | None = None,
    chunk: int = CHUNK,
) -> Attacked:
    """Match `wanted` by changing `pixels` (n, C, H, W): prepared ones, or what `prepare` makes prepared ones of.

    `seeds`: one for each image.
    `hide`: anything else that has to be small, (pixels, which) -> (n,), added to the loss as it is, such as a feature
    distance over its usual size. Flips and margins count from the answers that `log_odds` gives to `pixels` now.

    Raises:
        DicomguardError: see `descend`.

    """
    settings = settings or NoiseEOT()
    if not len(pixels):
        return Attacked.untried(pixels)
    check = NoiseCheck(log_odds, noise, seeds, prepare)
    with torch.no_grad():
        every = torch.arange(len(pixels), device=pixels.device)
        parts = zip(torch.split(pixels, chunk), torch.split(every, chunk), strict=True)
        kept = torch.cat([head.answers(check.look(part, places, ()).clean) for part, places in parts])

    def loss(current: Tensor, which: Tensor, step: int) -> tuple[Tensor, Tensor]:
        seen = check.look(current, which, check.ladder(settings.draws, step), step)
        targets = wanted.targets[which]
        odds = pairwise(seen.clean, targets)
        size = _short if settings.one_sided else _squares
        value = size((odds - wanted.clean[which]) / wanted.spread[which])
        if seen.draws:
            # Image, draw, question, class.
            shaken = pairwise(seen.noisy, targets.unsqueeze(1).expand(seen.noisy.shape[:3]))
            if settings.one_sided:
                off = (shaken - wanted.clean[which].unsqueeze(1)) / wanted.spread[which].unsqueeze(1)
            else:
                levels = [level for level, _ in seen.draws]
                usual, spread = (one[which][:, :, levels].transpose(1, 2) for one in (wanted.drops, wanted.drop_spread))
                off = (odds.unsqueeze(1) - shaken - usual) / spread
            value = value + settings.stay * size(off)
        if hide is not None:
            value = value + hide(current, which)
        return value, head.margins(seen.clean, kept[which])

    # Of one image and its noisy copies together as many go through at once as otherwise of images.
    together = max(chunk // (settings.draws + 1), 1)
    return descend(loss, pixels, seeds, settings.descent, exact=not settings.draws, chunk=together)


def _short(scaled: Tensor) -> Tensor:
    """How far below zero, where `_squares` counts both sides."""
    return (-scaled).clamp(min=0).sum(-1).flatten(1).mean(1)


def _squares(scaled: Tensor) -> Tensor:
    """The mean square over everything but images and classes, where it is the sum over the other classes."""
    return scaled.square().sum(-1).flatten(1).mean(1)


def _drops(one: Observation, question: int, answer: int, levels: int) -> NDArray[np.float64]:
    """Median fall of the log-odds of `answer` against every class, (levels, classes)."""
    odds = one.clean[question, answer] - one.clean[question]
    noisy = one.noisy[:, question, answer, None] - one.noisy[:, question]
    of_level = np.array([level for level, _ in one.draws])
    return np.stack([odds - np.median(noisy[of_level == level], 0) for level in range(levels)])
