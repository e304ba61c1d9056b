"""Cells that enrol a victim as a site would: calibration, self-test, and a certified guard."""

from __future__ import annotations

import shutil
from typing import Any

from dicomguard.enrol.distil import Distillation
from dicomguard.enrol.enrolling import Wishes, enrol
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.kinds.opening import BUNDLE, collection_of
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.datasets import Split
from dicomguard.lab.enrolling import gathered
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.enrolment import FOLDER
from dicomguard.scoring.scorer import Scorer

_STAGES = 12  # of reading, teaching and testing, about as long as each other


def enrolled(settings: dict[str, Any], place: Place) -> Result:
    """A copy of the victim's bundle with an enrolment at `alpha`; a guard for `eps` unless that is None.

    `pictures`: training files that teach the guard at most, for `epochs` and at least `least_steps`. `data_set` and
    `side` are the victim's: whoever needs this cell asks it for them.
    """
    collection = collection_of(place)
    folder = place.folder / BUNDLE
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.folders["victim"] / BUNDLE, folder)
    scorer = Scorer(Bundle(folder), device=place.device)
    cases = {split: collection.cases(split) for split in Split}
    cases[Split.TRAIN] = cases[Split.TRAIN][: settings["pictures"]]
    advance = added(place.tell)
    eps = settings["eps"]
    clean = gathered(
        scorer, cases, [collection.bits], lambda share: advance(share / _STAGES), wants_guard=eps is not None
    )
    wishes = Wishes(
        alpha=settings["alpha"],
        eps=eps,
        distillation=Distillation(epochs=settings["epochs"], least_steps=settings["least_steps"]),
        share_steps=(),
    )
    source = f"{collection.name}: its splits, {collection.bits} stored bits"
    found = enrol(scorer, clean, source, wishes, folder / FOLDER, lambda _, share: advance(share / _STAGES))
    return {
        "fingerprint": scorer.fingerprint,
        "training": place.needs["victim"]["training"],
        "armed": found.armed,
        "refusal": found.refusal,
        "self_test": [trial.model_dump(mode="json", exclude={"scores"}) for trial in found.self_test],
        "guard": None if found.guard is None else {"eps": found.guard.eps, "sigma": found.guard.sigma},
        "certified": [share.model_dump(mode="json") for share in found.certified],
    }
