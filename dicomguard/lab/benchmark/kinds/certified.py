"""Cells of the certified guard: distilled from one victim for one budget, and asked about every clean test file."""

from __future__ import annotations

from typing import Any

from dicomguard.enrol.distil import Distillation
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.kinds.files import collection_of, scorer_of
from dicomguard.lab.benchmark.runner import Place, added
from dicomguard.lab.certificates import Source, Workshop, settings_for
from dicomguard.lab.datasets import Split

_STAGES = 5  # reading twice, lessons, training, certifying


def certified(settings: dict[str, Any], place: Place) -> Result:
    """A guard for `eps`, asked about `cases` test files; taught by `pictures` training files at most."""
    scorer, collection = scorer_of(place), collection_of(place)
    source = Source(
        collection.cases(Split.TRAIN)[: settings["pictures"]],
        collection.cases(Split.TEST)[: settings["cases"]],
        collection.bits,
    )
    advance = added(place.tell)

    def tick(_: str, share: float) -> None:
        advance(share / _STAGES)

    shop = Workshop(source, scorer, place.folder, tick)
    ranges = shop.ranges()
    guard = shop.guard(
        settings_for(settings["eps"], ranges),
        Distillation(epochs=settings["epochs"], least_steps=settings["least_steps"]),
    )
    return {"fingerprint": scorer.fingerprint, **shop.certify(guard, shop.test_files(None, ranges))}
