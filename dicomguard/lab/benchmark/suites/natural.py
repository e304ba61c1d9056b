"""Natural change as false-alarm stress: what every detector makes of clean files that another site might have made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.shifts import SHIFTS
from dicomguard.lab.benchmark.suites.noise_consistency import DATA_SETS, attack_cell, clean_cell
from dicomguard.lab.benchmark.suites.planning import Plan, Where, cell, protected_cell, required

NAME: Final = "natural"
_SMOKE: Final = ("JPEG, quality 40", "Gaussian noise, 3 %")
_ALPHAS: Final = (0.05, 0.01)


def plan(profile: Profile, where: Where) -> Plan:
    """A cell of judgement for each family and data set, over all shifts.

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
            needs = {
                "victim": victim,
                "clean": clean_cell(profile, victim, name),
                "validation": attack_cell(profile, victim, name, "early-stopped BIM", split="validation"),
                **{
                    f"shift: {shift}": cell(
                        "shift", f"{name}: {shift}", {"victim": victim}, shift=shift, cases=profile.shifted
                    )
                    for shift in (_SMOKE if is_smoke else SHIFTS)
                },
            }
            cells[f"judge/{family}/{data_set}"] = cell("judge", f"{name}: judge shifts", needs, alphas=_ALPHAS)
    return Plan(NAME, profile, cells, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """False alarms by family, data set, detector and shift."""
    rows = []
    for place, judged in results.items():
        _, family, data_set = place.split("/")
        rows.append(
            {
                "family": family,
                "data_set": data_set,
                "accuracy": judged["accuracy"],
                "shifted_accuracy": judged["shifted_accuracy"],
                "false_alarms": {
                    row["detector"]: {"unchanged": _unchanged(row), **row["shifts"]}
                    for row in judged["rows"]
                    if row.get("shifts") is not None
                },
            }
        )
    return {"grid": rows}


def _unchanged(row: dict[str, Any]) -> Any:
    point = row["files"]["theta"] or row["files"]["points"][0]
    return point.get("clean")
