"""Sights made of random numbers with known laws, in no time."""

from __future__ import annotations

import numpy as np
import torch

from dicomguard.lab.detectors.sight import Sight
from dicomguard.scoring.calibration import Evidence
from dicomguard.scoring.consistency import NoiseSettings, Observation

SETTINGS = NoiseSettings((0.01, 0.03, 0.05), 4)
LADDER = SETTINGS.ladder()
STRENGTHS = np.array([SETTINGS.levels[level] for level, _ in LADDER])


def sight(
    seed: int,
    count: int,
    *,
    drop: float = 0.0,
    shift: float = 0.0,
    margin: float = 4.0,
    width: int = 6,
    side: int = 8,
    planted: float = 0.0,
    distances: bool = False,
    guard: float | None = None,
) -> Sight:
    """Two classes, taking turns. `drop`: what noise of 5 % takes from the log-odds; `shift` of all features.

    `planted`: the strength of a checkerboard on the pixels. `guard`: the share of votes that is expected.
    """
    rng = np.random.default_rng(seed)
    answers = np.arange(count) % 2
    signs = np.where(answers == 1, 1.0, -1.0)
    odds = np.zeros((count, 1, 2))
    odds[:, 0, 1] = signs * (margin * rng.uniform(0.5, 1.5, count))
    features = rng.normal(0, 1, (count, width)) + shift
    features[:, 0] += 4 * signs
    noisy = np.repeat(odds[:, None], len(LADDER), 1)
    noisy[..., 1] += rng.normal(0, 10, (count, len(LADDER), 1)) * STRENGTHS[:, None]
    noisy[..., 1] -= signs[:, None, None] * drop * STRENGTHS[:, None] / 0.05
    pixels = torch.from_numpy(rng.random((count, 1, side, side)).astype(np.float32))
    board = torch.from_numpy((np.indices((side, side)).sum(0) % 2 * 2.0 - 1).astype(np.float32))
    far = rng.chisquare(5, (count, 1)) + shift
    votes = None if guard is None else rng.binomial(64, guard, count) / 64
    evidence = tuple(
        Evidence(
            Observation(odds[i], noisy[i], LADDER), far[i] if distances else None, None if votes is None else votes[i]
        )
        for i in range(count)
    )
    return Sight((pixels + planted * board).clamp(0, 1), odds, features, evidence)
