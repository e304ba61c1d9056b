"""Pictures attacked on a network that the attacker has, looked at by the one that is attacked (Szegedy et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins, values
from dicomguard.attacks.suite import Attack


def transfer(
    attack: Attack, surrogate: Margins, victim: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK
) -> Attacked:
    """`attack` on the surrogate; flips and margins of the result are the victim's, strength the surrogate's radius.

    Where the surrogate did not flip, the last picture tried is shown to the victim all the same, and the strength is
    its L-inf distance. Both margins see the same pixels (N, C, H, W): presentation values where the networks'
    preprocessings differ.
    """
    sent = attack(surrogate, pixels, seeds, chunk=chunk)
    found = Attacked.untried(sent.pixels)
    which = found.unflipped()
    if not len(which):
        return found
    margin = values(victim, sent.pixels, which, chunk=chunk)
    found.record(which, sent.pixels, margin, radius=0.0)
    distance = (sent.pixels - pixels).abs().flatten(1).amax(1)
    radius = torch.where(sent.strength.isnan(), distance, sent.strength)
    found.strength.copy_(torch.where(found.flipped, radius, torch.nan))
    return found
