"""Networks whose nearest adversarial pictures are known, and a small one that was really trained."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.attacks.toys import noise_pictures, small_net

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


SIDE = 20


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures (n, 1, 20, 20) with a bright spot (label 1) or without one."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    ground = F.interpolate(torch.rand(n, 1, 5, 5, generator=generator), SIDE, mode="bilinear")
    place = torch.randint(5, SIDE - 5, (n, 2), generator=generator)
    grid = torch.arange(SIDE)
    far = (grid[None, :, None] - place[:, :1, None]) ** 2 + (grid[None, None] - place[:, 1:, None]) ** 2
    spot = torch.exp(-far / 6.0) * label.view(-1, 1, 1) * 0.6
    pixels = 0.3 * ground + 0.1 + spot.unsqueeze(1) + 0.03 * torch.randn(n, 1, SIDE, SIDE, generator=generator)
    return pixels.clamp(0, 1), label


@functools.cache
def trained() -> nn.Module:
    """A CNN with one logit that tells `blobs` apart, trained in a few seconds."""
    with torch.random.fork_rng(), torch.inference_mode(mode=False), torch.enable_grad():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.SiLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 1),
        )  # fmt: skip
        optimiser = torch.optim.Adam(net.parameters(), 0.01)
        for step in range(120):
            pixels, label = blobs(64, 1000 + step)
            loss = F.binary_cross_entropy_with_logits(net(pixels)[:, 0], label.float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval().requires_grad_(requires_grad=False)


def logit(x: Tensor) -> Tensor:
    """The one logit of `trained`, (n,)."""
    found: Tensor = trained()(x)[:, 0]
    return found


def two(x: Tensor) -> Tensor:
    """The same as log-odds of one question with two classes, (n, 1, 2)."""
    found = logit(x)
    return torch.stack([torch.zeros_like(found), found], -1).unsqueeze(1)
