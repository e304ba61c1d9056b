"""The noise-consistency paper's tables and figures: three families, three image sets, its attacks and confident ones.

Table 1 is what the victims reach, Table 2 what the check finds (TPR on successful attacks | FPR on clean files that are
answered rightly), here before and after rounding to stored bits, beside ours, Mahalanobis, and confidence alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import Plan, Where, cell, protected_cell, required

NAME: Final = "noise-consistency"
DATA_SETS: Final = ("chest_xray", "brain_mri", "fundus")
EARLY: Final = ("early-stopped FGSM", "early-stopped BIM", "early-stopped PGD", "DeepFool")
"""The attacks of the paper's Table 2."""
CONFIDENT: Final = ("PGD 0.004", "PGD 0.008", "PGD 0.016")
_SMOKE_ATTACKS: Final = ("early-stopped BIM", "DeepFool", "PGD 0.008")
_DRAWN: Final = ("early-stopped BIM", "PGD 0.008", "DeepFool")
_ALPHAS: Final = (0.05, 0.01)


def clean_cell(profile: Profile, victim: Cell, name: str) -> Cell:
    """Its clean files."""
    needs = {"victim": victim}
    return cell("clean", f"{name}: clean files", needs, calibration=profile.calibration, test=profile.test)


def attack_cell(profile: Profile, victim: Cell, name: str, attack: str, *, split: str = "test") -> Cell:
    """Its test files attacked; or those of validation, fewer, by which the paper's noise level is chosen."""
    wanted = profile.wanted if split == "test" else profile.choosing
    title = f"{name}: {attack}{', validation' * (split != 'test')}"
    return cell("attack", title, {"victim": victim}, attack=attack, split=split, wanted=wanted, cases=profile.tried)


def plan(profile: Profile, where: Where) -> Plan:
    """A cell of judgement for each family and data set, with everything that it needs.

    Raises:
        DicomguardError: a data set is not there.

    """
    required(where, DATA_SETS if profile.name != "smoke" else DATA_SETS[:1])
    attacks = (*EARLY, *CONFIDENT) if profile.name != "smoke" else _SMOKE_ATTACKS
    data_sets = DATA_SETS if profile.name != "smoke" else DATA_SETS[:1]
    cells: dict[str, Cell] = {}
    for data_set in data_sets:
        for family in profile.victims:
            name = f"{family}, {data_set}"
            victim = protected_cell(profile, family, data_set, where)
            needs = {
                "victim": victim,
                "clean": clean_cell(profile, victim, name),
                "validation": attack_cell(profile, victim, name, "early-stopped BIM", split="validation"),
                **{f"attack: {attack}": attack_cell(profile, victim, name, attack) for attack in attacks},
            }
            judged = cell("judge", f"{name}: judge", needs, alphas=_ALPHAS)
            cells[f"judge/{family}/{data_set}"] = judged
            cells[f"pictures/{family}/{data_set}"] = cell("pictures", f"{name}: pictures", needs, attacks=_DRAWN)
    random_noise = {
        f"noise/{family}/{data_set}": cell(
            "noise",
            f"{family}, {data_set}: noise",
            {"victim": protected_cell(profile, family, data_set, where)},
            cases=profile.test,
        )
        for data_set in data_sets
        for family in profile.victims
    }
    return Plan(NAME, profile, {**cells, **random_noise}, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """Tables from the cells' results, by family and data set."""
    rows = []
    for place, judged in results.items():
        kind, family, data_set = place.split("/")
        if kind != "judge":
            continue
        noise = results.get(f"noise/{family}/{data_set}", {})
        pictures = results.get(f"pictures/{family}/{data_set}", {})
        rows.append(
            {
                "family": family,
                "data_set": data_set,
                "accuracy": judged["accuracy"],
                "victim": judged.get("victim"),
                "attacks": judged["attacks"],
                "rows": [{name: part for name, part in row.items() if name != "unseen"} for row in judged["rows"]],
                "random_noise": noise.get("success"),
                "pictures": pictures.get("files"),
                "seconds": judged["seconds"],
            }
        )
    return {"grid": rows}
