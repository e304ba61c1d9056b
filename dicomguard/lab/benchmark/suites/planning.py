"""What every suite says of itself: its cells by name, and how their results become tables; and cells that several need.

A place is what a cell's name says after its kind: family, data set and seed of the victim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import Cell, Result, in_order
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.provenance import made_by
from dicomguard.lab.benchmark.sets import INVENTORY, opened_set
from dicomguard.lab.data import Collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.victims import victim as known
from dicomguard.lab.victims.weights import begin

Assemble = Callable[[Mapping[str, Result]], dict[str, Any]]

ALPHAS: Final = (0.05, 0.01)
"""False-alarm rates that detectors are judged at; victims are enrolled at the first."""
_GUARD_EPS: Final = 0.004  # the budget that the shipped bundles' guards are made for
_CHOOSING: Final = ("early-stopped BIM", "PGD 0.008")
# By which the paper's noise level is chosen, on validation files: one attack that stops at the boundary, and one that
# goes on. Each by itself chooses a level at which the other is not seen.


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
    """Where a run takes place: `data` holds the image sets, `work` the cells; `device` is for networks.

    `instead`: data sets to take in place of those that the suites name, such as a paper's own, by name.
    """

    data: Path
    work: Path
    device: str = "cpu"
    instead: tuple[tuple[str, str], ...] = ()

    def set_for(self, task: str) -> str:
        """The data set that is taken where a suite names `task`."""
        return dict(self.instead).get(task, task)

    def task_of(self, data_set: str) -> str:
        """The inverse of `set_for`."""
        return {name: task for task, name in self.instead}.get(data_set, data_set)


@dataclass(frozen=True, slots=True)
class Place:
    """One victim's family, data set and seed."""

    family: str
    data_set: str
    seed: int

    def __str__(self) -> str:
        return f"{self.family}, {self.data_set}, seed {self.seed}"

    @property
    def path(self) -> str:
        """Its name among names of cells."""
        return f"{self.family}/{self.data_set}/{self.seed}"

    def called(self, kind: str, *more: str) -> str:
        """The name of a cell of this victim."""
        return "/".join((kind, self.path, *more))

    @property
    def facts(self) -> dict[str, Any]:
        """For a row of a table."""
        return {"family": self.family, "data_set": self.data_set, "seed": self.seed}


def place_of(name: str) -> tuple[str, Place, tuple[str, ...]]:
    """The inverse of `Place.called`."""
    kind, family, data_set, seed, *more = name.split("/")
    return kind, Place(family, data_set, int(seed)), tuple(more)


def places(profile: Profile, families: Sequence[str], data_sets: Sequence[str], where: Where) -> Iterator[Place]:
    """All victims of a suite, after a look at whether their data are there.

    Raises:
        DicomguardError: a data set is not there.

    """
    chosen = [where.set_for(task) for task in profile.some(data_sets, data_sets[:1])]
    required(where, chosen)
    for data_set in chosen:
        for family in families:
            for seed in profile.seeds:
                yield Place(family, data_set, seed)


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


def victim_cell(profile: Profile, place: Place, where: Where, *, hardening: float | None = None) -> Cell:
    """One family trained on one data set, whose files are stored at the victim's own size.

    `hardening`: the budget of adversarial training.
    """
    side = known(place.family).side
    return cell(
        "victim",
        f"{'train' if hardening is None else f'harden at {hardening:g}'} {place}",
        victim=place.family,
        data_set=place.data_set,
        side=side,
        data=data_digest(place.data_set, side, where),
        epochs=profile.epochs if hardening is None else profile.hardening_epochs,
        pictures=profile.pictures,
        seed=place.seed,
        hardening=hardening,
        pretrained=is_pretrained(place.family),
        device=where.device,
    )


def protected_cell(profile: Profile, place: Place, where: Where) -> Cell:
    """The victim as a site would protect it: enrolled, with a guard where its pictures are gray."""
    victim = victim_cell(profile, place, where)
    if not profile.enrols:
        return victim
    return cell(
        "enrolled",
        f"enrol {place}",
        {"victim": victim},
        data_set=place.data_set,
        side=known(place.family).side,
        alpha=ALPHAS[0],
        eps=_GUARD_EPS if has_guard(profile, place, where) else None,
        pictures=profile.pictures,
        epochs=profile.guard_epochs,
        least_steps=profile.guard_steps,
    )


def has_guard(profile: Profile, place: Place, where: Where) -> bool:
    """Whether the victim is enrolled with a guard, which sees gray pictures only."""
    return profile.enrols and is_gray(place.data_set, where)


def bits_of(data_set: str, where: Where) -> int:
    """Bits Stored of its files."""
    return _opened(data_set, None, where).bits


def can_store(data_set: str, bits: int, where: Where) -> bool:
    """Whether its files may have so many bits. A CT image may not have 8 (PS3.3 C.8.2.1)."""
    try:
        _opened(data_set, None, where).cases(Split.TEST)[0].make(bits)
    except DicomguardError:
        return False
    return True


def is_gray(data_set: str, where: Where) -> bool:
    """Whether its pictures have one plane."""
    return _opened(data_set, None, where).planes == 1


def attack_cell(
    profile: Profile,
    place: Place,
    victim: Cell,
    attack: str,
    *,
    wanted: int,
    split: Split = Split.TEST,
    surrogate: Cell | None = None,
) -> Cell:
    """Its files of a split attacked until `wanted` succeeded, directly or through another victim."""
    needs = {"victim": victim} if surrogate is None else {"victim": victim, "surrogate": surrogate}
    title = f"{place}: {attack}{' on another victim' * (surrogate is not None)}{f', {split}' * (split != Split.TEST)}"
    return cell("attack", title, needs, attack=attack, split=split, wanted=wanted, cases=profile.tried)


def known_files(profile: Profile, place: Place, where: Where) -> dict[str, Cell]:
    """What every detector is fitted with, by role: the victim, its clean files, and attacked ones of validation."""
    victim = protected_cell(profile, place, where)
    return {
        "victim": victim,
        "clean": cell(
            "clean",
            f"{place}: clean files",
            {"victim": victim},
            train=profile.training,
            calibration=profile.calibration,
            test=profile.test,
        ),
        **{
            f"validation: {attack}": attack_cell(
                profile, place, victim, attack, wanted=profile.choosing, split=Split.VALIDATION
            )
            for attack in _CHOOSING
        },
    }


@cache
def is_pretrained(family: str) -> bool:
    """Whether its ImageNet weights can be had here and now: the same victim without them is another one.

    Weights that have to be downloaded are, once.
    """
    return begin(known(family), 2, seed=0).pretrained


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


def why_not(row: Mapping[str, Any]) -> str:
    """Why a detector's row has no verdicts: one without a threshold is not one that nothing passes."""
    why: str = row["none_because"] if "none_because" in row else row["files"]["points"][0]["none_because"]
    return why
