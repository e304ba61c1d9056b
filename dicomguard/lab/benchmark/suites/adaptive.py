"""Attacks that know the detector: how often they succeed unseen at each budget, and what being unseen costs them.

The cost factor of a detector is the median, over files that can be attacked at all, of the smallest budget at which an
attack succeeded unseen, over that at which one succeeded. A factor of one says that the detector costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.kinds.adaptive import KNOWING
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.noise_consistency import attack_cell, clean_cell
from dicomguard.lab.benchmark.suites.planning import Plan, Where, cell, protected_cell, required

NAME: Final = "adaptive"
DATA_SETS: Final = ("chest_xray", "brain_mri")
BUDGETS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""The largest one must break every check that is no proof, or the attack is too weak."""
_SMOKE_BUDGETS: Final = (0.002, 0.016)
_SMOKE_ATTACKS: Final = ("PGD", "EOT-PGD, 8 draws")
_THOROUGH: Final = frozenset(
    {
        "EOT-PGD, 32 draws",
        "orthogonal PGD against the paper's check",
        "orthogonal PGD against ours",
        "best of ten EOT-PGD, 8 draws",
    }
)
"""Attacks that take so long that they are made at few budgets."""
_THOROUGH_AT: Final = (0.008, 0.016)
_STRANGER: Final = "black-box, accept or reject"
_STRANGER_AT: Final = (0.016,)
_ALPHAS: Final = (0.05, 0.01)


def plan(profile: Profile, where: Where) -> Plan:
    """A cell of judgement for each family and data set, over all attacks and budgets.

    Raises:
        DicomguardError: a data set is not there.

    """
    is_smoke = profile.name == "smoke"
    data_sets = DATA_SETS[:1] if is_smoke else DATA_SETS
    required(where, data_sets)
    cells: dict[str, Cell] = {}
    for data_set in data_sets:
        for family in profile.victims:
            name = f"{family}, {data_set}"
            victim = protected_cell(profile, family, data_set, where)
            clean = clean_cell(profile, victim, name)
            validation = attack_cell(profile, victim, name, "early-stopped BIM", split="validation")
            known = {"victim": victim, "clean": clean, "validation": validation}
            needs = dict(known)
            for attack in _SMOKE_ATTACKS if is_smoke else KNOWING:
                for eps in _SMOKE_BUDGETS if is_smoke else _budgets(attack):
                    needs[f"attack: {attack}, eps {eps:g}"] = cell(
                        "adaptive",
                        f"{name}: {attack} {eps:g}",
                        known,
                        attack=attack,
                        eps=eps,
                        cases=profile.adaptive,
                    )
            cells[f"judge/{family}/{data_set}"] = cell(
                "judge", f"{name}: judge adaptive attacks", needs, alphas=_ALPHAS
            )
    return Plan(NAME, profile, cells, assemble)


def _budgets(attack: str) -> tuple[float, ...]:
    if attack == _STRANGER:
        return _STRANGER_AT
    return _THOROUGH_AT if attack in _THOROUGH else BUDGETS


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """By family and data set: rates at every budget, and cost factors."""
    grid = []
    for place, judged in results.items():
        _, family, data_set = place.split("/")
        rows = [row for row in judged["rows"] if row.get("unseen") is not None]
        grid.append(
            {
                "family": family,
                "data_set": data_set,
                "accuracy": judged["accuracy"],
                "attacks": judged["attacks"],
                "detectors": {row["detector"]: _detector(row, judged["succeeded"]) for row in rows},
                "none_because": {row["detector"]: _why_not(row) for row in judged["rows"] if row.get("unseen") is None},
            }
        )
    return {"grid": grid}


def _why_not(row: dict[str, Any]) -> str:
    """A detector without a threshold is not one that nothing passes."""
    why: str = row["none_because"] if "none_because" in row else row["files"]["points"][0]["none_because"]
    return why


def _detector(row: dict[str, Any], succeeded: Mapping[str, list[str]]) -> dict[str, Any]:
    point = row["files"]["theta"] or row["files"]["points"][0]
    return {
        "clean": point.get("clean"),
        "undetected_success": {name: one["undetected_success"] for name, one in point.get("attacks", {}).items()},
        "cost": cost(succeeded, row["unseen"]),
    }


def cost(succeeded: Mapping[str, list[str]], unseen: Mapping[str, list[str]]) -> dict[str, Any]:
    """Median smallest budgets over the files that any attack changed, and their ratio; None where it is beyond all.

    Both mappings: keys of files by `ATTACK, eps BUDGET`.
    """
    plain, hidden = _smallest(succeeded), _smallest(unseen)
    if not plain:
        return {"files": 0, "success": None, "undetected": None, "factor": None}
    success = float(np.median(list(plain.values())))
    undetected = float(np.median([hidden.get(key, math.inf) for key in plain]))
    is_reached = math.isfinite(undetected)
    return {
        "files": len(plain),
        "success": success,
        "undetected": undetected if is_reached else None,
        "factor": undetected / success if is_reached else None,
    }


def _smallest(keys: Mapping[str, list[str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, members in keys.items():
        eps = float(name.rpartition(" ")[2])
        for key in members:
            found[key] = min(found.get(key, math.inf), eps)
    return found
