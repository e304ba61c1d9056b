"""Cells of clean files that are looked at: as they are, with a natural change, and those of another data set."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydicom.dataset import Dataset

from dicomguard.attacks.forge import forge
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import load_files, look_at, seed_of
from dicomguard.lab.benchmark.kinds.opening import collection_of, scorer_of
from dicomguard.lab.benchmark.progress import Advance, added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.benchmark.sets import opened_set
from dicomguard.lab.benchmark.shifts import SHIFTS
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.figures import share
from dicomguard.lab.stored import read


def clean(settings: dict[str, Any], place: Place) -> Result:
    """Look at clean files of the calibration and test splits: `calibration`, `test`, at most so many of each.

    And at `train` files of the training split, without noise: for detectors that learn features.
    """
    scorer, collection = scorer_of(place), collection_of(place)
    parts = {
        split.value: collection.cases(split)[: settings[split.value]]
        for split in (Split.TRAIN, Split.CALIBRATION, Split.TEST)
    }
    advance = added(place.tell)
    whole = sum(map(len, parts.values()))
    found: Result = {"fingerprint": scorer.fingerprint, "labels": list(collection.labels)}
    for name, cases in parts.items():
        if not (place.folder / f"{name}.json").exists():
            part = partial(_weighted, advance, len(cases) / whole)
            draws = () if name == Split.TRAIN else None
            look_at(scorer, cases, lambda case: case.make(collection.bits), part, draws=draws).save(place.folder, name)
        files = load_files(place.folder, name)
        found[name] = {"files": len(files), "accuracy": share(files.right)}
    return found


def _weighted(advance: Advance, weight: float, share: float) -> None:
    advance(weight * share)


def shift(settings: dict[str, Any], place: Place) -> Result:
    """Clean test files with a natural change, stored again."""
    scorer, collection = scorer_of(place), collection_of(place)

    def shifted(case: Case) -> Dataset:
        dataset = case.make(collection.bits)
        image, _ = read(dataset)
        moved = SHIFTS[settings["shift"]](image.pixels, seed_of(case.key, settings["shift"]))
        return forge(dataset, image, moved, description=f"{settings['shift']}, natural shift")

    found = look_at(scorer, collection.cases(Split.TEST)[: settings["cases"]], shifted, added(place.tell))
    found.save(place.folder, "shifted")
    return {"fingerprint": scorer.fingerprint, "files": len(found), "accuracy": share(found.right)}


def foreign(settings: dict[str, Any], place: Place) -> Result:
    """Clean test files of another data set, `data_set`, which the victim has no right answer to."""
    scorer = scorer_of(place)
    side = place.needs["victim"]["settings"]["side"]
    collection = opened_set(settings["data_set"], place.data, side, place.inventory)
    cases = collection.cases(Split.TEST)[: settings["cases"]]
    found = look_at(scorer, cases, lambda case: case.make(collection.bits), added(place.tell))
    found.save(place.folder, "shifted")
    return {"fingerprint": scorer.fingerprint, "files": len(found)}
