"""Networks small enough to know the answer of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(x: Tensor) -> Tensor:
    """A logit whose gradient is one everywhere: an L-inf change of a moves it by a, per pixel on average."""
    return x.mean((1, 2, 3)) - 0.5


def picture(*logits: float) -> Tensor:
    """Flat pictures to which `linear` gives these logits."""
    return torch.stack([torch.full((1, 4, 4), 0.5 + logit) for logit in logits])


def small_net(outputs: int = 1, seed: int = 0) -> nn.Module:
    """A curved network on (n, 1, 8, 8) with (n, outputs) logits, in which attacks have to turn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2), nn.SiLU(), nn.Flatten(),
            nn.Linear(72, outputs),
        )  # fmt: skip
    for parameter in net.parameters():
        parameter.requires_grad_(requires_grad=False)
        parameter.mul_(2)
    return net.eval()


def noise_pictures(n: int, seed: int = 0) -> Tensor:
    return torch.rand((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


_NET = small_net(seed=3).double()  # in double, for the sign of a gradient near zero hangs on the order of a sum
_MIDDLE = _NET(noise_pictures(64, seed=99).double()).median()


def curved(x: Tensor) -> Tensor:
    """One curved logit, about as often positive as negative on `noise_pictures`."""
    logits: Tensor = (_NET(x.double())[:, 0] - _MIDDLE).float()
    return logits
