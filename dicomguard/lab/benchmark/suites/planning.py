"""What every suite says of itself: its cells by name, and how their results become tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import Cell, Result, in_order
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.data import Collection, open_collection
from dicomguard.lab.datasets import Split

Assemble = Callable[[Mapping[str, Result]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A suite at one size. `cells`: what its tables are made of; what these need is found through them."""

    name: str
    profile: Profile
    cells: Mapping[str, Cell]
    assemble: Assemble

    def everything(self) -> list[Cell]:
        """All cells, what is needed first."""
        return in_order(self.cells)


@cache
def _opened(name: str, data: Path, side: int | None) -> Collection:
    return open_collection(name, data, side=side)


@cache
def data_digest(name: str, data: Path, side: int | None = None) -> str:
    """What a data set consists of and how it is divided: its cases, groups, labels and bits. Twelve hex digits."""
    collection = _opened(name, data, side)
    total = hashlib.sha256(repr((collection.labels, collection.bits, collection.planes, side)).encode())
    for split in Split:
        for case in collection.cases(split):
            total.update(f"{split}/{case.key}/{case.group}/{case.truth}\n".encode())
    return total.hexdigest()[:12]


def required(data: Path, names: Iterable[str]) -> None:
    """Open every data set before anything is computed: a missing one must not be found out after hours.

    Raises:
        DicomguardError: naming all that cannot be opened.

    """
    missing = {}
    for name in names:
        try:
            _opened(name, data, None)
        except DicomguardError as error:
            missing[name] = str(error)
    if missing:
        raise DicomguardError(
            f"data sets that cannot be opened: {'; '.join(f'{name}: {why}' for name, why in missing.items())}",
            advice="Point --data at the folder that holds them.",
        )
