"""Joel et al. 2023: five taught detectors against three attacks over a sweep of budgets, and three ways to defend.

Table 1 is the accuracy of each detector on clean and attacked pictures at eps .004 and .008; Table 2 compares doing
nothing, detecting, adversarial training, and both; Figures 1 and 2 are accuracies against eps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from dicomguard.lab.attacks.fixed import JOEL_SWEEP
from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.kinds.joel import JPEG, NOISE, PICTURE_BITS
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import (
    Place,
    Plan,
    Where,
    bits_of,
    can_store,
    cell,
    place_of,
    places,
    victim_cell,
)
from dicomguard.lab.detectors import joel

NAME: Final = "joel2023"
DATA_SETS: Final = ("brain_mri", "lung_ct", "breast_us")
"""Their MRI task, and stand-ins for LIDC-IDRI and CBIS-DDSM."""
FIRST_ORDER: Final = ("FGSM", "BIM", "PGD")
SWEEP: Final = (0.001, 0.002, 0.004, 0.006, 0.008, 0.016)
"""Five of the budgets of their Figure 2, for two cores, and one that is four times their larger one."""
HIGHER: Final = (("CW-L2 kappa", 1.0),)
"""Beyond first order, by a confidence in log-odds: hundreds of gradients a picture."""
TAUGHT_ON: Final = {"brain_mri": 0.008, "lung_ct": 0.006, "breast_us": 0.004}
"""The budget of BIM that teaches the detectors, fixed for each data set as in their code."""
_CHECKED_AT: Final = 0.008
_LEAST_STEPS: Final = 1000
_MOST_STEPS: Final = 3000
"""Of the small networks: from random weights they know nothing for hundreds of steps, and then nearly everything; some
only after thousands, where harmless change is taught as clean."""
_HARDENED_WITH: Final = 0.004
_TABLE_2: Final = ("BIM", 0.004)
_MATRIX: Final = (0.002, 0.004, 0.008, 0.016)
_TABLE_1: Final = (0.004, 0.008)
_JPEG_AT: Final = 75.0


def plan(profile: Profile, where: Where) -> Plan:
    """Detectors taught for each data set, budget, attack and protocol, for plain and hardened victims.

    Raises:
        DicomguardError: a data set is not there.

    """
    cells: dict[str, Cell] = {}
    sweep = profile.some(JOEL_SWEEP if profile.whole_grids else SWEEP, (_CHECKED_AT,))
    first_order = [(attack, eps) for attack in FIRST_ORDER for eps in sweep]
    for place in places(profile, (profile.joel_victim,), DATA_SETS, where):
        taught_on = profile.some(TAUGHT_ON[where.task_of(place.data_set)], _CHECKED_AT)
        noise = [(NOISE, eps) for eps in profile.some(sorted({*_TABLE_1, taught_on}), [taught_on])]
        changes = [*noise, *profile.some([(JPEG, _JPEG_AT)], [])]
        everything = [*first_order, *changes, *profile.some(HIGHER, ())]
        table_1 = [*((attack, eps) for attack in FIRST_ORDER for eps in _TABLE_1), *changes]
        victim, bits = victim_cell(profile, place, where), bits_of(place.data_set, where)
        plain = _Victim(profile, place, "plain", victim, bits)
        cells |= plain.taught(("BIM", taught_on), joel.CLOSED, everything)
        if profile.is_check:
            continue
        # Where files may not have 8 bits they are dithered as in the closed protocol: this one leak stays closed.
        published = replace(plain, bits=PICTURE_BITS if can_store(place.data_set, PICTURE_BITS, where) else bits)
        cells |= published.taught(("BIM", taught_on), joel.PAPER, table_1)
        if where.task_of(place.data_set) in profile.joel_whole:
            cells |= plain.taught(("BIM", taught_on), joel.CHANGE, table_1)
            cells |= published.taught(("BIM", taught_on), joel.FLOATS, table_1)
            for teacher in [("BIM", eps) for eps in _MATRIX] + [(attack, taught_on) for attack in FIRST_ORDER]:
                cells |= plain.taught(teacher, joel.CLOSED, everything)
        hardened = _Victim(
            profile, place, "hardened", victim_cell(profile, place, where, hardening=_HARDENED_WITH), bits
        )
        cells |= hardened.taught(("BIM", taught_on), joel.CLOSED, [(_TABLE_2[0], eps) for eps in sweep])
    tasks = {where.set_for(task): task for task in DATA_SETS}
    return Plan(NAME, profile, cells, partial(assemble, tasks=tasks))


@dataclass(frozen=True, slots=True)
class _Victim:
    """One victim, `plain` or `hardened`, and the cells about it, in files of so many bits."""

    profile: Profile
    place: Place
    kind: str
    cell: Cell
    bits: int

    def pairs(self, attack: str | None, eps: float = 0.0) -> Cell:
        """Its pictures attacked, or as they are."""
        what = "clean pictures" if attack is None else f"{attack} {eps:g}"
        needs = {"victim": self.cell}
        title = f"{self.kind} {self.place}: {what}, {self.bits} bits"
        return cell("pairs", title, needs, attack=attack, eps=eps, cases=self.profile.joel_pictures, bits=self.bits)

    def taught(
        self, teacher: tuple[str, float], protocol: joel.Protocol, tests: Sequence[tuple[str, float]]
    ) -> dict[str, Cell]:
        """Detectors taught on one attack and tested on others, by name.

        Clean pictures with noise of the attack's budget, and compressed ones, are taught as clean where the protocol
        says so.
        """
        attack, eps = teacher
        harmless = ((NOISE, eps), (JPEG, _JPEG_AT)) if protocol.augmented else ()
        needs = {
            "victim": self.cell,
            "clean": self.pairs(None),
            "taught on": self.pairs(attack, eps),
            **{f"harmless: {name} {at:g}": self.pairs(name, at) for name, at in harmless},
            **{f"test: {name} {at:g}": self.pairs(name, at) for name, at in tests},
        }
        made = cell(
            "taught",
            f"{self.kind} {self.place}: detectors taught on {attack} {eps:g}, {protocol.name} protocol",
            needs,
            protocol=protocol.name,
            small=self.profile.small_detectors,
            least_steps=self.profile.some(_LEAST_STEPS, 0),
            most_steps=self.profile.some(_MOST_STEPS, 0),
            seed=self.place.seed,
        )
        return {self.place.called(self.kind, protocol.name, attack, f"{eps:g}"): made}


def assemble(results: Mapping[str, Result], tasks: Mapping[str, str]) -> dict[str, Any]:
    """One entry for each victim, protocol and attack that taught. `tasks`: what each data set is taken for."""
    grid = []
    for name, found in results.items():
        kind, place, (protocol, attack, eps) = place_of(name)
        kept = ("clean_accuracy", "attacked_accuracy", "rows", "seconds")
        grid.append(
            {
                **place.facts,
                "task": tasks[place.data_set],
                "victim": kind,
                "protocol": protocol,
                "taught_on": {"attack": attack, "eps": float(eps)},
                "training": found["victim"]["training"],
                **{part: found[part] for part in kept},
            }
        )
    taught_on = {data_set: TAUGHT_ON[task] for data_set, task in tasks.items()}
    return {"grid": grid, "taught_on": taught_on, "table_2": list(_TABLE_2)}
