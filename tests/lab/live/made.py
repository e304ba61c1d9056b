"""Clean studies of small phantoms on disk, and a bundle that a strong attack turns round."""

from pathlib import Path

import numpy as np

from dicomguard import phantom
from dicomguard.attacks.suite import SUITE
from dicomguard.lab.live.forging import Forge, Forged, Wishes
from dicomguard.lab.live.sources import find
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.scoring.scorer import Scorer

STRONG = "PGD 0.016"


def phantoms(folder: Path, count: int, *, first: int = 0, images: int = 1, side: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        for dataset in phantom.study(seed, opacity=bool(seed % 2), images=images, rows=side, columns=side):
            dataset.save_as(folder / f"{seed}-{dataset.InstanceNumber}.dcm", enforce_file_format=True)
    return folder


def many_frames(path: Path, seed: int, frames: int) -> Path:
    pictures = [phantom.make(seed + n, opacity=bool(n % 2), rows=64, columns=64) for n in range(frames)]
    stored = np.stack([picture.pixel_array for picture in pictures])
    dataset = pictures[0]
    dataset.NumberOfFrames = frames
    dataset.PixelData = stored.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def wishes(*names: str, **others: object) -> Wishes:
    return Wishes({name: SUITE[name] for name in names}, **others)


def forge(scorer: Scorer, clean: Path, out: Path, wanted: Wishes) -> Forged:
    with DecodeWorker() as worker:
        made = Forge(scorer, worker, out, wanted, lambda *_: None)
        return made.make(find(clean, worker, {}, lambda *_: None))
