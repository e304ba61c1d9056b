"""The batched random-noise consistency check of the noise-consistency paper (section 2.3), as numbers of one image.

With z the logit, s its sign, m = s*z >= 0 the margin, and p_c = sigmoid(m) the predicted class's probability:
t_l = median over r of [p_c(x) - p_c(clip(x + n_lr))], g_l the same of the margin, M_l the median noisy margin. Noise is
uniform in [-e_l, e_l], drawn once on the gray plane (the network sees it replicated), and the sum is clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomguard.scoring import noise

# Images that go through the network at once on a CPU: their activations stay in cache, which is worth a factor of two.
CPU_CHUNK = 8
DEVICE_CHUNK = 512


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """Noise levels as fractions of the unit input range, and how many draws the median is taken over."""

    levels: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05)
    repeats: int = 8


@dataclass(frozen=True, slots=True)
class NoiseCurve:
    """What the check saw of one image. Arrays of one number for each noise level; see `decision.Score`."""

    logit: float
    probability: float
    margin: float
    probability_drops: NDArray[np.float64]
    logit_drops: NDArray[np.float64]
    noisy_margins: NDArray[np.float64]


def noisy_copies(image: Tensor, seed: bytes, settings: NoiseSettings) -> Tensor:
    """The image itself and its noisy copies: shape (planes, H, W) -> (1 + levels * repeats, planes, H, W)."""
    streams = range(len(settings.levels) * settings.repeats)
    drawn = noise.uniform(seed, streams, tuple(image.shape), image.device)
    strength = torch.tensor(settings.levels, device=image.device).repeat_interleave(settings.repeats)
    drawn = drawn.mul_(strength.view(-1, 1, 1, 1)).add_(image).clamp_(0, 1)
    return torch.cat([image.unsqueeze(0), drawn])


def curves(
    logits: Callable[[Tensor], Tensor], batch: Tensor, seeds: Sequence[bytes], settings: NoiseSettings
) -> list[NoiseCurve]:
    """One curve for each image of a batch (N, planes, H, W); `logits` maps (M, planes, H, W) to (M,).

    The copies of neighbouring images share forward passes of one fixed shape, so that neither the batch size nor the
    neighbours are an input to the result (beyond rounding of the last bit).
    """
    if len(seeds) != len(batch):
        raise ValueError(f"{len(batch)} images need as many seeds, not {len(seeds)}")
    chunk = CPU_CHUNK if batch.device.type == "cpu" else DEVICE_CHUNK
    pending: list[Tensor] = []
    held = 0
    found: list[Tensor] = []
    with torch.inference_mode():
        for image, seed in zip(batch, seeds, strict=True):
            pending.append(noisy_copies(image, seed, settings))
            held += len(pending[-1])
            if held >= chunk:
                stack = torch.cat(pending)
                whole = held - held % chunk
                found += [logits(part) for part in torch.split(stack[:whole], chunk)]
                pending, held = [stack[whole:]], held - whole
        if held:
            rest = torch.cat(pending)
            padded = torch.cat([rest, rest[-1:].expand(chunk - held, -1, -1, -1)])
            found.append(logits(padded)[:held])
    per_image = 1 + len(settings.levels) * settings.repeats
    values = torch.cat(found).double().cpu().numpy().reshape(len(batch), per_image) if found else np.empty((0, 1))
    return [_curve(row, settings) for row in values]


def _curve(row: NDArray[np.float64], settings: NoiseSettings) -> NoiseCurve:
    """`row`: the clean logit, then levels x repeats noisy logits."""
    sign = 1.0 if row[0] >= 0 else -1.0
    margins = sign * row
    probabilities = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
    noisy = margins[1:].reshape(len(settings.levels), settings.repeats)
    noisy_probabilities = probabilities[1:].reshape(noisy.shape)
    return NoiseCurve(
        logit=float(row[0]),
        probability=float(probabilities[0]),
        margin=float(margins[0]),
        probability_drops=probabilities[0] - np.median(noisy_probabilities, 1),
        logit_drops=margins[0] - np.median(noisy, 1),
        noisy_margins=np.median(noisy, 1),
    )
