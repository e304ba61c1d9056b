"""Cells that train the networks to be attacked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.kinds.opening import BUNDLE
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.benchmark.sets import opened_set
from dicomguard.lab.data import Collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.victims import Hardening, Options, train
from dicomguard.lab.victims import victim as known

_STAGE = "training"


def victim(settings: dict[str, Any], place: Place) -> Result:
    """Train `victim` on `data_set`, its files stored at `side`; on `pictures` of them at most, for `epochs` at most.

    `hardening`: the budget of adversarial training; None for plain training.
    """
    collection = opened_set(settings["data_set"], place.data, settings["side"], place.inventory)
    eps = settings["hardening"]
    options = Options(
        seed=settings["seed"],
        epochs=settings["epochs"],
        hardening=None if eps is None else Hardening(eps=eps),
        device=place.device,
    )

    advance = added(place.tell)

    def tick(stage: str, share: float) -> None:
        if stage == _STAGE:
            advance(share)

    report = train(
        known(settings["victim"]),
        _shortened(collection, settings["pictures"]),
        place.folder / BUNDLE,
        options,
        work=place.folder / "work",
        tick=tick,
    )
    if report["pretrained"] != settings["pretrained"]:
        shutil.rmtree(place.folder / BUNDLE)
        raise DicomguardError(
            f"weights that were to be had when the run began were not when training did: {report['weights']}.",
            advice="Run the same command again.",
        )
    return {"training": report, "fingerprint": report["fingerprint"]}


def _shortened(collection: Collection, pictures: int | None) -> Collection:
    """Fewer pictures to learn from; in the order of the collection any beginning is a fair draw."""
    if pictures is None:
        return collection
    most = {Split.TRAIN: pictures, Split.VALIDATION: pictures // 4}
    parts = {split: part[: most.get(split)] for split, part in collection.parts.items()}
    return replace(collection, parts=parts)
