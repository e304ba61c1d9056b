"""Early-stopped BIM on test cases, computed once and kept: every bit depth then forges the same adversarial picture."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from torch import Tensor

from dicomguard.attacks.bim import early_stopped_bim
from dicomguard.lab.measure import Journal
from dicomguard.lab.recipes import Case
from dicomguard.pixels import reader, source
from dicomguard.pixels.image import Image
from dicomguard.pixels.limits import Limits
from dicomguard.scoring.scorer import Scorer

_CHUNK = 8


def read(dataset: Dataset) -> tuple[Image, str]:
    """The first frame and the SHA-256 of the encoded data set, by the path that a received file takes."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    data = buffer.getvalue()
    limits = Limits()
    opened = reader.open_data_set(data, *source.locate(data), limits)
    return next(iter(reader.frames(opened, 0, 1, limits))), opened.source.sha256


class Adversaries:
    """The attacked pictures of one scorer, in presentation values at native resolution."""

    def __init__(self, scorer: Scorer, bits: int, work: Path) -> None:
        """`bits`: the depth of the files that the attacker starts from."""
        self.scorer = scorer
        self.bits = bits
        self.outcomes = Journal(work / f"{scorer.name}-attack.jsonl", scorer.fingerprint)
        self._folder = work / f"{scorer.name}-{scorer.fingerprint[:12]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: str) -> NDArray[np.float32]:
        """Shape (1, H, W): the picture of a case that flipped before rounding."""
        picture: NDArray[np.float32] = np.load(self._path(key))
        return picture

    def attack(self, cases: Sequence[Case]) -> None:
        """Attack what was not attacked yet. Cases that are misclassified already are left out (`tried` false)."""
        new = [case for case in cases if case.key not in self.outcomes]
        if not new:
            return
        pictures = [read(case.make(self.bits))[0] for case in new]
        with torch.inference_mode():
            answers = (self.scorer.logits(self.scorer.prepare(pictures)) >= 0).tolist()
        right = [index for index, case in enumerate(new) if answers[index] == bool(case.truth)]
        for index in sorted(set(range(len(new))) - set(right)):
            self.outcomes.put(new[index].key, {"tried": False, "flipped": False})
        if not right:
            return
        found = early_stopped_bim(self._logits, torch.stack([torch.from_numpy(pictures[i].pixels) for i in right]))
        for row, index in enumerate(right):
            outcome: dict[str, Any] = {"tried": True, "flipped": bool(found.flipped[row])}
            if outcome["flipped"]:
                np.save(self._path(new[index].key), found.pixels[row].numpy())
                outcome |= {"strength": round(float(found.strength[row]), 6), "margin": float(found.margin[row])}
            self.outcomes.put(new[index].key, outcome)

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"

    def _logits(self, pixels: Tensor) -> Tensor:
        """Native presentation pixels to logits, differentiable, in chunks that stay in cache."""
        prepare = self.scorer.preprocess
        parts = torch.split(pixels, _CHUNK)
        return torch.cat([self.scorer.logits(torch.stack([prepare(p) for p in part])) for part in parts])
