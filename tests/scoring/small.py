from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dicomguard.pixels.image import Image, StoredMapping
from dicomguard.scoring import bundle, networks
from dicomguard.scoring.bundle import Constructor, Inference, Input, Noise


def small_inference(size: int = 48, levels: Sequence[float] = (0.01, 0.03, 0.05), repeats: int = 4) -> Inference:
    return Inference(
        network_def=Constructor(_target_="EfficientNetLite0", num_classes=1),
        preprocessing=[Constructor(_target_="Resize", spatial_size=[size, size], mode="area")],
        input=Input(planes=1, mean=[0.5] * 3, std=[0.5] * 3, size=[size, size]),
        noise=Noise(levels=list(levels), repeats=repeats),
    )


def write_small(
    folder: Path, *, seed: int = 0, size: int = 48, levels: Sequence[float] = (0.01, 0.03, 0.05), repeats: int = 4
) -> Path:
    """Random weights, but batch normalisation has seen images, so that the network answers differently to each."""
    torch.manual_seed(seed)
    network = networks.EfficientNetLite0()
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
        metadata={"name": "small", "version": "1.0.0", "labels": ("normal", "opacity")},
        inference=small_inference(size, levels, repeats),
        card="# small\n",
    )
    return folder


def gray_image(seed: int, rows: int = 60, columns: int = 52) -> Image:
    rng = np.random.default_rng(seed)
    coarse = rng.random((6, 6))
    pixels = np.kron(coarse, np.ones((rows // 6 + 1, columns // 6 + 1)))[:rows, :columns]
    pixels = np.clip(pixels + rng.normal(0, 0.02, pixels.shape), 0, 1)
    stored = np.rint(pixels * 4095)
    return Image(
        pixels=(stored / 4095).astype(np.float32)[np.newaxis],
        frame=0,
        bits_stored=12,
        photometric_interpretation="MONOCHROME2",
        voi="none",
        mapping=StoredMapping(scale=1 / 4095, offset=0.0, low=0, high=4095),
    )
