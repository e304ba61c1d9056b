"""Certified share of clean files against the pixel budget: every victim gets a guard of its own for each budget.

Whether certificates hold is tested apart, on the shipped bundles (`scripts/bench soundness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import Plan, Where, cell, required, victim_cell

NAME: Final = "certified"
DATA_SETS: Final = ("chest_xray", "brain_mri")
BUDGETS: Final = (0.002, 0.004, 0.008, 0.012, 0.016)


def plan(profile: Profile, where: Where) -> Plan:
    """A cell for each family, data set and budget.

    Raises:
        DicomguardError: a data set is not there.

    """
    is_smoke = profile.name == "smoke"
    data_sets = DATA_SETS[:1] if is_smoke else DATA_SETS
    required(where, data_sets)
    cells = {}
    for data_set in data_sets:
        for family in profile.victims:
            victim = victim_cell(profile, family, data_set, where)
            for eps in BUDGETS[1:2] if is_smoke else BUDGETS:
                cells[f"{family}/{data_set}/{eps:g}"] = cell(
                    "certified",
                    f"{family}, {data_set}: guard for {eps:g}",
                    {"victim": victim},
                    eps=eps,
                    pictures=profile.pictures,
                    epochs=profile.guard_epochs,
                    least_steps=profile.guard_steps,
                    cases=profile.test,
                )
    return Plan(NAME, profile, cells, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """By family, data set and budget."""
    rows = []
    for place, found in results.items():
        family, data_set, _ = place.split("/")
        kept = ("eps", "sigma", "alpha", "looks", "certified", "agrees", "draws_mean", "seconds_mean", "seconds_p95")
        rows.append({"family": family, "data_set": data_set, **{name: found[name] for name in kept}})
    return {"grid": rows}
