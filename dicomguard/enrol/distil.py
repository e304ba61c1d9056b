"""The certified guard is distilled: a small network learns the protected model's answers, under noise, without labels.

Each picture is shown moved a little, with the protected model's own answer to the moved picture; two noise draws of one
picture are pulled towards each other, because only votes that agree certify (Jeong, Shin 2020, arXiv 2006.04062). The
weights are averaged over the last steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dicomguard.enrol.cleanset import CleanSet
from dicomguard.scoring.device import half_on_cpu
from dicomguard.scoring.guard import GuardNetwork, output_count
from dicomguard.scoring.head import Head
from dicomguard.scoring.scorer import Scorer

Advance = Callable[[str, float], None]
_TARGETS = "ask the protected model"
_TRAINING = "train the guard"


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a guard is trained. Angles in degrees, zoom and shift as shares, `consistency` weighs agreement of draws."""

    seed: int = 2026
    variants: int = 6
    epochs: int = 24
    least_steps: int = 400
    batch: int = 64
    draws: int = 2
    rate: float = 2e-3
    weight_decay: float = 5e-4
    consistency: float = 1.0
    rotation: float = 6.0
    zoom: float = 0.06
    shift: float = 0.03
    averaging: float = 0.01


@dataclass(frozen=True, slots=True)
class Lessons:
    """Planes (variants, N, 1, 64, 64), float16, and the model's log-odds (variants, N, questions, classes)."""

    planes: Tensor
    log_odds: Tensor

    def __len__(self) -> int:
        return self.planes.shape[1]


def moved(batches: tuple[Tensor, ...], settings: Distillation, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Rotate, zoom and shift; the same for the same place of every batch (N, C, H, W), whatever its size."""
    count = len(batches[0])

    def draw(width: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * width

    angle, zoom = draw(math.radians(settings.rotation)), 1 + draw(settings.zoom)
    right, down = draw(2 * settings.shift), draw(2 * settings.shift)
    theta = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), right], 1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), down], 1),
        ],
        1,
    )
    grids = [F.affine_grid(theta, list(batch.shape), align_corners=False) for batch in batches]
    pairs = zip(batches, grids, strict=True)
    return tuple(F.grid_sample(b, grid, padding_mode="border", align_corners=False).clamp(0, 1) for b, grid in pairs)


def lessons(scorer: Scorer, clean: CleanSet, settings: Distillation, advance: Advance) -> Lessons:
    """Ask the protected model about every picture as it is, and about moved ones."""
    generator = torch.Generator().manual_seed(settings.seed)
    planes: list[Tensor] = []
    odds: list[Tensor] = []
    for variant in range(settings.variants):
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(clean), 16):
            batch = clean.batch(range(start, min(start + 16, len(clean))))
            pixels, small = batch.pixels, batch.planes
            assert small is not None
            if variant:
                pixels, small = moved((pixels, small), settings, generator)
            parts.append((small.half(), scorer.quick_log_odds(pixels)))
            advance(_TARGETS, len(pixels) / (len(clean) * settings.variants))
        planes.append(torch.cat([small for small, _ in parts]))
        odds.append(torch.cat([found for _, found in parts]))
    return Lessons(torch.stack(planes), torch.stack(odds))


def distil(
    taught: Lessons, reading: Head, sigma: float, settings: Distillation, advance: Advance, *, width: int = 32
) -> GuardNetwork:
    """Train a guard for noise `sigma` on `taught`. Deterministic on one machine by the settings' seed."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    network = GuardNetwork(output_count(reading), width).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(network)
    count, variants = len(taught), len(taught.planes)
    batch = min(settings.batch, count)
    per_epoch = math.ceil(count / batch)
    epochs = max(settings.epochs, math.ceil(settings.least_steps / per_epoch))
    steps = epochs * per_epoch
    optimizer = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps, pct_start=0.2)
    network.train()
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, batch):
            places = order[start : start + batch]
            which = torch.randint(variants, (len(places),), generator=generator)
            (planes,) = moved((taught.planes[which, places].float(),), settings, generator)
            noisy = planes.repeat(settings.draws, 1, 1, 1)
            noisy = noisy + sigma * torch.randn(noisy.shape, generator=generator)
            with half_on_cpu():
                outputs = network(noisy.contiguous(memory_format=torch.channels_last))
            loss = _loss(outputs.float(), taught.log_odds[which, places], reading, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()
            # Early averages would remember the random start, so the first epoch forgets faster.
            _average(averaged, network, settings.averaging if epoch else 0.1)
            advance(_TRAINING, 1 / steps)
    return averaged.eval()


def _loss(outputs: Tensor, taught: Tensor, reading: Head, settings: Distillation) -> Tensor:
    """Cross-entropy with the protected model's probabilities, and with the mean of the draws' own."""
    odds = reading.log_odds(outputs)
    odds = odds.view(settings.draws, -1, *odds.shape[1:])
    target = taught.softmax(-1)
    log_p = odds.log_softmax(-1)
    mean = log_p.exp().mean(0).clamp(min=1e-5)
    learned = -(target * log_p).sum(-1).mean()
    agreement = -(mean * log_p).sum(-1).mean()
    return learned + settings.consistency * agreement


def _average(averaged: torch.nn.Module, network: torch.nn.Module, weight: float) -> None:
    with torch.no_grad():
        for mean, value in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
