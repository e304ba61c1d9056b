"""Image folders with a CSV beside them (`path,label,group`), split by group so that no patient stands on two sides."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from dicomguard.errors import DicomguardError


class Split(StrEnum):
    """Who may look at an image: fitting, model choice, thresholds, or the final figures."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


# Shares of the patients. Calibration and test are large because their intervals are what a reader is shown.
SHARES = {Split.TRAIN: 0.50, Split.VALIDATION: 0.08, Split.CALIBRATION: 0.20, Split.TEST: 0.22}


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image file; `group` is the patient, or what stands in for one."""

    path: Path
    label: str
    group: str


def read_csv(table: Path) -> list[Example]:
    """The rows of `<name>.csv`; paths are relative to the table's folder.

    Raises:
        DicomguardError: the table is missing, lacks a column, or is empty.

    """
    try:
        with table.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        examples = [Example(table.parent / row["path"], row["label"], row["group"]) for row in rows]
    except (OSError, KeyError) as error:
        raise DicomguardError(
            f"{table} cannot be read as a table with the columns path,label,group: {error!r}.",
            advice="Point --data at the folder that holds it (or set DICOMGUARD_TEST_DATA).",
        ) from error
    if not examples:
        raise DicomguardError(f"{table} lists no images.", advice="Point --data at a complete copy.")
    return examples


def split_by_group(
    examples: Sequence[Example],
    *,
    held_out: Collection[str] = (),
    salt: str = "",
    shares: Mapping[Split, float] = SHARES,
) -> dict[Split, list[Example]]:
    """Partition by group; groups in `held_out` always fall to the test split. `shares` sum to one.

    A group's split depends on its own name only (a hash), so that adding images moves none that were there.
    """
    parts: dict[Split, list[Example]] = {split: [] for split in Split}
    for example in examples:
        parts[Split.TEST if example.group in held_out else _split_of(example.group, salt, shares)].append(example)
    return parts


def _split_of(group: str, salt: str, shares: Mapping[Split, float]) -> Split:
    position = int.from_bytes(hashlib.sha256(f"{salt}\0{group}".encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return list(shares)[-1]


def one_per_group(examples: Sequence[Example]) -> list[Example]:
    """One image of each group, picked by a hash of its name: images of one patient are not exchangeable draws."""
    best: dict[str, tuple[bytes, Example]] = {}
    for example in examples:
        rank = _rank(example)
        if example.group not in best or rank < best[example.group][0]:
            best[example.group] = (rank, example)
    return [example for _, example in best.values()]


def shuffled(examples: Iterable[Example]) -> list[Example]:
    """In an order that depends on the file names only and says nothing about them: any prefix is a fair draw."""
    return sorted(examples, key=lambda example: (_rank(example), example.path))


def alternating(examples: Iterable[Example], of: Callable[[Example], bool]) -> list[Example]:
    """Shuffled, with both sides of `of` taking turns from the start for as long as both last."""
    seen = {False: 0, True: 0}
    turns: list[tuple[int, bool, Example]] = []
    for example in shuffled(examples):
        side = of(example)
        turns.append((seen[side], side, example))
        seen[side] += 1
    return [example for _, _, example in sorted(turns, key=lambda turn: turn[:2])]


def _rank(example: Example) -> bytes:
    return hashlib.sha256(example.path.name.encode()).digest()


def load_gray(path: Path) -> NDArray[np.uint8]:
    """Shape (H, W): the luminance of an image file."""
    with PIL.Image.open(path) as image:
        _check_depth(image, path)
        return np.asarray(image.convert("L"))


def load_colour(path: Path) -> NDArray[np.uint8]:
    """Shape (H, W, 3): the RGB samples of an image file."""
    with PIL.Image.open(path) as image:
        _check_depth(image, path)
        return np.asarray(image.convert("RGB"))


def _check_depth(image: PIL.Image.Image, path: Path) -> None:
    """Raises DicomguardError for more than eight bits a sample: PIL clips them, and nobody knows what is white."""
    if image.mode[0] in "IF":
        raise DicomguardError(
            f"{path.name} has samples of more than 8 bits (mode {image.mode}).",
            advice="Convert it to 8 bits by a window of your choice, or give DICOM files.",
        )
