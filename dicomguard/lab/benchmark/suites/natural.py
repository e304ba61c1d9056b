"""Natural change as false-alarm stress: what every detector makes of clean files that another site might have made.

And of files that the victim was never meant for: another set's, of another part of the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.shifts import SHIFTS, UNCHANGED
from dicomguard.lab.benchmark.suites import noise_consistency
from dicomguard.lab.benchmark.suites.planning import (
    ALPHAS,
    Plan,
    Where,
    cell,
    data_digest,
    is_gray,
    known_files,
    place_of,
    places,
    required,
    why_not,
)
from dicomguard.lab.victims import victim as known_family

NAME: Final = "natural"
OTHER_SETS: Final = (*noise_consistency.DATA_SETS, "lung_ct", "breast_us")
_CHECKED: Final = (UNCHANGED, "JPEG, quality 40", "Gaussian noise, 3 %")


def plan(profile: Profile, where: Where) -> Plan:
    """A cell of judgement for each victim, over all shifts and other sets.

    Raises:
        DicomguardError: a data set is not there.

    """
    strangers = [where.set_for(task) for task in profile.some(OTHER_SETS, ())]
    required(where, strangers)
    cells: dict[str, Cell] = {}
    for place in places(profile, profile.families(NAME), noise_consistency.DATA_SETS, where):
        needs = known_files(profile, place, where)
        victim = {"victim": needs["victim"]}
        for shift in profile.some(tuple(SHIFTS), _CHECKED):
            needs[f"shift: {shift}"] = cell("shift", f"{place}: {shift}", victim, shift=shift, cases=profile.shifted)
        for other in strangers:
            if other != place.data_set and is_gray(other, where) == is_gray(place.data_set, where):
                needs[f"shift: files of {other}"] = cell(
                    "foreign",
                    f"{place}: files of {other}",
                    victim,
                    data_set=other,
                    data=data_digest(other, known_family(place.family).side, where),
                    cases=profile.shifted,
                )
        cells[place.called("judge")] = cell("judge", f"{place}: judge shifts", needs, alphas=ALPHAS)
    return Plan(NAME, profile, cells, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """False alarms by victim, detector and shift."""
    rows = []
    for name, judged in results.items():
        _, place, _ = place_of(name)
        rows.append(
            {
                **place.facts,
                "accuracy": judged["accuracy"],
                "shifted_accuracy": judged["shifted_accuracy"],
                "false_alarms": {
                    row["detector"]: row["shifts"] for row in judged["rows"] if row.get("shifts") is not None
                },
                "none_because": {row["detector"]: why_not(row) for row in judged["rows"] if row.get("shifts") is None},
            }
        )
    return {"grid": rows}
