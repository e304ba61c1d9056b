"""Cells about files: clean ones looked at, attacked ones, shifted ones, and every detector judged on them."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy as np

from dicomguard.attacks.forge import forge
from dicomguard.lab.attacks.suite import SUITE
from dicomguard.lab.benchmark.attacking import attack_files, load_attacked
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import Files, load_files, look_at, opened, seed_of
from dicomguard.lab.benchmark.judging import Material, described, judge_all
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.benchmark.sets import opened_set
from dicomguard.lab.benchmark.shifts import SHIFTS
from dicomguard.lab.cases import Case
from dicomguard.lab.data import Collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.detectors.sight import joined, look
from dicomguard.lab.figures import share
from dicomguard.scoring.scorer import Scorer

BUNDLE = "bundle"  # the folder of a victim's cell that holds it
_BATCH = 8


def scorer_of(place: Place, role: str = "victim") -> Scorer:
    """The victim of a cell, with its enrolment where it has one."""
    return Scorer.load(place.folders[role] / BUNDLE, device=place.device)


def collection_of(place: Place, role: str = "victim") -> Collection:
    """The data set that a victim was trained on."""
    settings = place.needs[role]["settings"]
    return opened_set(settings["data_set"], place.data, settings["side"], place.inventory)


def clean(settings: dict[str, Any], place: Place) -> Result:
    """Look at clean files of the calibration and test splits: `calibration`, `test`, at most so many of each."""
    scorer, collection = scorer_of(place), collection_of(place)
    parts = {
        "calibration": collection.cases(Split.CALIBRATION)[: settings["calibration"]],
        "test": collection.cases(Split.TEST)[: settings["test"]],
    }
    whole, seen = sum(map(len, parts.values())), 0

    def tick(count: int) -> None:
        nonlocal seen
        seen += count
        place.tell(seen / whole)

    found: Result = {"fingerprint": scorer.fingerprint, "labels": list(collection.labels)}
    for name, cases in parts.items():
        if not (place.folder / f"{name}.json").exists():
            look_at(scorer, cases, collection.bits, tick).save(place.folder, name)
        files = load_files(place.folder, name)
        found[name] = {"files": len(files), "accuracy": share(files.right)}
    return found


def attack(settings: dict[str, Any], place: Place) -> Result:
    """Attack files of `split` with `attack` until `wanted` succeeded, or `cases` were tried."""
    scorer, collection = scorer_of(place), collection_of(place)
    cases = collection.cases(Split(settings["split"]))[: settings["cases"]]
    name, wanted, hits = settings["attack"], settings["wanted"], 0

    def tick(count: int) -> None:
        nonlocal hits
        hits += count
        place.tell(min(hits / wanted, 0.99))

    found = attack_files(scorer, SUITE[name], cases, collection.bits, place.folder, name=name, wanted=wanted, tick=tick)
    return {"fingerprint": scorer.fingerprint, **described(found)}


def shift(settings: dict[str, Any], place: Place) -> Result:
    """Clean test files with a natural change, stored again."""
    scorer, collection = scorer_of(place), collection_of(place)
    cases = collection.cases(Split.TEST)[: settings["cases"]]
    sights = []
    for start in range(0, len(cases), _BATCH):
        files = [_shifted(scorer, case, collection.bits, settings["shift"]) for case in cases[start : start + _BATCH]]
        sights.append(look(scorer, [one.image for one in files], [one.seeds for one in files], batch=_BATCH))
        place.tell(start / len(cases))
    found = Files(
        tuple(case.key for case in cases),
        tuple(case.group for case in cases),
        np.array([case.truth for case in cases], np.int64),
        joined(sights),
    )
    found.save(place.folder, "shifted")
    return {"fingerprint": scorer.fingerprint, "files": len(found), "accuracy": share(found.right)}


def _shifted(scorer: Scorer, case: Case, bits: int, name: str) -> Any:
    one = opened(case, case.make(bits), scorer.fingerprint)
    moved = SHIFTS[name](one.image.pixels, seed_of(case.key, name))
    dataset = forge(one.dataset, one.image, moved, description=f"{name}, natural shift")
    return opened(case, dataset, scorer.fingerprint)


def judged(settings: dict[str, Any], place: Place) -> Result:
    """Every detector on the victim's files. Needs `clean`, `validation` and one role `attack: NAME` for each attack."""
    scorer = scorer_of(place)
    attacks = {
        role.removeprefix("attack: "): load_attacked(folder)
        for role, folder in sorted(place.folders.items())
        if role.startswith("attack: ")
    }
    shifts = {
        role.removeprefix("shift: "): load_files(folder, "shifted")
        for role, folder in sorted(place.folders.items())
        if role.startswith("shift: ")
    }
    calibration, test = (load_files(place.folders["clean"], name) for name in ("calibration", "test"))
    validation = load_attacked(place.folders["validation"])
    material = Material.of(calibration, test, validation, attacks, shifts)
    rows = judge_all(scorer, material, alphas=settings["alphas"], tell=place.tell)
    return {
        "fingerprint": scorer.fingerprint,
        "accuracy": place.needs["clean"]["test"]["accuracy"],
        "shifted_accuracy": {name: share(one.right) for name, one in shifts.items()},
        "victim": place.needs["victim"],
        "attacks": {name: described(one) for name, one in attacks.items()},
        "succeeded": {name: [a.key for a in one.attempts if a.succeeded] for name, one in attacks.items()},
        "rows": rows,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the figures were made with."""
    names = ("torch", "torchvision", "monai", "numpy", "scikit-learn", "pydicom")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
