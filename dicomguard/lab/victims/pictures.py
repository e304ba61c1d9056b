"""Cases as the array that a network is trained on: made files, read and scaled as the node does it, once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicomguard.lab.cases import Case
from dicomguard.lab.data import Collection
from dicomguard.lab.whole import damaged, replacing
from dicomguard.scoring.bundle import Inference

_TOP = 65535

Advance = Callable[[str, float], None]


def tensors(
    cases: Sequence[Case], collection: Collection, inference: Inference, folder: Path, name: str, advance: Advance
) -> NDArray[np.uint16]:
    """Shape (N, planes, H, W), 65535 for white: mapped from a file in `folder`, which is written where it is not there.

    Sixteen bits keep what an eight or twelve bit file can say after averaging, at half of the memory.
    """
    bits = collection.bits
    facts = [inference.model_dump_json(), str(bits), collection.content, *(case.key for case in cases)]
    path = folder / f"{name}-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = inference.preprocess()
        shape = (len(cases), inference.input.planes, *inference.input.size)
        with replacing(path) as partial:
            rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint16, shape=shape)
            with partial.open("r+b") as file:  # a full disk is an error here; in a mapping it would be a signal
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            for place, case in enumerate(cases):
                with torch.inference_mode():
                    planes = preprocess(torch.from_numpy(case.image(bits).pixels))
                rows[place] = np.rint(planes.numpy() * _TOP).astype(np.uint16)
                advance(f"pictures, {name}", 1 / len(cases))
            rows.flush()
            del rows
    try:
        found: NDArray[np.uint16] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise damaged(path, error) from error
    return found


def batch_of(pictures: NDArray[np.uint16], places: NDArray[Any]) -> torch.Tensor:
    """Shape (n, planes, H, W) in [0, 1]."""
    return torch.from_numpy(pictures[places].astype(np.float32) / np.float32(_TOP))
