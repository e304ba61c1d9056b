"""Cells of Joel et al. 2023: every picture attacked, detectors taught on them, victims hardened, and what is left.

Unlike the other suites every picture is attacked, whatever the victim says of it, and attacks that failed are kept: so
do they count. Pictures are those that the victim was not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from dicomguard.attacks.native import native_margins
from dicomguard.attacks.rounded import rounded
from dicomguard.attacks.suite import Attack
from dicomguard.lab.attacks.suite import fgsm_at, joel_bim_at, joel_pgd_at
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import Opened, opened, seed_of
from dicomguard.lab.benchmark.kinds.files import collection_of, scorer_of
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.cases import Case, batches
from dicomguard.lab.datasets import Split
from dicomguard.lab.detectors import joel
from dicomguard.lab.detectors.joel_networks import PAPER, SMALL
from dicomguard.lab.detectors.judge import combined_accuracy, flags
from dicomguard.lab.detectors.sight import Scores, Sight, joined, load
from dicomguard.lab.detectors.supervised import Supervised
from dicomguard.lab.figures import share
from dicomguard.pixels.image import Image
from dicomguard.scoring.scorer import Scorer

ATTACKS: Final[Mapping[str, Callable[[float], Attack]]] = {
    "FGSM": fgsm_at,
    "BIM": joel_bim_at,
    "PGD": joel_pgd_at,
}
NOISE: Final = "random noise"
_BATCH = 32
_UNSEEN = (Split.CALIBRATION, Split.TEST)


def glanced(scorer: Scorer, images: Sequence[Image], files: Sequence[Opened]) -> Sight:
    """What the victim sees, without any noise: a taught detector looks at pixels."""
    batch = scorer.prepare(images)
    answered = scorer.answer(batch.pixels)
    evidence, _ = scorer.look(batch, [one.seeds for one in files], ())
    return Sight(batch.pixels.cpu().clone(), answered.log_odds, answered.features, tuple(evidence))


def pairs(settings: dict[str, Any], place: Place) -> Result:
    """Pictures as they are (`attack` None), or attacked at `eps`: `floats.npz`, and as files hold them, `stored.npz`.

    `attack` may be random noise, which is none.
    """
    scorer, collection = scorer_of(place), collection_of(place)
    cases = [case for split in _UNSEEN for case in collection.cases(split)][: settings["cases"]]
    name, eps = settings["attack"], settings["eps"]
    floats, stored = [], []
    for start, group in enumerate(batches(cases, _BATCH)):
        files = [opened(case, case.make(collection.bits), scorer.fingerprint) for case in group]
        if name is None:
            stored.append(glanced(scorer, [one.image for one in files], files))
        else:
            moved = _moved(scorer, files, name, eps)
            floats.append(glanced(scorer, moved, files))
            stored.append(
                glanced(scorer, [rounded(one.image, new.pixels) for one, new in zip(files, moved, strict=True)], files)
            )
        place.tell(min(start * _BATCH / len(cases), 0.99))
    joined(stored).save(place.folder / "stored.npz")
    if floats:
        joined(floats).save(place.folder / "floats.npz")
    facts = {"keys": [c.key for c in cases], "groups": [c.group for c in cases], "truth": [c.truth for c in cases]}
    (place.folder / "facts.json").write_text(json.dumps(facts))
    return {"fingerprint": scorer.fingerprint, "files": len(cases), "accuracy": share(_right(place.folder, cases))}


def _right(folder: Path, cases: Sequence[Case]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = load(folder / "stored.npz").answers[:, 0] == np.array([case.truth for case in cases])
    return found


def _moved(scorer: Scorer, files: Sequence[Opened], name: str, eps: float) -> list[Image]:
    images = [one.image for one in files]
    if name == NOISE:
        return joel.with_uniform_noise(images, eps, seed=seed_of(files[0].case.key, NOISE), stored=False)
    pixels = torch.stack([torch.from_numpy(image.pixels) for image in images])
    found = ATTACKS[name](eps)(native_margins(scorer, pixels), pixels, [seed_of(one.case.key, name) for one in files])
    moved = found.pixels.detach().cpu().numpy().astype(np.float32)
    return [replace(image, pixels=new) for image, new in zip(images, moved, strict=True)]


def taught(settings: dict[str, Any], place: Place) -> Result:
    """The five detectors, taught on one attack (role `taught on`) and tested on every other (roles `ATTACK EPS`).

    `protocol`: `paper`, whose leaks are open, or `closed`. `small`: networks and epochs for two cores.
    """
    protocol = joel.PAPER if settings["protocol"] == "paper" else joel.CLOSED
    clean_folder = place.folders["clean"]
    facts = json.loads((clean_folder / "facts.json").read_text())
    clean = load(clean_folder / "stored.npz")
    truth = np.array(facts["truth"])
    keys, groups = tuple(facts["keys"]), tuple(facts["groups"])

    def of(role: str) -> joel.Pairs:
        folder = place.folders[role]
        return joel.Pairs(clean, load(folder / "floats.npz"), load(folder / "stored.npz"), keys, groups)

    tested = sorted(role for role in place.folders if role not in {"victim", "clean", "taught on"})
    detectors = joel.five(SMALL if settings["small"] else PAPER, download=not settings["small"], device=place.device)
    rows = []
    for number, detector in enumerate(detectors):
        found = joel.trial(detector, of("taught on"), protocol, seed=settings["seed"])
        others = {role: _tested(detector, found, of(role), protocol, truth) for role in tested}
        rows.append({**found.figures, "tests": others})
        place.tell((number + 1) / len(detectors))
    return {
        "rows": rows,
        "victim": place.needs["victim"],
        "clean_accuracy": place.needs["clean"]["accuracy"],
        "attacked_accuracy": {role: place.needs[role]["accuracy"] for role in tested},
    }


def _tested(
    detector: Supervised, found: joel.Trial, pairs_of: joel.Pairs, protocol: joel.Protocol, truth: NDArray[np.int64]
) -> dict[str, Any]:
    sight = (pairs_of.floats if protocol.floats else pairs_of.stored).only(found.test)
    attacked: Scores = detector.scores(sight)
    clean_flags, attacked_flags = flags(found.clean, 0), flags(attacked, 0)
    answers = truth[found.test]
    correct = pairs_of.clean.only(found.test).answers[:, 0] == answers
    still = sight.answers[:, 0] == answers
    return {
        "accuracy": share(np.concatenate([~clean_flags, attacked_flags])),
        "flagged": share(attacked_flags),
        "clean_flagged": share(clean_flags),
        "victim": share(np.concatenate([correct, still])),
        "combined": combined_accuracy(clean_flags, correct, attacked_flags, still),
    }
