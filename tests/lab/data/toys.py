"""Pictures of blobs as files, in whatever layout a test wants them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image


def blobs(seed: int, side: int = 40) -> np.ndarray:
    """Bright blobs on black, a different arrangement for each seed: no two look alike."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    total = np.zeros((side, side))
    for _ in range(7):
        row, column = rng.uniform(0.1, 0.9, 2)
        width = rng.uniform(0.04, 0.15)
        total += rng.uniform(0.3, 1) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    return (total / total.max() * 255).astype(np.uint8)


def coloured(seed: int, side: int = 40) -> np.ndarray:
    """Blobs of other places in each colour."""
    return np.stack([blobs(seed * 3 + plane, side) for plane in range(3)], -1)


def save(path: Path, picture: np.ndarray) -> Path:
    """Lossless, so that what is read is what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(picture).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int], *, first: int = 0, colours: bool = False) -> Path:
    """`counts` pictures in a folder of each name."""
    seed = first
    for label, count in counts.items():
        for place in range(count):
            save(root / label / f"{label}_{place:03}.png", (coloured if colours else blobs)(seed))
            seed += 1
    return root


def table(root: Path, rows: Iterable[tuple[str, str, str]], *, columns: str = "path,label,group") -> Path:
    """A CSV named pictures.csv."""
    path = root / "pictures.csv"
    path.write_text("\n".join([columns, *(",".join(row) for row in rows)]) + "\n")
    return path
