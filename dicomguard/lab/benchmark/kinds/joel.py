"""Cells of Joel et al. 2023: every picture attacked, detectors taught on them, victims hardened, and what is left.

Unlike the other suites every picture is attacked, whatever the victim says of it, and attacks that failed are kept: so
do they count. Pictures are those that the victim was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dicomguard.attacks.native import native_margins
from dicomguard.attacks.rounded import rounded
from dicomguard.attacks.suite import Attack
from dicomguard.lab.attacks.suite import carlini_at, fgsm_at, joel_bim_at, joel_pgd_at
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import Files, Opened, load_files, looked, opened, seed_of
from dicomguard.lab.benchmark.kinds.opening import collection_of, scorer_of
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.benchmark.shifts import coded
from dicomguard.lab.cases import batches
from dicomguard.lab.datasets import Split
from dicomguard.lab.detectors import joel
from dicomguard.lab.detectors.joel_networks import PAPER, SMALL
from dicomguard.lab.detectors.judge import combined_accuracy, flags
from dicomguard.lab.detectors.roc import auroc_interval
from dicomguard.lab.detectors.sight import Scores
from dicomguard.lab.detectors.supervised import Supervised
from dicomguard.lab.figures import clustered, clustered_mean
from dicomguard.pixels.image import Image
from dicomguard.scoring.scorer import Scorer

ATTACKS: Final[Mapping[str, Callable[[float], Attack]]] = {
    "FGSM": fgsm_at,
    "BIM": joel_bim_at,
    "PGD": joel_pgd_at,
    "CW-L2 kappa": carlini_at,
}
"""By name and budget, which for Carlini and Wagner's is kappa: the attack beyond first order (Joel et al. ran none)."""
NOISE: Final = "random noise"
JPEG: Final = "JPEG quality"
HARMLESS: Final = (NOISE, JPEG)
"""No attacks: uniform noise of a budget, and pictures compressed as archives do."""
PICTURE_BITS: Final = 8
"""Of the picture files that data sets consist of."""
_BATCH = 32
_UNSEEN = (Split.CALIBRATION, Split.TEST)


def pairs(settings: dict[str, Any], place: Place) -> Result:
    """Pictures as they are (`attack` None), or attacked at `eps`: `stored`, as files hold them, and `floats`.

    `attack` may be one of `HARMLESS`. A taught detector looks at pixels: nothing is seen with noise.

    `bits` are those that files hold. Pictures of 8 bits that are stored with more are dithered first, by half a step of
    the 8: a clean file that holds every sixteenth value and an attacked one that holds all of them would be told apart
    by that, and by nothing else.
    """
    scorer, collection = scorer_of(place), collection_of(place)
    cases = [case for split in _UNSEEN for case in collection.cases(split)][: settings["cases"]]
    name, eps = settings["attack"], settings["eps"]
    floats, stored = [], []
    advance = added(place.tell)
    for group in batches(cases, _BATCH):
        files = [_dithered(opened(case, case.make(settings["bits"]), scorer.fingerprint)) for case in group]
        if name is None:
            stored.append(looked(scorer, files, ()))
        else:
            moved = _moved(scorer, files, name, eps)
            kept = [replace(one, image=rounded(one.image, new.pixels)) for one, new in zip(files, moved, strict=True)]
            floats.append(looked(scorer, [replace(o, image=new) for o, new in zip(files, moved, strict=True)], ()))
            stored.append(looked(scorer, kept, ()))
        advance(len(group) / len(cases))
    if floats:
        Files.joined(floats).save(place.folder, "floats")
    found = Files.joined(stored)
    found.save(place.folder, "stored")
    return {
        "fingerprint": scorer.fingerprint,
        "files": len(cases),
        "accuracy": clustered(found.right, found.groups),
    }


def _dithered(one: Opened, purpose: str = "dither") -> Opened:
    image = one.image
    if image.bits_stored <= PICTURE_BITS:
        return one
    noise = np.random.default_rng(seed_of(one.case.key, purpose)).uniform(-0.5, 0.5, image.pixels.shape)
    pixels = image.pixels + (noise / (2**PICTURE_BITS - 1)).astype(np.float32)
    return replace(one, image=rounded(image, pixels.clip(0, 1)))


def _compressed(one: Opened, quality: int) -> Image:
    """Its pixels through JPEG, which leaves 8 bits: dithered again where the file holds more."""
    pixels = coded(one.image.pixels, kind="JPEG", options={"quality": quality})
    return _dithered(replace(one, image=replace(one.image, pixels=pixels)), "dither of JPEG").image


def _moved(scorer: Scorer, files: Sequence[Opened], name: str, eps: float) -> list[Image]:
    images = [one.image for one in files]
    if name == NOISE:
        return joel.with_uniform_noise(images, eps, seed=seed_of(files[0].case.key, NOISE), stored=False)
    if name == JPEG:
        return [_compressed(one, round(eps)) for one in files]
    pixels = torch.stack([torch.from_numpy(image.pixels) for image in images])
    found = ATTACKS[name](eps)(native_margins(scorer, pixels), pixels, [seed_of(one.case.key, name) for one in files])
    moved = found.pixels.detach().cpu().numpy().astype(np.float32)
    return [replace(image, pixels=new) for image, new in zip(images, moved, strict=True)]


def taught(settings: dict[str, Any], place: Place) -> Result:
    """The five detectors, taught on one attack (role `taught on`) and tested on every other (roles `test: ATTACK EPS`).

    `protocol`: one of `joel.PROTOCOLS`; roles `harmless: ...` are clean pictures to be taught as such. `small`:
    networks and epochs for two cores, of at least `least_steps` and, while nothing is learned, at most `most_steps`.
    """
    protocol = joel.PROTOCOLS[settings["protocol"]]
    clean = load_files(place.folders["clean"], "stored")
    harmless = tuple(load_files(folder, "stored").sight for folder in place.of("harmless: ").values())

    def of(folder: Path) -> joel.Pairs:
        floats, stored = (load_files(folder, kind).sight for kind in ("floats", "stored"))
        return joel.Pairs(clean.sight, floats, stored, clean.keys, clean.groups, harmless)

    tested = place.of("test: ")
    steps = {name: settings[name] for name in ("least_steps", "most_steps")}
    size = replace(SMALL, **steps) if settings["small"] else PAPER
    detectors = joel.five(size, download=not settings["small"], flatten=protocol.flatten, device=place.device)
    rows = []
    for number, detector in enumerate(detectors):
        found = joel.trial(detector, of(place.folders["taught on"]), protocol, seed=settings["seed"])
        others = {
            name: _tested(detector, found, of(folder), protocol, clean, settings["seed"])
            for name, folder in tested.items()
        }
        rows.append({**found.figures, "tests": others})
        place.tell((number + 1) / len(detectors))
    return {
        "fingerprint": place.needs["clean"]["fingerprint"],
        "rows": rows,
        "victim": place.needs["victim"],
        "clean_accuracy": place.needs["clean"]["accuracy"],
        "attacked_accuracy": {name: place.needs[f"test: {name}"]["accuracy"] for name in tested},
    }


def _tested(
    detector: Supervised, found: joel.Trial, pairs_of: joel.Pairs, protocol: joel.Protocol, clean: Files, seed: int
) -> dict[str, Any]:
    """Detection of one attack: over all attacked pictures, as the paper counts, and over those that it turned round.

    `turned`: flagged pictures among those that the victim answers rightly clean and wrongly attacked. `more`: how much
    more often a picture is flagged attacked than clean, picture by picture.
    """
    sight = pairs_of.attacked(protocol).only(found.test)
    attacked: Scores = detector.scores(sight)
    clean_flags, attacked_flags = flags(found.clean, 0), flags(attacked, 0)
    answers, groups = clean.truth[found.test], [clean.groups[i] for i in found.test]
    keys = [clean.keys[i] for i in found.test]
    correct = clean.right[found.test]
    still = sight.answers[:, 0] == answers
    (turned,) = np.nonzero(correct & ~still)
    return {
        "accuracy": clustered(np.concatenate([~clean_flags, attacked_flags]), 2 * groups),
        "flagged": clustered(attacked_flags, groups),
        "turned": clustered(attacked_flags[turned], [groups[i] for i in turned]),
        "clean_flagged": clustered(clean_flags, groups),
        "more": clustered_mean(attacked_flags.astype(float) - clean_flags, groups),
        "auroc": auroc_interval(found.clean, attacked, keys, keys, seed=seed),
        "victim": clustered(np.concatenate([correct, still]), 2 * groups),
        "combined": combined_accuracy(clean_flags, correct, attacked_flags, still),
    }
