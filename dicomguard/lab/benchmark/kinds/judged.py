"""Cells in which every detector is judged on one victim's files."""

from __future__ import annotations

from typing import Any

from dicomguard.lab.benchmark.attacking import described, load_attacked, load_left
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import load_files
from dicomguard.lab.benchmark.judging import Material, judge_all
from dicomguard.lab.benchmark.kinds.opening import scorer_of
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.datasets import Split


def judged(settings: dict[str, Any], place: Place) -> Result:
    """Every detector on the victim's files.

    Needs `clean`, and for each attack a role `attack: NAME`, or `validation: NAME` where it chooses the paper's level.
    """
    scorer = scorer_of(place)
    attacks = {name: load_attacked(folder) for name, folder in place.of("attack: ").items()}
    shifts = {name: load_files(folder, "shifted") for name, folder in place.of("shift: ").items()}
    train, calibration, test = (
        load_files(place.folders["clean"], part) for part in (Split.TRAIN, Split.CALIBRATION, Split.TEST)
    )
    validation = load_left(place.of("validation: ").values())
    material = Material.of(train, calibration, test, validation, attacks, shifts)
    rows = judge_all(scorer, material, alphas=settings["alphas"], tell=place.tell)
    return {
        "fingerprint": scorer.fingerprint,
        "accuracy": place.needs["clean"]["test"]["accuracy"],
        "shifted_accuracy": {name: place.needs[f"shift: {name}"].get("accuracy") for name in shifts},
        "victim": place.needs["victim"],
        "attacks": {name: described(one) for name, one in attacks.items()},
        "succeeded": {name: [a.key for a in one.attempts if a.succeeded] for name, one in attacks.items()},
        "rows": rows,
    }
