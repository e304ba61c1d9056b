"""Several attempts, of which the attacker sends the one that its own copy of the detector likes best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins
from dicomguard.attacks.suite import Attack
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.found import seed_number

Suspicion = Callable[[Tensor, Tensor], Tensor]
"""`suspicion(pixels, which)` -> (n,), larger = more suspicious: a detector as the attacker can run it.

The attacker knows the rule and its threshold, not the site's key: the noise is of its own, and an average or a high
quantile over several keys is what it would calibrate on. Never called with gradients.
"""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What would be sent, its `suspicion` (N,), NaN where nothing flipped, and the `attempts` (N,) that were made."""

    attacked: Attacked
    suspicion: Tensor
    attempts: Tensor


def best_of(
    attack: Attack,
    suspicion: Suspicion,
    margins: Margins,
    pixels: Tensor,
    seeds: Sequence[int],
    *,
    attempts: int = 10,
    threshold: float = -torch.inf,
    chunk: int = CHUNK,
) -> Chosen:
    """Run a randomised attack up to `attempts` times, with other seeds; keep each image's least suspicious flip.

    An image whose flip is less suspicious than `threshold` is not attacked again. Where nothing flipped, the last
    picture tried stands.

    Raises:
        DicomguardError: a suspicion is NaN; infinite is allowed.

    """
    found = Attacked.untried(pixels)
    lowest = torch.full_like(found.margin, torch.inf)
    made = torch.zeros_like(found.flipped, dtype=torch.int64)
    for attempt in range(attempts):
        which = (~(found.flipped & (lowest < threshold))).nonzero()[:, 0]
        if not len(which):
            break
        drawn = [seed_number(seeds[place], "attempt", attempt) for place in which.tolist()]
        tried = attack(_of(margins, which), pixels[which], drawn, chunk=chunk)
        made[which] += 1
        with torch.no_grad():
            score = suspicion(tried.pixels, which).to(lowest)
        if bool(score.isnan().any()):
            raise DicomguardError("A detector's score is NaN.", advice="Check the detector and what it was fitted on.")
        better = tried.flipped & ((score < lowest[which]) | ~found.flipped[which])
        shown = better | ~found.flipped[which]
        places = which[shown]
        for whole, part in (
            (found.pixels, tried.pixels),
            (found.margin, tried.margin),
            (found.flipped, tried.flipped),
            (found.strength, tried.strength),
        ):
            whole[places] = part[shown]
        lowest[which[better]] = score[better]
    return Chosen(found, torch.where(found.flipped, lowest, torch.nan), made)


def _of(margins: Margins, chosen: Tensor) -> Margins:
    """Margins of some images of the batch, by their places among these."""
    return lambda current, which: margins(current, chosen[which])
