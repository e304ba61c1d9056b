"""Cells for the eye, and for the question whether mere noise is an attack."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from dicomguard.lab.benchmark.attacking import load_attacked
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import Files, load_files, opened, seed_of
from dicomguard.lab.benchmark.kinds.opening import collection_of, scorer_of
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.cases import batches
from dicomguard.lab.datasets import Split
from dicomguard.lab.detectors.joel import with_uniform_noise
from dicomguard.lab.detectors.noise_check import Kind, Reading, drops
from dicomguard.lab.figures import share
from dicomguard.lab.report import noise_figures
from dicomguard.scoring import head
from dicomguard.scoring.scorer import Scorer

STRENGTHS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Of random noise, in fractions of the presentation range; the noise-consistency paper goes up to .16."""
_BATCH = 16
_SHOWN = 3
_NAME = 20  # letters


def random_noise(settings: dict[str, Any], place: Place) -> Result:
    """How often uniform noise alone changes a right answer, by its strength, on `cases` test files, rounded."""
    scorer, collection = scorer_of(place), collection_of(place)
    cases = collection.cases(Split.TEST)[: settings["cases"]]
    changed: dict[float, list[bool]] = {strength: [] for strength in STRENGTHS}
    advance = added(place.tell)
    for group in batches(cases, _BATCH):
        files = [opened(case, case.make(collection.bits), scorer.fingerprint) for case in group]
        images = [one.image for one in files]
        before = _answers(scorer, images)
        right = np.array([answer == one.case.truth for answer, one in zip(before, files, strict=True)], bool)
        for strength, flips in changed.items():
            seed = seed_of(files[0].case.key, f"noise {strength}")
            after = _answers(scorer, with_uniform_noise(images, strength, seed=seed))
            flips.extend((after != before)[right].tolist())
        advance(len(group) / len(cases))
    return {
        "fingerprint": scorer.fingerprint,
        "success": {f"{strength:g}": share(flips) for strength, flips in changed.items()},
    }


def _answers(scorer: Scorer, images: Any) -> NDArray[np.int64]:
    found: NDArray[np.int64] = scorer.answer(scorer.prepare(images).pixels).log_odds[:, 0].argmax(-1)
    return found


def pictures(settings: dict[str, Any], place: Place) -> Result:
    """The noise-consistency paper's Figures 1 and 3 to 6 for one victim, in the cell's folder.

    Under the first of `attacks` that succeeded at all; `of`: the victim, for titles. `charts` show no picture of the
    data set, `pictures` do.
    """
    scorer = scorer_of(place)
    clean = load_files(place.folders["clean"], "test")
    succeeded = {name: load_attacked(place.folders[f"attack: {name}"]).files for name in settings["attacks"]}
    name, attacked = next(((name, files) for name, files in succeeded.items() if files is not None), ("", None))
    if attacked is None:
        return {"charts": [], "pictures": [], "none_because": f"none of {', '.join(succeeded)} changed an answer"}
    title = f"{settings['of']}, {name}"
    where = {key: row for row, key in enumerate(clean.keys)}
    pairs = [(where[key], row) for row, key in enumerate(attacked.keys) if key in where]
    charts = [
        noise_figures.sigmoid_outputs(
            _outputs(clean, attacked), title, place.folder / "sigmoid-outputs.png", label=scorer.labels[1]
        ),
        noise_figures.bubbles(
            scorer.noise.levels,
            {"clean": _differences(clean), "attacked": _differences(attacked)},
            title,
            place.folder / "bubbles.png",
        ),
    ]
    drawn = []
    if pairs:
        rows = [
            (_short(attacked.keys[after]), _pixels(clean, before), _pixels(attacked, after))
            for before, after in pairs[:_SHOWN]
        ]
        drawn.append(noise_figures.perturbation(rows, place.folder / "perturbation.png"))
        before, after = pairs[0]
        columns = _columns(scorer, _pixels(clean, before), _pixels(attacked, after))
        drawn.append(noise_figures.heat_maps(columns, title, place.folder / "heat-maps.png"))
    return {
        "fingerprint": scorer.fingerprint,
        "charts": [path.name for path in charts],
        "pictures": [path.name for path in drawn],
    }


def _pixels(files: Files, row: int) -> NDArray[np.float32]:
    return files.sight.pixels[row].numpy()


def _outputs(clean: Files, attacked: Files) -> dict[str, NDArray[np.float64]]:
    """For each kind of file the sigmoid output, and the median of it under the middle level of noise."""
    found = {}
    for name, files in (("clean", clean), ("attacked", attacked)):
        apart = _differences(files)
        found[name] = head.probabilities(files.sight.log_odds)[:, 0, 1]
        found[f"{name}, noisy"] = found[name] - apart[:, apart.shape[1] // 2]
    return {name: found[name] for name in ("clean", "clean, noisy", "attacked", "attacked, noisy")}


def _differences(files: Files) -> NDArray[np.float64]:
    """The paper's raw differences p(x) - p(x + n), medians by level of noise: (N, levels)."""
    return np.stack([drops(one.seen, Reading(kind=Kind.RAW))[0] for one in files.sight.evidence])


def _columns(
    scorer: Scorer, clean: NDArray[np.float32], attacked: NDArray[np.float32]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float64]]]:
    rng = np.random.default_rng(2026)
    strength = scorer.noise.levels[len(scorer.noise.levels) // 2]
    noisy = np.clip(clean + rng.uniform(-strength, strength, clean.shape), 0, 1).astype(np.float32)
    shown = {"clean": clean, f"with {100 * strength:g} % noise": noisy, "attacked": attacked}
    maps = scorer.saliency(torch.from_numpy(np.stack(list(shown.values()))))
    return {name: (pixels, maps[row].astype(np.float64)) for row, (name, pixels) in enumerate(shown.items())}


def _short(key: str) -> str:
    """A file name that fits above its picture."""
    stem = key.rsplit("/", 1)[-1].split(".", maxsplit=1)[0]
    return stem if len(stem) <= _NAME else f"{stem[: _NAME - 1]}…"
