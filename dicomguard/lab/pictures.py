"""Cases as prepared arrays, kept on disk: drawing and decoding them is done once, whatever is trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dicomguard.lab.cases import Case
from dicomguard.lab.whole import replacing
from dicomguard.scoring.preprocess import Preprocess


def prepared(
    cases: Sequence[Case], bits: int, preprocess: Preprocess, work: Path, advance: Callable[[float], None]
) -> NDArray[np.float32]:
    """Shape (N, H, W) in [0, 1]: each case as an instance with `bits` stored, read and preprocessed as the node does.

    Kept in `work` with 16 bits a pixel, under a name made of the cases' keys and of what the first of them has become,
    so that another way to read or to preprocess them does not find the arrays of this one. Raises ValueError where
    there are no cases.
    """
    if not cases:
        raise ValueError("there are no cases to prepare")
    named = hashlib.sha256("\n".join([str(bits), *(case.key for case in cases)]).encode())
    first = _row(cases[0], bits, preprocess)
    named.update(first.tobytes())
    path = work / f"prepared-{named.hexdigest()[:16]}.npy"
    if not path.exists():
        rows = []
        for place, case in enumerate(cases):
            rows.append(_row(case, bits, preprocess) if place else first)
            advance(1 / len(cases))
        work.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, np.stack(rows))
    pictures: NDArray[np.float32] = np.load(path).astype(np.float32) / np.float32(65535)
    return pictures


def _row(case: Case, bits: int, preprocess: Preprocess) -> NDArray[np.uint16]:
    with torch.inference_mode():
        planes = preprocess(torch.from_numpy(case.image(bits).pixels))
    row: NDArray[np.uint16] = np.rint(planes[0].numpy() * 65535).astype(np.uint16)
    return row
