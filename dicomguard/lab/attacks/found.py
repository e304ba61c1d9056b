"""What every attack of the lab does with what it found."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked


def measured(found: Attacked, clean: Tensor) -> Attacked:
    """The same with the L-inf distance from `clean` as strength, for attacks that are given no radius."""
    distance = (found.pixels - clean).abs().flatten(1).amax(1) if clean.numel() else found.strength
    found.strength.copy_(torch.where(found.flipped, distance, torch.nan))
    return found


def lengths(change: Tensor) -> Tensor:
    """The L2 norm of each of (n, C, H, W): (n,)."""
    return change.square().sum((1, 2, 3)).sqrt()


def wide(column: Tensor) -> Tensor:
    """(n,) as (n, 1, 1, 1), to weigh pictures with."""
    return column.view(-1, 1, 1, 1)


def seed_bytes(seed: int, *purpose: int | str) -> bytes:
    """32 bytes for `scoring.noise` that stand for one image's seed and what is drawn: independent of its neighbours."""
    return hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()


def seed_number(seed: int, *purpose: int | str) -> int:
    """Another seed made of one, for a run of its own; at most 63 bits."""
    return int.from_bytes(seed_bytes(seed, *purpose)[:8], "big") >> 1
