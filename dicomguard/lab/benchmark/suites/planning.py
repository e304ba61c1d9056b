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
from dicomguard.lab.benchmark.runner import INVENTORY
from dicomguard.lab.data import Collection, open_collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.victims import victim as known

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


@dataclass(frozen=True, slots=True)
class Where:
    """The folders of a run: `data` holds the image sets, `work` the cells."""

    data: Path
    work: Path


@cache
def _opened(name: str, side: int | None, where: Where) -> Collection:
    return open_collection(name, where.data, side=side, cache=where.work / INVENTORY)


@cache
def data_digest(name: str, side: int | None, where: Where) -> str:
    """What a data set consists of and how it is divided: its cases, groups, labels and bits. Twelve hex digits."""
    collection = _opened(name, side, where)
    total = hashlib.sha256(repr((collection.labels, collection.bits, collection.planes, side)).encode())
    for split in Split:
        for case in collection.cases(split):
            total.update(f"{split}/{case.key}/{case.group}/{case.truth}\n".encode())
    return total.hexdigest()[:12]


def victim_cell(profile: Profile, family: str, data_set: str, where: Where, *, hardening: float | None = None) -> Cell:
    """One family trained on one data set, whose files are stored at the victim's own size.

    `hardening`: the budget of adversarial training.
    """
    side = known(family).side
    how = "train" if hardening is None else f"harden at {hardening:g}"
    return Cell.of(
        "victim",
        1,
        f"{how} {family} on {data_set}",
        victim=family,
        data_set=data_set,
        side=side,
        data=data_digest(data_set, side, where),
        epochs=profile.epochs,
        pictures=profile.pictures,
        seed=0,
        hardening=hardening,
    )


def required(where: Where, names: Iterable[str]) -> None:
    """Open every data set before anything is computed: a missing one must not be found out after hours.

    Raises:
        DicomguardError: naming all that cannot be opened.

    """
    missing = {}
    for name in names:
        try:
            _opened(name, None, where)
        except DicomguardError as error:
            missing[name] = str(error)
    if missing:
        raise DicomguardError(
            f"data sets that cannot be opened: {'; '.join(f'{name}: {why}' for name, why in missing.items())}",
            advice="Point --data at the folder that holds them.",
        )
