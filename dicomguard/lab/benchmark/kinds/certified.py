"""Cells of the certified guard: distilled from one victim for one budget, and asked about every clean test file.

Guards for several budgets have the same lessons, which are a cell of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dicomguard.enrol.distil import Distillation
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.kinds.opening import collection_of, scorer_of
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.certificates import Source, Workshop, settings_for
from dicomguard.lab.datasets import Split


def lessons(settings: dict[str, Any], place: Place) -> Result:
    """What the victim answers to `pictures` training files at most; what a guard is taught."""
    shop = _workshop(settings, place, stages=2)  # reading and asking
    taught = shop.lessons(_distillation(settings))
    return {"fingerprint": shop.scorer.fingerprint, "files": len(taught)}


def certified(settings: dict[str, Any], place: Place) -> Result:
    """A guard for `eps`, taught by the role `lessons` and asked about `cases` test files."""
    shop = _workshop(settings, place, stages=4, taught=place.folders["lessons"])  # reading twice, training, certifying
    ranges = shop.ranges()
    guard = shop.guard(settings_for(settings["eps"], ranges), _distillation(settings))
    found = shop.certify(guard, shop.test_files(settings["cases"], ranges))
    return {"fingerprint": shop.scorer.fingerprint, "victim": place.needs["victim"], **found}


def _workshop(settings: dict[str, Any], place: Place, *, stages: int, taught: Path | None = None) -> Workshop:
    scorer, collection = scorer_of(place), collection_of(place)
    source = Source(
        collection.cases(Split.TRAIN)[: settings["pictures"]], collection.cases(Split.TEST), collection.bits
    )
    advance = added(place.tell)
    return Workshop(source, scorer, place.folder, lambda _, share: advance(share / stages), taught=taught)


def _distillation(settings: dict[str, Any]) -> Distillation:
    return Distillation(epochs=settings["epochs"], least_steps=settings["least_steps"])
