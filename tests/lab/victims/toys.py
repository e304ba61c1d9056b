"""A collection that a small network learns in seconds: a bright patch, or none."""

from __future__ import annotations

from functools import partial

import numpy as np
from pydicom.dataset import Dataset

from dicomguard.lab.cases import Case
from dicomguard.lab.data import Collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.finetune import Settings
from dicomguard.lab.instances import secondary_capture
from dicomguard.lab.victims.grid import Origin, Plan, Stage, Victim

STILL = Settings(noise=0.0, noisy_share=0.0, rotation=0.0, zoom=0.0, shift=0.0, gamma=0.0, gain=0.0)


def instance(seed: int, label: int, planes: int, bits: int) -> Dataset:
    rng = np.random.default_rng(seed)
    shape = (40, 40, 3) if planes == 3 else (40, 40)
    picture = rng.integers(60, 100, shape)
    row = 4 + 12 * label
    picture[row : row + 8, 8:32] += 100 * (label > 0)
    return secondary_capture(picture.astype(np.uint8), bits=bits, name=str(seed))


def collection(train: int = 48, *, classes: int = 2, planes: int = 1, others: int = 18) -> Collection:
    first = 0
    parts = {}
    for split, count in zip(Split, (train, others, others, others), strict=True):
        parts[split] = tuple(
            Case(str(first + i), i % classes, str(first + i), partial(instance, first + i, i % classes, planes))
            for i in range(count)
        )
        first += count
    labels = ("none", "patch", "low patch")[:classes]
    return Collection("toy set", labels, "Made up.", 8, parts, planes=planes, limits=("It is made up.",))


def victim(
    *stages: Stage, target: str = "VGG11", origin: Origin = Origin.RANDOM, patience: int = 5, **arguments: object
) -> Victim:
    return Victim(
        name="toy",
        target=target,
        arguments=arguments or {"width": 0.0625, "dropout": 0.0},
        side=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        plan=Plan(stages or (Stage(1.0, 6, 5e-3),), STILL, batch=8, patience=patience),
        origin=origin,
        reduction="A toy.",
    )
