"""Attacks that imitate one clean image of another class: its log-odds, or its deep features.

Logit matching is the attack that broke "The odds are odd" without looking at its noise at all (Tramer et al. 2020);
feature matching is what hides from a detector of unusual features (the same, and Yao et al. 2021 on medical images).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Logits
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.deep import Deep
from dicomguard.lab.attacks.descend import Descent, descend
from dicomguard.lab.attacks.noise_check import NoiseCheck, Prepare, curves, pairwise
from dicomguard.lab.attacks.noise_eot import NoiseEOT, Wanted, noise_eot
from dicomguard.scoring import head
from dicomguard.scoring.consistency import NoiseSettings


@dataclass(frozen=True, slots=True)
class FeatureMatching:
    """`draws`: of noise for each step, under which the features shall match too; 0 for none."""

    descent: Descent = field(default_factory=Descent)
    draws: int = 0


def choose_guides(features: Tensor, answers: Tensor, pool: Tensor, pool_answers: Tensor) -> Tensor:
    """For each of n images the place in a pool of the nearest image with another answer, in L2 of features: (n,) int64.

    `features` (n, F), `answers` (n, questions); `pool` and `pool_answers` are those of the clean images to imitate.

    Raises:
        DicomguardError: the pool has no image with another answer than one of these.

    """
    same = (answers.unsqueeze(1) == pool_answers.unsqueeze(0)).all(-1)
    if bool(same.all(1).any()):
        raise DicomguardError(
            "There is no clean image with another answer to imitate.", advice="Add images of every class to the pool."
        )
    return torch.cdist(features.double(), pool.double()).masked_fill(same, torch.inf).argmin(1)


def logits_of(
    log_odds: Logits, guides: Tensor, noise: NoiseSettings, seeds: Sequence[int], *, draws: int, chunk: int = CHUNK
) -> Wanted:
    """The log-odds of the guides (n, planes, H, W) as what to match, and how they fall in `draws` draws of noise."""
    check = NoiseCheck(log_odds, noise, seeds)
    ladder = check.ladder(max(draws, len(noise.levels))) if draws else ()
    targets, clean, drops = [], [], []
    with torch.no_grad():
        for part, places in zip(torch.split(guides, chunk), torch.split(torch.arange(len(guides)), chunk), strict=True):
            seen = check.look(part, places, ladder)
            kept = head.answers(seen.clean)
            odds = pairwise(seen.clean, kept)
            targets.append(kept)
            clean.append(odds)
            falls = odds.new_zeros((*odds.shape[:2], len(noise.levels), odds.shape[2]))
            drops.append(curves(seen, kept).log_odds_drops.clamp(min=-1e9) if ladder else falls)
    found, fallen = torch.cat(clean), torch.cat(drops)
    own = torch.nn.functional.one_hot(torch.cat(targets), found.shape[-1]).bool().unsqueeze(2)
    fallen = fallen.masked_fill(own, 0)
    return Wanted(torch.cat(targets), found, torch.ones_like(found), fallen, torch.ones_like(fallen))


def logit_matching(
    log_odds: Logits,
    guides: Tensor,
    noise: NoiseSettings,
    pixels: Tensor,
    seeds: Sequence[int],
    settings: NoiseEOT | None = None,
    *,
    prepare: Prepare | None = None,
    chunk: int = CHUNK,
) -> Attacked:
    """Match each image's log-odds with its guide's, which is prepared (n, planes, H, W); with `draws`, under noise too.

    The default draws nothing: that already deceives detectors whose statistic depends on the log-odds alone.
    """
    settings = settings or NoiseEOT(draws=0)
    if not len(pixels):
        return Attacked.untried(pixels)
    wanted = logits_of(log_odds, guides, noise, seeds, draws=settings.draws, chunk=chunk)
    return noise_eot(log_odds, wanted, noise, pixels, seeds, settings, prepare=prepare, chunk=chunk)


def feature_matching(
    deep: Deep,
    guides: Tensor,
    pixels: Tensor,
    seeds: Sequence[int],
    settings: FeatureMatching | None = None,
    *,
    noise: NoiseSettings | None = None,
    prepare: Prepare | None = None,
    chunk: int = CHUNK,
) -> Attacked:
    """Bring the features of each image to its guide's: the squared distance, as a share of what it is at the start.

    `guides` are prepared, `pixels` are what `prepare` makes prepared ones of, or prepared too. With draws, image and
    guide get the same noise. Flips and margins count from the answers that the network gives now.

    Raises:
        DicomguardError: see `descend`.

    """
    settings = settings or FeatureMatching()
    if not len(pixels):
        return Attacked.untried(pixels)
    check = NoiseCheck(lambda current: deep(current)[0], noise or NoiseSettings(), seeds, prepare)
    every = torch.arange(len(pixels), device=pixels.device)
    with torch.no_grad():
        parts = zip(torch.split(pixels, chunk), torch.split(every, chunk), strict=True)
        kept, start = _both(deep, [check.prepare(part, places) for part, places in parts])
        _, goal = _both(deep, torch.split(guides, chunk))
    far = (start - goal).square().sum(1).clamp(min=1e-12)

    def loss(current: Tensor, which: Tensor, step: int) -> tuple[Tensor, Tensor]:
        prepared = check.prepare(current, which)
        odds, seen = deep(prepared)
        value = (seen - goal[which]).square().sum(1)
        if settings.draws:
            draws = check.ladder(settings.draws, step)
            with torch.no_grad():
                aims = deep(check.copies(guides[which], which, draws, step))[1]
            apart = (deep(check.copies(prepared, which, draws, step))[1] - aims).square().sum(1)
            value = (value + apart.view(len(which), settings.draws).mean(1)) / 2
        return value / far[which], head.margins(odds, kept[which])

    together = max(chunk // (settings.draws + 1), 1)
    return descend(loss, pixels, seeds, settings.descent, exact=not settings.draws, chunk=together)


def _both(deep: Deep, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Answers (n, questions) and features (n, F), of pixels in chunks."""
    found = [deep(part) for part in prepared]
    return torch.cat([head.answers(odds) for odds, _ in found]), torch.cat([seen for _, seen in found])
