"""Networks whose nearest adversarial pictures are known, and, from the comparison, a small one that was trained."""

from __future__ import annotations

import torch
from torch import Tensor

from dicomguard.lab.attacks.oracle import blobs, trained
from tests.attacks.toys import noise_pictures, small_net

__all__ = ["SLOPE", "at", "blobs", "classes", "corners", "findings", "logit", "tilted", "trained", "two"]

SLOPE = torch.linspace(-1, 2, 16).reshape(1, 1, 4, 4)


def tilted(x: Tensor) -> Tensor:
    """A linear logit: the picture `at(distance)` lies that far, in L2, from its boundary."""
    logit: Tensor = ((x - 0.5) * SLOPE).sum((1, 2, 3))
    return logit


def at(*distances: float) -> Tensor:
    """Pictures around mid gray, those at a positive distance on the positive side."""
    unit = SLOPE / SLOPE.norm()
    return torch.cat([0.5 + distance * unit for distance in distances])


def corners(x: Tensor) -> Tensor:
    """One question of three classes whose boundaries are planes: (n, 1, 3), on (n, 1, 1, 2)."""
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0]])
    return (((x - 0.5).flatten(1) @ weights.T) + torch.tensor([0.1, 0.0, -0.1])).unsqueeze(1)


_NETS = {kind: small_net(4, seed=1).double() for kind in ("classes", "findings")}
_MIDDLE = _NETS["classes"](noise_pictures(64, seed=99).double()).mean(0)


def classes(x: Tensor) -> Tensor:
    """A curved question of four classes on `noise_pictures`."""
    found: Tensor = (_NETS["classes"](x.double()) - _MIDDLE).float().unsqueeze(1)
    return found


def findings(x: Tensor) -> Tensor:
    """Four curved yes-or-no questions."""
    logits = (_NETS["findings"](x.double()) - _MIDDLE).float()
    return torch.stack([torch.zeros_like(logits), logits], -1)


def logit(x: Tensor) -> Tensor:
    """The one logit of `trained`, (n,)."""
    found: Tensor = trained()(x)[:, 0]
    return found


def two(x: Tensor) -> Tensor:
    """The same as log-odds of one question with two classes, (n, 1, 2)."""
    found = logit(x)
    return torch.stack([torch.zeros_like(found), found], -1).unsqueeze(1)
