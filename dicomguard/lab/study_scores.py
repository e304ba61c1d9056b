"""Surprises of whole studies, clean and attacked: the raw material of `study_power`. One file for each study.

Two kinds of study: CT series of phantoms, of which any number can be made, and blocks of neighbouring lung CT pictures
(`lung_ct`, no patient ids). Both are scored by a network of their own, fine-tuned by the pipeline of the shipped
bundles, with one draw a noise level. Everything is kept under the work folder, in a folder named by all that it rests
on (`keyed`), and goes on where it was interrupted. Log-odds are kept beside surprises, so that these can be had under
another reference without a forward pass (`rated`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from dicomguard.lab.imagenet import imagenet
from dicomguard.lab.measure import name_of, source_digest
from dicomguard.lab.whole import replacing
from dicomguard.phantom import Tomography
from dicomguard.phantom.ct_header import WINDOW_CENTRE, WINDOW_WIDTH
from dicomguard.phantom.tomograph import INTERCEPT
from dicomguard.scoring import bundle, calibration, consistency, noise
from dicomguard.scoring.bundle import Inference
from dicomguard.scoring.calibration import NOISE_COMPONENTS, STATISTIC, Calibration, Evidence
from dicomguard.scoring.consistency import Draw, NoiseSettings, Observation
from dicomguard.scoring.device import half_on_cpu
from dicomguard.scoring.scorer import Scorer

Pictures = NDArray[np.float32]
Progress = Callable[[str], None]
Values = NDArray[np.float64]
Odds = NDArray[np.float32]

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
_ALPHA = 0.2  # of the image thresholds, which nothing here uses: so large that few pictures have one, too
_CHUNK = 8  # pictures in one forward pass
_ROWS = 16  # pictures scored at once: whole forward passes of the fixed shape


@dataclass(frozen=True, slots=True)
class Seen:
    """What the noise check saw of N pictures: log-odds (N, 1, 2), and under D noise draws (N, D, 1, 2)."""

    clean: Odds
    noisy: Odds

    def surprises(self, fitted: Calibration) -> Values:
        """The score of each picture under a reference; NaN where nothing was seen of it."""
        draws = fitted.stages[-1].draws
        found = np.full(len(self.clean), np.nan)
        for place in np.flatnonzero(np.isfinite(self.clean).all((1, 2))):
            observed = Observation(self.clean[place].astype(np.float64), self.noisy[place].astype(np.float64), draws)
            found[place] = fitted.statistic_of(Evidence(observed))[0]
        return found

    def spread(self, count: int, places: Sequence[int]) -> Seen:
        """The same as `places` of `count` pictures of which nothing else was seen."""
        clean, noisy = (np.full((count, *part.shape[1:]), np.nan, np.float32) for part in (self.clean, self.noisy))
        where = list(places)
        clean[where], noisy[where] = self.clean, self.noisy
        return Seen(clean, noisy)


@dataclass(frozen=True, slots=True)
class Studied:
    """One study: surprises of its images in order, those after each attack (NaN where the answer is the same), and what
    was seen: by attack, and under "" of the images as they were.
    """

    name: str
    indices: NDArray[np.int64]
    surprises: Values
    attacked: dict[str, Values]
    seen: Mapping[str, Seen]


def of(study: Studied, keep: NDArray[np.bool_]) -> Studied:
    """A coarser study: only the images that `keep` marks."""
    return Studied(
        study.name,
        study.indices[keep],
        study.surprises[keep],
        {kind: row[keep] for kind, row in study.attacked.items()},
        {kind: Seen(seen.clean[keep], seen.noisy[keep]) for kind, seen in study.seen.items()},
    )


def rated(study: Studied, fitted: Calibration) -> Studied:
    """The same study with the surprises that another reference gives it."""
    attacked = {
        kind: np.where(np.isfinite(row), study.seen[kind].surprises(fitted), np.nan)
        for kind, row in study.attacked.items()
    }
    return replace(study, surprises=study.seen[""].surprises(fitted), attacked=attacked)


def definition() -> dict[str, Any]:
    """All that what is kept rests on."""
    return {
        "statistic": STATISTIC,
        "levels": LEVELS,
        "size": SIZE,
        "slices": SLICES,
        "attacked": ATTACKED,
        "attacks": ATTACKS,
        "seeds": _SEEDS,
        "settings": asdict(_SETTINGS),
        "reference": _REFERENCE,
        "sources": source_digest("attacks", "phantom"),
        "format": 2,  # of the files below
    }


def keyed(work: Path) -> Path:
    """The folder below `work` that belongs to the present definition; what an earlier one made is left alone."""
    facts = definition()
    folder = work / name_of(facts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "definition.json").write_text(json.dumps(facts, indent=1) + "\n")  # by several processes at once
    return folder


class Rater:
    """A calibrated scorer as this measurement uses it: the only place here that knows scores and logits."""

    def __init__(self, scorer: Scorer, clean: Calibration | None = None) -> None:
        self.scorer = scorer
        self._reference = clean
        self._noise = NoiseSettings(LEVELS, repeats=1)

    def log_odds(self, batch: Tensor) -> Tensor:
        """Log-odds (N, 1, 2) in bfloat16 where that is fast; no threshold of a node comes from here."""
        with half_on_cpu():
            return self.scorer.log_odds(batch.to(memory_format=torch.channels_last)).float()

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The noise draws that are made of each picture."""
        return self._noise.ladder()

    def see(self, pictures: Pictures, names: Sequence[str]) -> Seen:
        """What the noise check sees of prepared pictures (N, H, W)."""
        seeds = [noise.seed(_KEY, name, 0, "", self.scorer.fingerprint, "study") for name in names]
        batch = torch.from_numpy(pictures)[:, None]
        with torch.inference_mode():
            parts = [self.log_odds(part) for part in torch.split(batch, _CHUNK)]
        # The log-odds are float32 numbers, whatever they are handed on in.
        noisy = consistency.observe(self.log_odds, batch, seeds, self._noise, self.draws, chunk=_CHUNK)
        return Seen(torch.cat(parts).numpy(), noisy.astype(np.float32))

    def rate(self, seen: Seen) -> Values:
        """Surprise of each picture."""
        assert self._reference is not None
        return seen.surprises(self._reference)

    def attack(self, kind: str, pictures: Pictures, names: Sequence[str], grey_levels: int) -> tuple[Values, Seen]:
        """Surprise after an attack rounded to stored bits, NaN where the answer is the same then; and what was seen."""
        clean = torch.from_numpy(pictures)[:, None]
        moving = margins.from_log_odds(self.log_odds, clean)
        if kind == "bim":
            pixels = early_stopped_bim(moving, clean).pixels
        else:
            budget = FixedEps(eps=int(kind.removeprefix("pgd")) / 1000, steps=10, relative_step=0.25)
            pixels = fixed_eps_pgd(moving, clean, range(len(clean)), budget).pixels
        pixels = (pixels * grey_levels).round() / grey_levels
        seen = self.see(pixels[:, 0].numpy(), [f"{name}/{kind}" for name in names])
        with torch.inference_mode():
            before = self.log_odds(clean).argmax(-1)[:, 0].numpy()
        return np.where(seen.clean[:, 0].argmax(-1) != before, self.rate(seen), np.nan), seen


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
    path = work / "phantom-reference.npz"
    if not path.exists():
        rng = np.random.default_rng(7)
        where = rng.integers(0, SLICES, _REFERENCE)
        shown = np.stack([picture(body("reference", n).stored(int(k))) for n, k in enumerate(where)])
        _calibrate(path, rater, shown, [f"reference-{n}" for n in range(_REFERENCE)])
        tell("phantom reference calibrated")
    return Rater(rater.scorer, reference(work, "phantom"))


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
    path = work / "lung-reference.npz"
    if not path.exists():
        seen = [example for group in order[cuts[0] : cuts[1]] for example in blocks[group]]
        _calibrate(path, rater, _gray(seen), [example.path.name for example in seen])
        tell("lung reference calibrated")
    rest = {group: blocks[group] for group in order[cuts[1] :]}
    return Rater(rater.scorer, reference(work, "lung")), rest


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
        seen = {kind: Seen(kept[f"{kind} clean"], kept[f"{kind} noisy"]) for kind in ("", *attacked)}
        return Studied(path.stem, kept["indices"], kept["surprises"], attacked, seen)


def save(path: Path, study: Studied) -> None:
    """Write a study as `load` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"indices": study.indices, "surprises": study.surprises, **study.attacked}
    for kind, seen in study.seen.items():
        columns |= {f"{kind} clean": seen.clean, f"{kind} noisy": seen.noisy}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **columns)


def _score(
    path: Path,
    rater: Rater,
    named: tuple[Sequence[str], Pictures],
    indices: NDArray[np.int64],
    hit: Sequence[int],
    grey_levels: int,
) -> None:
    names, shown = named
    seen = {"": _see(rater, shown, names)}
    attacked = {}
    for kind in ATTACKS if hit else ():
        row = np.full(len(shown), np.nan)
        row[hit], found = rater.attack(kind, shown[hit], [names[k] for k in hit], grey_levels)
        attacked[kind], seen[kind] = row, found.spread(len(shown), hit)
    save(path, Studied(path.stem, indices, rater.rate(seen[""]), attacked, seen))


def _see(rater: Rater, pictures: Pictures, names: Sequence[str]) -> Seen:
    parts = [
        rater.see(pictures[start : start + _ROWS], names[start : start + _ROWS])
        for start in range(0, len(names), _ROWS)
    ]
    return Seen(np.concatenate([part.clean for part in parts]), np.concatenate([part.noisy for part in parts]))


def _calibrate(path: Path, rater: Rater, pictures: Pictures, names: Sequence[str]) -> None:
    seen = _see(rater, pictures, names)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, clean=seen.clean, noisy=seen.noisy)


def reference(work: Path, kind: str, count: int | None = None) -> Calibration:
    """The reference of `phantom` or `lung` studies; on its first `count` pictures alone where that is given."""
    with np.load(work / f"{kind}-reference.npz") as kept:
        clean, noisy = kept["clean"], kept["noisy"]
    draws = NoiseSettings(LEVELS, repeats=1).ladder()
    found = [
        Evidence(Observation(c.astype(np.float64), n.astype(np.float64), draws))
        for c, n in zip(clean, noisy, strict=True)
    ]
    cut = 2 * len(found) // 3
    return calibration.fit(found[: count or cut], found[cut:], alpha=_ALPHA, plan=(draws,), used=NOISE_COMPONENTS)


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
    for epoch, network in finetune.finetune(imagenet(), pictures, labels, _SETTINGS, lambda _stage, _share: None):
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
