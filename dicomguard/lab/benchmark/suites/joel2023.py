"""Joel et al. 2023: five taught detectors against three attacks over a sweep of budgets, and three ways to defend.

Table 1 is the accuracy of each detector on clean and attacked pictures at eps .004 and .008; Table 2 compares doing
nothing, detecting, adversarial training, and both; Figures 1 and 2 are accuracies against eps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.kinds.joel import NOISE
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import Place, Plan, Where, cell, place_of, places, victim_cell

NAME: Final = "joel2023"
DATA_SETS: Final = ("brain_mri", "lung_ct", "breast_us")
"""Their MRI task, and stand-ins for LIDC-IDRI and CBIS-DDSM."""
FIRST_ORDER: Final = ("FGSM", "BIM", "PGD")
SWEEP: Final = (0.001, 0.002, 0.004, 0.006, 0.008, 0.016)
HIGHER: Final = (("CW-L2 kappa", 1.0),)
"""Beyond first order, by a confidence in log-odds: hundreds of gradients a picture."""
TAUGHT_ON: Final = {"brain_mri": 0.008, "lung_ct": 0.006, "breast_us": 0.004}
"""The budget of BIM that teaches the detectors, fixed for each data set as in their code."""
_CHECKED_AT: Final = 0.008
_LEAST_STEPS: Final = 1000
"""Of the small networks: from random weights they know nothing for hundreds of steps, and then nearly everything."""
_HARDENED_WITH: Final = 0.004
_TABLE_2: Final = ("BIM", 0.004)
_MATRIX: Final = (0.002, 0.004, 0.008, 0.016)
_NOISE_AT: Final = (0.004, 0.008)


def plan(profile: Profile, where: Where) -> Plan:
    """Detectors taught for each data set, budget, attack and protocol, for plain and hardened victims.

    Raises:
        DicomguardError: a data set is not there.

    """
    cells: dict[str, Cell] = {}
    for place in places(profile, (profile.joel_victim,), DATA_SETS, where):
        taught_on = profile.some(TAUGHT_ON[place.data_set], _CHECKED_AT)
        plain = _Victim(profile, place, "plain", victim_cell(profile, place, where))
        sweep = profile.some(SWEEP, (_CHECKED_AT,))
        tests = [(attack, eps) for attack in FIRST_ORDER for eps in sweep]
        tests += [(NOISE, eps) for eps in profile.some(_NOISE_AT, (_CHECKED_AT,))]
        tests += profile.some(HIGHER, ())
        cells |= plain.taught(("BIM", taught_on), "closed", tests)
        if profile.is_check:
            continue
        cells |= plain.taught(("BIM", taught_on), "paper", tests)
        for teacher in [("BIM", eps) for eps in _MATRIX] + [(attack, taught_on) for attack in FIRST_ORDER]:
            cells |= plain.taught(teacher, "closed", tests)
        hardened = victim_cell(profile, place, where, hardening=_HARDENED_WITH)
        tests = [(_TABLE_2[0], eps) for eps in sweep]
        cells |= _Victim(profile, place, "hardened", hardened).taught(("BIM", taught_on), "closed", tests)
    return Plan(NAME, profile, cells, assemble)


@dataclass(frozen=True, slots=True)
class _Victim:
    """One victim, `plain` or `hardened`, and the cells about it."""

    profile: Profile
    place: Place
    kind: str
    cell: Cell

    def pairs(self, attack: str | None, eps: float = 0.0) -> Cell:
        """Its pictures attacked, or as they are."""
        what = "clean pictures" if attack is None else f"{attack} {eps:g}"
        needs = {"victim": self.cell}
        title = f"{self.kind} {self.place}: {what}"
        return cell("pairs", title, needs, attack=attack, eps=eps, cases=self.profile.joel_pictures)

    def taught(self, teacher: tuple[str, float], protocol: str, tests: Sequence[tuple[str, float]]) -> dict[str, Cell]:
        """Detectors taught on one attack and tested on others, by name."""
        attack, eps = teacher
        needs = {
            "victim": self.cell,
            "clean": self.pairs(None),
            "taught on": self.pairs(attack, eps),
            **{f"test: {name} {at:g}": self.pairs(name, at) for name, at in tests},
        }
        made = cell(
            "taught",
            f"{self.kind} {self.place}: detectors taught on {attack} {eps:g}, {protocol} protocol",
            needs,
            protocol=protocol,
            small=self.profile.small_detectors,
            least_steps=self.profile.some(_LEAST_STEPS, 0),
            seed=self.place.seed,
        )
        return {self.place.called(self.kind, protocol, attack, f"{eps:g}"): made}


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """One entry for each victim, protocol and attack that taught."""
    grid = []
    for name, found in results.items():
        kind, place, (protocol, attack, eps) = place_of(name)
        kept = ("clean_accuracy", "attacked_accuracy", "rows", "seconds")
        grid.append(
            {
                **place.facts,
                "victim": kind,
                "protocol": protocol,
                "taught_on": {"attack": attack, "eps": float(eps)},
                "training": found["victim"]["training"],
                **{part: found[part] for part in kept},
            }
        )
    return {"grid": grid, "taught_on": TAUGHT_ON, "table_2": list(_TABLE_2)}
