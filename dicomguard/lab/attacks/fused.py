"""The scores that a node holds an image against, as differentiable functions for `orthogonal` and `noise_eot`.

`paper_score` is the noise-consistency paper's at one level; `enrolled_score` is the fused one of `scoring.calibration`
less the guard's vote, which is a count and has no gradient: `attacks.joint` takes the guard along. The noise is the
attacker's own. On the same noise both agree with the node's definitions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dicomguard.lab.attacks.deep import Deep, mahalanobis
from dicomguard.lab.attacks.noise_check import Curves, Looked, NoiseCheck, curves
from dicomguard.lab.attacks.orthogonal import DetectorScore
from dicomguard.scoring import head
from dicomguard.scoring.calibration import Calibration, Stage, fused
from dicomguard.scoring.component import Component
from dicomguard.scoring.features import FeatureModel

# What `fused` makes of a surprise of the feature distance alone: one number, defined in one place.
_FEATURE_WEIGHT = 100.0 - fused({"feature_distance": 100.0})


def paper_score(check: NoiseCheck, level: int, *, repeats: int = 8) -> DetectorScore:
    """The median probability drop at one level (an index), the largest over the questions; theta is its threshold."""
    draws = tuple((level, repeat) for repeat in range(repeats))

    def score(pixels: Tensor, which: Tensor, step: int) -> Tensor:
        return curves(check.look(pixels, which, draws, step)).probability_drops[..., 0].amax(1)

    return score


def enrolled_score(
    deep: Deep, check: NoiseCheck, calibration: Calibration, model: FeatureModel | None
) -> DetectorScore:
    """The statistic after the last stage of the cascade, without the guard; its threshold is the calibration's.

    `check` has to look through `deep`'s network. An image is also held where its margin is below the calibration's
    floor: ask `orthogonal` for that as slack.
    """
    stage = calibration.stages[-1]
    if calibration.feature_distance is not None and model is None:
        raise ValueError("the calibration knows a feature distance: without its model the score would be another one")

    def score(pixels: Tensor, which: Tensor, step: int) -> Tensor:
        seen = check.look(pixels, which, stage.draws, step)
        distances = None
        if model is not None and calibration.feature_distance is not None:
            distances = mahalanobis(model, deep(pixels)[1], head.answers(seen.clean.detach()))
        return statistic(seen, distances, calibration)

    return score


def statistic(seen: Looked, distances: Tensor | None, calibration: Calibration) -> Tensor:
    """`Calibration.statistic_after` the last stage, without the guard: (n,), from distances (n, questions)."""
    stage = calibration.stages[-1]
    found = curves(seen)
    answers = head.answers(seen.clean.detach())
    parts = [
        torch.stack([surprise(c, values[:, q]) for q, c in enumerate(getattr(stage, name))], 1)
        for name, values in _noise_values(stage, found, answers).items()
        if name in calibration.used
    ]
    if calibration.feature_distance is not None and distances is not None:
        fitted = enumerate(calibration.feature_distance)
        parts.append(torch.stack([surprise(c, distances[:, q]) for q, c in fitted], 1) - _FEATURE_WEIGHT)
    return torch.cat([part.double() for part in parts], 1).amax(1).clamp(min=0)


def surprise(component: Component, values: Tensor) -> Tensor:
    """`Component.surprise` of (n,), differentiable."""
    unique, first = np.unique(np.asarray(component.values), return_index=True)
    images = len(component.values)
    distinct, above = (torch.from_numpy(part).double().to(values.device) for part in (unique, images - first))
    value = values.double().contiguous()
    right = torch.searchsorted(distinct, value.detach()).clamp(1, len(distinct) - 1) if len(distinct) > 1 else None
    if right is None:
        rank = above[-1].expand_as(value)
    else:
        left = right - 1
        share = ((value - distinct[left]) / (distinct[right] - distinct[left])).clamp(0, 1)
        rank = above[left] + share * (above[right] - above[left])
    inside = math.log(images + 1) - (1 + rank).log()
    beyond = torch.log1p((value - distinct[-1]).clamp(min=0) / component.tail)
    return torch.where(value < distinct[0], 0.0, inside + beyond)


def _noise_values(stage: Stage, seen: Curves, answers: Tensor) -> dict[str, Tensor]:
    """`Stage.values` of n images: each (n, questions)."""
    device = answers.device
    questions = torch.arange(answers.shape[1], device=device)
    probability = torch.tensor(stage.probability_scale, dtype=torch.float64, device=device)
    odds = torch.tensor(stage.log_odds_scale, dtype=torch.float64, device=device)[questions, answers]
    return {
        "probability_drop": (seen.probability_drops.double() / probability).amax(2),
        "log_odds_drop": (seen.log_odds_drops.double() / odds).amax((2, 3)),
        "noisy_margin": -seen.noisy_margins.double().amin(2),
    }
