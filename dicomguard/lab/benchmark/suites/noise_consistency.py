"""The noise-consistency paper's tables and figures: three families, three image sets, its attacks and confident ones.

Table 1 is what the victims reach, Table 2 what the check finds (TPR on successful attacks | FPR on clean files that are
answered rightly), here before and after rounding to stored bits, beside ours, Mahalanobis, and confidence alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.attacks.carlini import KAPPAS
from dicomguard.lab.attacks.suite import EPS
from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import (
    ALPHAS,
    Place,
    Plan,
    Where,
    attack_cell,
    cell,
    known_files,
    place_of,
    places,
    protected_cell,
)

NAME: Final = "noise-consistency"
DATA_SETS: Final = ("chest_xray", "brain_mri", "fundus")
EARLY: Final = ("early-stopped FGSM", "early-stopped BIM", "early-stopped PGD", "DeepFool")
"""The attacks of the paper's Table 2."""
CONFIDENT: Final = ("PGD 0.004", "PGD 0.008", "PGD 0.016")
FURTHER: Final = ("FGSM 0.008", "BIM 0.008", "APGD 0.008", "CW-L2 kappa 0", "CW-L2 kappa 5", "Square 0.016")
"""Attacks beyond Table 2; fewer successes of each."""
_WHOLE_GRID: Final = (
    *(f"{name} {eps:.3f}" for name in ("FGSM", "BIM", "PGD") for eps in EPS),
    *(f"CW-L2 kappa {kappa:g}" for kappa in KAPPAS),
)
TRANSFERRED: Final = "PGD 0.016"
_TIMED: Final = 24  # clean files
_CHECKED: Final = ("early-stopped BIM", "DeepFool", "PGD 0.008")
_DRAWN: Final = ("early-stopped BIM", "PGD 0.008", "DeepFool")


def plan(profile: Profile, where: Where) -> Plan:
    """A cell of judgement for each victim, with everything that it needs.

    Raises:
        DicomguardError: a data set is not there.

    """
    cells: dict[str, Cell] = {}
    for place in places(profile, profile.families(NAME), DATA_SETS, where):
        known = known_files(profile, place, where)
        needs = {**known, **_attacks(profile, place, known["victim"], where)}
        cells[place.called("judge")] = cell("judge", f"{place}: judge", needs, alphas=ALPHAS)
        cells[place.called("pictures")] = cell("pictures", f"{place}: pictures", needs, attacks=_DRAWN, of=str(place))
        cells[place.called("seconds")] = cell(
            "seconds", f"{place}: seconds an image", {"victim": known["victim"]}, cases=_TIMED
        )
        cells[place.called("noise")] = cell(
            "noise", f"{place}: random noise", {"victim": known["victim"]}, cases=profile.test
        )
    return Plan(NAME, profile, cells, assemble)


def _attacks(profile: Profile, place: Place, victim: Cell, where: Where) -> dict[str, Cell]:
    found = {
        attack: attack_cell(profile, place, victim, attack, wanted=profile.wanted)
        for attack in profile.some((*EARLY, *CONFIDENT), _CHECKED)
    }
    further = (*FURTHER, *(name for name in _WHOLE_GRID if profile.whole_grids and name not in {*FURTHER, *found}))
    for attack in profile.some(further, ()):
        found[attack] = attack_cell(profile, place, victim, attack, wanted=profile.further)
    others = [family for family in profile.victims if family != place.family]
    if others:
        surrogate = protected_cell(profile, Place(others[0], place.data_set, place.seed), where)
        found[f"{TRANSFERRED} from {others[0]}"] = attack_cell(
            profile, place, victim, TRANSFERRED, wanted=profile.further, surrogate=surrogate
        )
    return {f"attack: {attack}": made for attack, made in found.items()}


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """Tables from the cells' results, a row for each victim."""
    rows = []
    for name, judged in results.items():
        kind, place, _ = place_of(name)
        if kind != "judge":
            continue
        rows.append(
            {
                **place.facts,
                "accuracy": judged["accuracy"],
                "victim": judged["victim"],
                "attacks": dict(sorted(judged["attacks"].items(), key=lambda item: _rank(item[0]))),
                "rows": [{part: value for part, value in row.items() if part != "unseen"} for row in judged["rows"]],
                "no_pictures": results.get(place.called("pictures"), {}).get("none_because"),
                "random_noise": results.get(place.called("noise"), {}).get("success"),
                "seconds_an_image": results.get(place.called("seconds"), {}).get("ways", {}),
            }
        )
    return {"grid": rows}


def _rank(attack: str) -> int:
    """The papers' attacks first, in their order."""
    order = (*EARLY, *CONFIDENT, *FURTHER, *_WHOLE_GRID)
    return order.index(attack) if attack in order else len(order)
