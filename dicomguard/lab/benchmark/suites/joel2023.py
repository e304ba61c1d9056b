"""Joel et al. 2023: five taught detectors against three attacks over a sweep of budgets, and three ways to defend.

Table 1 is the accuracy of each detector on clean and attacked pictures at eps .004 and .008; Table 2 compares doing
nothing, detecting, adversarial training, and both; Figures 1 and 2 are accuracies against eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.kinds.joel import ATTACKS, NOISE
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import Plan, Where, cell, required, victim_cell

NAME: Final = "joel2023"
DATA_SETS: Final = ("brain_mri", "lung_ct", "breast_us")
"""Their MRI task, and stand-ins for LIDC-IDRI and CBIS-DDSM."""
SWEEP: Final = (0.001, 0.002, 0.004, 0.006, 0.008, 0.016)
TAUGHT_ON: Final = {"brain_mri": 0.008, "lung_ct": 0.006, "breast_us": 0.004}
"""The budget of BIM that teaches the detectors, fixed for each data set as in their code."""
_HARDENED_WITH: Final = 0.004
_TABLE_2: Final = ("BIM", 0.004)
_MATRIX: Final = (0.002, 0.004, 0.008, 0.016)
_NOISE_AT: Final = (0.004, 0.008)


def _pairs(profile: Profile, victim: Cell, name: str, attack: str | None, eps: float) -> Cell:
    title = f"{name}: clean pictures" if attack is None else f"{name}: {attack} {eps:g}"
    return cell("pairs", title, {"victim": victim}, attack=attack, eps=eps, cases=profile.joel_pictures)


def _role(attack: str, eps: float) -> str:
    return f"{attack} {eps:g}"


def plan(profile: Profile, where: Where) -> Plan:
    """Detectors taught for each data set and protocol, for plain and hardened victims.

    Raises:
        DicomguardError: a data set is not there.

    """
    is_smoke = profile.name == "smoke"
    data_sets = DATA_SETS[:1] if is_smoke else DATA_SETS
    sweep = (0.008,) if is_smoke else SWEEP
    required(where, data_sets)
    cells: dict[str, Cell] = {}
    for data_set in data_sets:
        for hardening in (None,) if is_smoke else (None, _HARDENED_WITH):
            victim = victim_cell(profile, profile.joel_victim, data_set, where, hardening=hardening)
            kind = "plain" if hardening is None else "hardened"
            name = f"{kind} {profile.joel_victim}, {data_set}"
            attacks = tuple(ATTACKS) if hardening is None else (_TABLE_2[0],)
            tested = {
                _role(attack, eps): _pairs(profile, victim, name, attack, eps) for attack in attacks for eps in sweep
            }
            if hardening is None:
                tested |= {
                    _role(NOISE, eps): _pairs(profile, victim, name, NOISE, eps) for eps in _NOISE_AT[: len(sweep)]
                }
            clean = _pairs(profile, victim, name, None, 0.0)
            taught_on = 0.008 if is_smoke else TAUGHT_ON[data_set]
            runs = [("closed", taught_on)]
            if hardening is None and not is_smoke:
                runs += [("paper", taught_on), *(("closed", eps) for eps in _MATRIX if eps != taught_on)]
            for protocol, eps in runs:
                needs = {
                    "victim": victim,
                    "clean": clean,
                    "taught on": _pairs(profile, victim, name, "BIM", eps),
                    **tested,
                }
                cells[f"{kind}/{data_set}/{protocol}/{eps:g}"] = cell(
                    "taught",
                    f"{name}: detectors taught on BIM {eps:g}, {protocol} protocol",
                    needs,
                    protocol=protocol,
                    small=profile.small_detectors,
                    seed=0,
                )
    return Plan(NAME, profile, cells, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """One entry for each victim, protocol and budget that taught."""
    grid = []
    for place, found in results.items():
        kind, data_set, protocol, eps = place.split("/")
        grid.append(
            {
                "victim": kind,
                "data_set": data_set,
                "protocol": protocol,
                "taught_on": {"attack": "BIM", "eps": float(eps)},
                "training": found["victim"]["training"],
                "clean_accuracy": found["clean_accuracy"],
                "attacked_accuracy": found["attacked_accuracy"],
                "rows": found["rows"],
                "seconds": found["seconds"],
            }
        )
    return {"grid": grid, "taught_on": TAUGHT_ON, "table_2": list(_TABLE_2)}
