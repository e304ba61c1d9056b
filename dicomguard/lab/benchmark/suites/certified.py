"""Certified share of clean files against the pixel budget: every victim gets a guard of its own for each budget.

Whether certificates hold is tested apart, on the shipped bundles (`scripts/bench soundness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import Plan, Where, cell, place_of, places, victim_cell

NAME: Final = "certified"
DATA_SETS: Final = ("chest_xray", "brain_mri")
BUDGETS: Final = (0.002, 0.004, 0.008, 0.012, 0.016)
_FEWER: Final = (0.004, 0.008, 0.016)
_CHECKED: Final = (0.004,)


def plan(profile: Profile, where: Where) -> Plan:
    """A cell for each victim and budget.

    Raises:
        DicomguardError: a data set is not there.

    """
    cells = {}
    for place in places(profile, profile.families(NAME), DATA_SETS, where):
        victim = victim_cell(profile, place, where)
        taught = {"epochs": profile.guard_epochs, "least_steps": profile.guard_steps, "pictures": profile.pictures}
        needs = {"victim": victim, "lessons": cell("lessons", f"{place}: lessons", {"victim": victim}, **taught)}
        for eps in profile.some(BUDGETS if profile.whole_grids else _FEWER, _CHECKED):
            cells[place.called("certified", f"{eps:g}")] = cell(
                "certified", f"{place}: guard for {eps:g}", needs, eps=eps, cases=profile.test, **taught
            )
    return Plan(NAME, profile, cells, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """By victim and budget."""
    kept = (
        *("eps", "sigma", "alpha", "looks", "certified", "certified_right", "by_answer", "agrees", "unenrolled"),
        *("draws_mean", "seconds_mean", "seconds_p95"),
    )
    rows = []
    for name, found in results.items():
        _, place, _ = place_of(name)
        rows.append({**place.facts, "training": found["victim"]["training"], **{part: found[part] for part in kept}})
    return {"grid": rows}
