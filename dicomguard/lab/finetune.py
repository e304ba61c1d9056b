"""Fine-tune the last layers of an ImageNet network on images under a little noise.

The early blocks stay as ImageNet made them: their noise-fragile features are what the noise check lives on. Because
they are frozen, each augmented variant of an image runs through them once and only their output is kept; the epochs
then train on that cache, which makes the difference between hours and minutes on two cores.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dicomguard.scoring.device import half_on_cpu
from dicomguard.scoring.networks import EfficientNetLite0

Advance = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a classifier is trained. Noise and smoothing in units of the image range [0, 1]; angles in degrees."""

    seed: int = 2026
    frozen_blocks: int = 9
    variants: int = 8
    epochs: int = 24
    batch: int = 64
    rate: float = 1e-3
    weight_decay: float = 1e-4
    label_smoothing: float = 0.02
    noise: float = 0.05
    noisy_share: float = 0.6
    rotation: float = 8.0
    zoom: float = 0.08
    shift: float = 0.04
    gamma: float = 0.2
    gain: float = 0.1
    mirror: bool = False


def augment(batch: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Geometry, gray scale and uniform noise, one draw for each image. Shape (N, C, H, W) in [0, 1], same out."""
    count = len(batch)

    def draw(width: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * width

    angle = draw(math.radians(settings.rotation))
    zoom = 1 + draw(settings.zoom)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5 * settings.mirror, -1.0, 1.0)
    theta = torch.stack(
        [
            torch.stack([flip * zoom * angle.cos(), -zoom * angle.sin(), draw(2 * settings.shift)], 1),
            torch.stack([zoom * angle.sin() * flip, zoom * angle.cos(), draw(2 * settings.shift)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    batch = F.grid_sample(batch, grid, padding_mode="border", align_corners=False).clamp(0, 1)
    exponent = torch.exp(draw(settings.gamma)).view(-1, 1, 1, 1)
    gain = (1 + draw(settings.gain)).view(-1, 1, 1, 1)
    batch = (batch.pow(exponent) * gain + draw(settings.gain / 2).view(-1, 1, 1, 1)).clamp(0, 1)
    level = torch.rand(count, generator=generator) * settings.noise
    level = level * (torch.rand(count, generator=generator) < settings.noisy_share)
    noise = torch.rand(batch.shape, generator=generator) * 2 - 1
    return (batch + noise * level.view(-1, 1, 1, 1)).clamp(0, 1)


def _early(network: EfficientNetLite0, batch: Tensor, blocks: int) -> Tensor:
    planes = ((batch - 0.5) / 0.5).expand(-1, 3, -1, -1).to(memory_format=torch.channels_last)
    with torch.inference_mode(), half_on_cpu():
        return cast("Tensor", network.features[:blocks](planes)).to(torch.bfloat16)


def cache_features(
    network: EfficientNetLite0, images: NDArray[np.float32], settings: Settings, advance: Advance
) -> list[Tensor]:
    """The early blocks' output for every variant: `variants` bfloat16 tensors of shape (N, C, h, w).

    Variant 0 is the images as they are, the others are augmented.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    cache: list[Tensor] = []
    for variant in range(settings.variants):
        parts = []
        for start in range(0, len(images), 8):
            batch = torch.from_numpy(images[start : start + 8])
            batch = batch.unsqueeze(1) if batch.ndim == 3 else batch
            if variant:
                batch = augment(batch, settings, generator)
            parts.append(_early(network, batch, settings.frozen_blocks))
            advance("features", len(batch) / (len(images) * settings.variants))
        cache.append(torch.cat(parts))
    return cache


def finetune(
    network: EfficientNetLite0,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    settings: Settings,
    advance: Advance,
    *,
    resume: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _state: None,
) -> Iterator[tuple[int, EfficientNetLite0]]:
    """Train blocks from `frozen_blocks` on and the head; yields (epoch, network in evaluation mode) after each epoch.

    `images`: float32 (N, H, W) or (N, C, H, W) in [0, 1]; `labels`: 0 and up, weighted so that all classes count the
    same. The yielded network is an average of the weights over the last steps (decay .98), less jumpy than the last
    step. `keep` is handed the state after each epoch, before it is yielded; as `resume` it makes a second run go on
    after that epoch.
    """
    torch.manual_seed(settings.seed)
    cache = cache_features(network, images, settings, advance)
    tail = network.features[settings.frozen_blocks :]
    trained = nn.ModuleList([tail, network.head])
    averaged = copy.deepcopy(network)
    shadow = nn.ModuleList([averaged.features[settings.frozen_blocks :], averaged.head])
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in trained.parameters():
        parameter.requires_grad_()
        (decay if parameter.ndim > 1 else plain).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.rate,
    )
    steps = settings.epochs * math.ceil(len(images) / settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps, pct_start=0.15)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    truth = torch.from_numpy(labels)
    outputs = network.head.out_features
    classes = max(outputs, 2)
    weights = len(labels) / (classes * torch.bincount(truth, minlength=classes).clamp(min=1).float())
    first = 0
    if resume is not None:
        first = _restore(resume, trained, shadow, optimizer, schedule, generator)
        advance("training", first / settings.epochs)
    network.eval()  # batch statistics stay ImageNet's; only weights and affine parts move
    network.dropout.train()
    for epoch in range(first, settings.epochs):
        order = torch.randperm(len(images), generator=generator)
        variants = torch.randint(settings.variants, (len(images),), generator=generator)
        for start in range(0, len(order), settings.batch):
            chosen = order[start : start + settings.batch]
            batch = torch.stack([cache[int(variants[i])][int(i)] for i in chosen])
            with half_on_cpu():
                logits = network.classify(tail(batch.float()))
            loss = weighted_loss(logits.float(), truth[chosen], weights, settings.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for mean, value in zip(shadow.parameters(), trained.parameters(), strict=True):
                    mean.lerp_(value, 0.02)
            advance("training", len(chosen) / (len(images) * settings.epochs))
        keep(
            {
                "epoch": epoch,
                "trained": trained.state_dict(),
                "shadow": shadow.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "random": torch.get_rng_state(),
            }
        )
        yield epoch, averaged.eval()


def weighted_loss(logits: Tensor, truth: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of (N, 1) or (N, classes) logits, each image weighted by its class: a scalar."""
    if logits.shape[1] == 1:
        soft = truth.float() * (1 - 2 * smoothing) + smoothing
        return F.binary_cross_entropy_with_logits(logits[:, 0], soft, weight=weights[truth])
    each = F.cross_entropy(logits, truth, reduction="none", label_smoothing=smoothing)
    return (each * weights[truth]).mean()


def _restore(
    state: Mapping[str, Any],
    trained: nn.Module,
    shadow: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
) -> int:
    """Everything as it was after an epoch; returns the next one."""
    trained.load_state_dict(state["trained"])
    shadow.load_state_dict(state["shadow"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])
    return int(state["epoch"]) + 1
