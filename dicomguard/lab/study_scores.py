"""Surprises of whole studies, clean and attacked: the raw material of `study_power`. One file for each study.

Two kinds of study: CT series of phantoms, of which any number can be made, and blocks of neighbouring lung CT pictures
(`lung_ct`, no patient ids). Both are scored by a network of their own, fine-tuned by the pipeline of the shipped
bundles, with one draw a noise level. Everything is kept under the work folder and goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dicomguard.attacks import margins
from dicomguard.attacks.ladder import early_stopped_bim
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.lab import finetune, train
from dicomguard.lab.datasets import Example, load_gray, read_csv
from dicomguard.phantom import Tomography
from dicomguard.phantom.ct_header import WINDOW_CENTRE, WINDOW_WIDTH
from dicomguard.phantom.tomograph import INTERCEPT
from dicomguard.scoring import bundle, calibration, consistency, noise
from dicomguard.scoring.bundle import Inference
from dicomguard.scoring.calibration import NOISE_COMPONENTS, Calibration, Evidence
from dicomguard.scoring.consistency import NoiseSettings, Observation
from dicomguard.scoring.scorer import Scorer

Pictures = NDArray[np.float32]
Progress = Callable[[str], None]

SIZE = 128  # pixels a side: a third of the shipped bundles' work, and slices are no less alike for it
LEVELS = (0.01, 0.03, 0.05)
SLICES = 500
# Every attacked slice also belongs to the studies of 100 slices (every 5th), the first ten to those of 10 (every 50th).
ATTACKED = tuple([*range(0, SLICES, 50), *range(25, SLICES, 50)][:18])
ATTACKS = ("bim", "pgd4", "pgd8")
# First seed of each set of bodies. Nothing is measured on a body that anything was fitted or chosen on.
_SEEDS = {"train": 10_000_000, "reference": 11_000_000, "selection": 12_000_000, "figures": 13_000_000}
_SETTINGS = finetune.Settings(
    epochs=6, variants=3, batch=32, rate=7e-4, zoom=0.04, rotation=4.0, gamma=0.1, gain=0.03, mirror=True
)
_KEY = b"study power"
_REFERENCE = 3000  # bodies, two thirds of them for the reference distribution
_CHUNK = 8  # pictures in one forward pass
_ROWS = 16  # pictures scored at once: whole forward passes of the fixed shape


@dataclass(frozen=True, slots=True)
class Studied:
    """One study: surprises of its images in order and the class 1 logits; attacked ones by attack, NaN where none."""

    name: str
    indices: NDArray[np.int64]
    surprises: NDArray[np.float64]
    logits: NDArray[np.float64]
    attacked: dict[str, NDArray[np.float64]]


class Rater:
    """A calibrated scorer as this measurement uses it: the only place here that knows scores and logits."""

    def __init__(self, scorer: Scorer, reference: Calibration | None = None) -> None:
        self.scorer = scorer
        self._reference = reference
        self._noise = NoiseSettings(LEVELS, repeats=1)

    def log_odds(self, batch: Tensor) -> Tensor:
        """Log-odds (N, 1, 2) in bfloat16, which is twice as fast; no threshold of a node comes from here."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.scorer.log_odds(batch.to(memory_format=torch.channels_last)).float()

    def evidence(self, pictures: Pictures, names: Sequence[str]) -> list[Evidence]:
        """What the noise check sees of prepared pictures (N, H, W)."""
        seeds = [noise.seed(_KEY, name, 0, "", self.scorer.fingerprint, "study") for name in names]
        batch, draws = torch.from_numpy(pictures)[:, None], self._noise.ladder()
        with torch.inference_mode():
            parts = [self.log_odds(part) for part in torch.split(batch, _CHUNK)]
        clean = torch.cat(parts).double().numpy()
        noisy = consistency.observe(self.log_odds, batch, seeds, self._noise, draws, chunk=_CHUNK)
        return [Evidence(Observation(c, n, draws)) for c, n in zip(clean, noisy, strict=True)]

    def rate(self, pictures: Pictures, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Surprise and class 1 logit of each picture."""
        assert self._reference is not None
        found = self.evidence(pictures, names)
        surprises = [self._reference.statistic_of(evidence)[0] for evidence in found]
        return np.array(surprises), np.array([float(e.seen.clean[0, 1] - e.seen.clean[0, 0]) for e in found])

    def attack(self, kind: str, pictures: Pictures, names: Sequence[str], grey_levels: int) -> NDArray[np.float64]:
        """Surprise after an attack rounded to stored bits; NaN where the answer is not another one then."""
        clean = torch.from_numpy(pictures)[:, None]
        moving = margins.from_log_odds(self.log_odds, clean)
        if kind == "bim":
            pixels = early_stopped_bim(moving, clean).pixels
        else:
            budget = FixedEps(eps=int(kind.removeprefix("pgd")) / 1000, steps=10, relative_step=0.25)
            pixels = fixed_eps_pgd(moving, clean, range(len(clean)), budget).pixels
        pixels = (pixels * grey_levels).round() / grey_levels
        surprises, logits = self.rate(pixels[:, 0].numpy(), [f"{name}/{kind}" for name in names])
        with torch.inference_mode():
            before = self.log_odds(clean).argmax(-1)[:, 0].numpy()
        return np.where((logits > 0) != (before == 1), surprises, np.nan)


def picture(stored: NDArray[np.uint16]) -> Pictures:
    """A stored CT slice in the presentation values that its header's window gives it."""
    hounsfield = stored.astype(np.float32) + np.float32(INTERCEPT)
    shown = (hounsfield - np.float32(WINDOW_CENTRE - 0.5)) / np.float32(WINDOW_WIDTH - 1) + np.float32(0.5)
    return np.asarray(np.clip(shown, 0, 1), np.float32)


def body(part: str, number: int) -> Tomography:
    """Body `number` of one set; every second one has an opacity."""
    return Tomography(_SEEDS[part] + number, slices=SLICES, rows=SIZE, columns=SIZE, opacity=number % 2 == 1)


def phantom_rater(work: Path, tell: Progress) -> Rater:
    """Fine-tune on slices of 450 bodies, calibrate on one slice of each of 3,000 others.

    The reference is four times as large as the largest study: a surprise hardly rises above the log of its size, and
    what a slice adds to its study is what its surprise has above the log of the study's size.
    """
    folder = work / "phantom-ct"
    if not (folder / bundle.WEIGHTS).exists():
        pictures, labels = _phantom_examples(450)
        _fit(folder, pictures, labels, ("no opacity", "opacity"), tell)
    rater = Rater(Scorer.load(folder))
    path = work / "phantom-reference.json"
    if not path.exists():
        rng = np.random.default_rng(7)
        where = rng.integers(0, SLICES, _REFERENCE)
        shown = np.stack([picture(body("reference", n).stored(int(k))) for n, k in enumerate(where)])
        _calibrate(path, rater, shown, [f"reference-{n}" for n in range(_REFERENCE)])
        tell("phantom reference calibrated")
    return Rater(rater.scorer, Calibration.model_validate_json(path.read_text()))


def _phantom_examples(bodies: int) -> tuple[Pictures, NDArray[np.int64]]:
    """Two slices of each body, the same number of both classes; slices at the edge of an opacity are left out."""
    rng = np.random.default_rng(11)
    pictures, labels = [], []
    for number in range(bodies):
        scan = body("train", number)
        lesion = scan.body.lesion
        where = [scan.z_mm(k) for k in range(SLICES)]
        shown = [k for k in range(SLICES) if scan.shows_opacity(k)]
        clear = [k for k in range(SLICES) if lesion is None or abs(where[k] - lesion.z) > 1.3 * lesion.radius_mm]
        chosen = [*rng.choice(shown, 2), rng.choice(clear)] if shown else [rng.choice(clear)]
        pictures += [picture(scan.stored(int(k))) for k in chosen]
        labels += [int(scan.shows_opacity(int(k))) for k in chosen]
    return np.stack(pictures), np.array(labels, np.int64)


def phantom_study(rater: Rater, work: Path, part: str, number: int, step: int, *, attacked: bool) -> Studied:
    """Every `step`-th slice of one body, from disk where it was scored before."""
    path = work / "phantom" / f"{part}-{number}-{step}.npz"
    if not path.exists():
        scan = body(part, number)
        indices = np.arange(0, SLICES, step)
        shown = np.stack([picture(scan.stored(int(k))) for k in indices])
        names = [f"{part}-{number}-{k}" for k in indices]
        hit = [list(indices).index(k) for k in ATTACKED if k % step == 0] if attacked else []
        _score(path, rater, (names, shown), indices, hit, WINDOW_WIDTH - 1)
    return load(path)


def lung_rater(work: Path, data: Path, tell: Progress) -> tuple[Rater, dict[str, list[Example]]]:
    """Fine-tune on 40 % of the lung CT blocks (malignant or not), calibrate on 15 %; the other blocks are returned."""
    blocks: dict[str, list[Example]] = {}
    for example in read_csv(data / "lung_ct.csv"):
        blocks.setdefault(example.group, []).append(example)
    order = sorted(blocks, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    cuts = int(0.40 * len(order)), int(0.55 * len(order))
    folder = work / "lung-ct"
    if not (folder / bundle.WEIGHTS).exists():
        seen = [example for group in order[: cuts[0]] for example in blocks[group]]
        labels = np.array([example.label == "malignant" for example in seen], np.int64)
        _fit(folder, _gray(seen), labels, ("benign or normal", "malignant"), tell)
    rater = Rater(Scorer.load(folder))
    path = work / "lung-reference.json"
    if not path.exists():
        seen = [example for group in order[cuts[0] : cuts[1]] for example in blocks[group]]
        _calibrate(path, rater, _gray(seen), [example.path.name for example in seen])
        tell("lung reference calibrated")
    rest = {group: blocks[group] for group in order[cuts[1] :]}
    return Rater(rater.scorer, Calibration.model_validate_json(path.read_text())), rest


def lung_study(rater: Rater, work: Path, group: str, block: Sequence[Example], *, attacked: bool) -> Studied:
    """One block of neighbouring pictures; every second one is attacked too where `attacked`."""
    path = work / "lung" / f"{group}.npz"
    if not path.exists():
        names = [example.path.name for example in block]
        hit = list(range(0, len(block), 2)) if attacked else []
        _score(path, rater, (names, _gray(block)), np.arange(len(block)), hit, 255)
    return load(path)


def load(path: Path) -> Studied:
    """A study that was scored."""
    with np.load(path) as kept:
        attacked = {kind: kept[kind] for kind in ATTACKS if kind in kept}
        return Studied(path.stem, kept["indices"], kept["surprises"], kept["logits"], attacked)


def _score(
    path: Path,
    rater: Rater,
    named: tuple[Sequence[str], Pictures],
    indices: NDArray[np.int64],
    hit: Sequence[int],
    grey_levels: int,
) -> None:
    names, shown = named
    parts = [
        rater.rate(shown[start : start + _ROWS], names[start : start + _ROWS]) for start in range(0, len(shown), _ROWS)
    ]
    surprises, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    attacked = {}
    for kind in ATTACKS if hit else ():
        row = np.full(len(shown), np.nan)
        row[hit] = rater.attack(kind, shown[hit], [names[k] for k in hit], grey_levels)
        attacked[kind] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    columns: dict[str, Any] = {"indices": indices, "surprises": surprises, "logits": logits, **attacked}
    np.savez(partial, **columns)
    partial.rename(path)


def _calibrate(path: Path, rater: Rater, pictures: Pictures, names: Sequence[str]) -> None:
    found = [
        evidence
        for start in range(0, len(names), _ROWS)
        for evidence in rater.evidence(pictures[start : start + _ROWS], names[start : start + _ROWS])
    ]
    cut = 2 * len(found) // 3
    plan = (found[0].seen.draws,)
    fitted = calibration.fit(found[:cut], found[cut:], alpha=0.05, plan=plan, used=NOISE_COMPONENTS)
    path.write_text(fitted.model_dump_json())


def _inference() -> Inference:
    shipped = train.inference().model_dump(by_alias=True)
    shipped["input"]["size"] = [SIZE, SIZE]
    shipped["preprocessing"][0]["spatial_size"] = [SIZE, SIZE]
    return Inference.model_validate(shipped)


def _gray(examples: Sequence[Example]) -> Pictures:
    shown = np.stack([load_gray(example.path).astype(np.float32) / np.float32(255) for example in examples])
    return np.asarray(F.adaptive_avg_pool2d(torch.from_numpy(shown), SIZE).numpy(), np.float32)


def _fit(folder: Path, pictures: Pictures, labels: NDArray[np.int64], named: tuple[str, str], tell: Progress) -> None:
    network = None
    for epoch, network in finetune.finetune(train.imagenet(), pictures, labels, _SETTINGS, lambda _stage, _share: None):
        accuracy = train.balanced_accuracy(network, pictures[-200:], labels[-200:])
        tell(f"{folder.name}: epoch {epoch + 1}, balanced accuracy on training pictures {accuracy:.3f}")
    assert network is not None
    metadata = {
        "name": folder.name,
        "version": "1.0.0",
        "labels": named,
        "task": "For measuring study decisions only; not shipped",
        "description": "EfficientNet-Lite0, ImageNet weights, last layers fine-tuned under a little noise.",
        "authors": "dicomguard",
        "copyright": "Apache-2.0",
        "data_source": folder.name,
        "intended_use": "Measurement.",
        "monai_version": monai.__version__,
        "pytorch_version": str(torch.__version__),
        "numpy_version": np.__version__,
    }
    bundle.write(folder, state=network.state_dict(), metadata=metadata, inference=_inference(), card="")
