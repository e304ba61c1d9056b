"""Networks, pictures and enrolments that are made in a second; their promises are worth nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dicomguard.decision import Score
from dicomguard.enrol.enrolling import plan
from dicomguard.pixels.image import Image, StoredMapping
from dicomguard.pixels.miniature import Miniature, averaged
from dicomguard.scoring import bundle, calibration, enrolment, features, networks, noise
from dicomguard.scoring.bundle import Constructor, Inference, Input, Noise
from dicomguard.scoring.calibration import COMPONENTS
from dicomguard.scoring.enrolment import Enrolment
from dicomguard.scoring.guard import Guard, GuardNetwork, GuardSettings, output_count
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Batch, Scorer
from dicomguard.scoring.study_test import StudyCalibration

BINARY = ("normal", "opacity")
# Certifies next to nothing, but soon: the guard was never taught.
GUARD = GuardSettings(
    sigma=1.0, eps=0.0001, alpha=1e-3, looks=(16, 32), width=4, ranges=(("MONOCHROME2", 0.0, 4095.0, 2.0, 0.0),)
)


def small_inference(
    size: int = 48,
    levels: Sequence[float] = (0.01, 0.03, 0.05),
    repeats: int = 4,
    outputs: int = 1,
    head: str = "softmax",
) -> Inference:
    return Inference(
        network_def=Constructor(_target_="EfficientNetLite0", num_classes=outputs),
        preprocessing=[Constructor(_target_="Resize", spatial_size=[size, size], mode="area")],
        input=Input(planes=1, mean=[0.5] * 3, std=[0.5] * 3, size=[size, size]),
        noise=Noise(levels=list(levels), repeats=repeats),
        head=head,
    )


def write_small(
    folder: Path,
    *,
    seed: int = 0,
    size: int = 48,
    levels: Sequence[float] = (0.01, 0.03, 0.05),
    repeats: int = 4,
    labels: tuple[str, ...] = BINARY,
    head: str = "softmax",
) -> Path:
    """Random weights, but batch normalisation has seen images, so that the network answers differently to each."""
    torch.manual_seed(seed)
    outputs = 1 if head == "softmax" and len(labels) == 2 else len(labels)
    network = networks.EfficientNetLite0(outputs)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average of what it sees
    with torch.no_grad():
        for _ in range(6):
            pictures = [torch.from_numpy(gray_image(int(s), size, size).pixels) for s in torch.randint(9999, (16,))]
            network((torch.stack(pictures).expand(-1, 3, -1, -1) - 0.5) / 0.5)
        network.head.weight.mul_(10)
    bundle.write(
        folder,
        state=network.state_dict(),
        metadata={"name": "small", "version": "1.0.0", "labels": labels},
        inference=small_inference(size, levels, repeats, outputs, head),
        card="# small\n",
    )
    return folder


def gray_image(seed: int, rows: int = 60, columns: int = 52, blocks: int = 6) -> Image:
    rng = np.random.default_rng(seed)
    coarse = rng.random((blocks, blocks))
    pixels = np.kron(coarse, np.ones((rows // blocks + 1, columns // blocks + 1)))[:rows, :columns]
    pixels = np.clip(pixels + rng.normal(0, 0.02, pixels.shape), 0, 1)
    stored = np.rint(pixels * 4095)
    return Image(
        pixels=(stored / 4095).astype(np.float32)[np.newaxis],
        frame=0,
        bits_stored=12,
        photometric_interpretation="MONOCHROME2",
        voi="none",
        mapping=StoredMapping(scale=1 / 4095, offset=0.0, low=0, high=4095),
        miniature=Miniature(averaged(stored.astype(np.float32)), 0.0, 4095.0),
    )


def small_seeds(count: int, first: int = 0) -> list[Seeds]:
    return [noise.seeds(b"key", f"1.2.{index}", 0, "", "") for index in range(first, first + count)]


def enrol_small(
    folder: Path,
    out: Path | None = None,
    *,
    images: Sequence[Image] | None = None,
    alpha: float = 0.1,
    guard: GuardSettings | None = GUARD,
    tolerance: float = 0.02,
    **facts: Any,
) -> Enrolment:
    """Enrol a bundle on a few pictures, cut in three, with a guard that was never taught; `facts` replace what it says.

    Everything but the training and the self-test is what `dicomguard enrol` does.
    """
    scorer = Scorer.load(folder, None)
    pictures = list(images or (gray_image(5000 + n) for n in range(90)))
    third = len(pictures) // 3
    answered = scorer.answer(scorer.prepare(pictures[:third]).pixels)
    scorer.feature_model = features.fit(answered.features, answered.log_odds.argmax(-1), scorer.head.classes)
    tensors = {} if scorer.feature_model is None else scorer.feature_model.tensors()
    if guard is not None:
        torch.manual_seed(0)
        network = GuardNetwork(output_count(scorer.head), guard.width).eval()
        untaught = {f"guard.{name}": t for name, t in network.state_dict().items() if t.is_floating_point()}
        scorer.guard = Guard.from_tensors(guard, untaught, scorer.head, scorer.device)
        tensors |= untaught
    stages = plan(scorer.noise)
    seeds = [noise.seeds(b"enrolment", str(n), 0, "", scorer.fingerprint) for n in range(third, len(pictures))]
    evidence, _ = scorer.look(scorer.prepare(pictures[third:]), seeds, stages[-1])
    reference, held_back = evidence[:third], evidence[third:]
    has = {"guard_share": guard is not None, "feature_distance": scorer.feature_model is not None}
    fitted = calibration.fit(
        reference,
        held_back,
        alpha=alpha,
        plan=stages,
        used=tuple(name for name in COMPONENTS if has.get(name, True)),
    )
    scores = [fitted.statistic_of(one)[0] for one in held_back]
    counts = {"images": len(pictures), "patients": len(pictures), "distilled": 0, "validation": 0}
    return enrolment.write(
        out or folder / enrolment.FOLDER,
        {
            "bundle": scorer.name,
            "fingerprint": scorer.fingerprint,
            "created": "2026-11-21",
            "clean_set": {
                "source": "pictures made up",
                "sha256": "0" * 64,
                "reference": third,
                "held_back": len(held_back),
                **counts,
            },
            "alpha": alpha,
            "calibration": fitted,
            "paper": {"theta": [0.1] * len(scorer.noise.levels), "level": 0, "images": third},
            "tolerance": {"statistic": tolerance, "path": scorer.path},
            "guard": guard,
            "self_test": (),
            "armed": "enforce",
            "refusal": "",
            "certified": (),
            "studies": StudyCalibration.fit([[score] for score in scores], alpha=alpha, bands=((1, 1), (2, 15))),
            **facts,
        },
        tensors,
    )


def scores_of(scorer: Scorer, count: int, first: int = 0) -> tuple[Batch, list[Score]]:
    batch = scorer.prepare([gray_image(first + n) for n in range(count)])
    return batch, scorer.score(batch, small_seeds(count, first))
