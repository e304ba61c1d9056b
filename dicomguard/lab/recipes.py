"""What each shipped bundle is trained on: pictures for the optimiser, `Image`s for calibration, words for the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.errors import DicomguardError
from dicomguard.lab.datasets import Example, Split, load_gray, one_per_group, read_csv, split_by_group
from dicomguard.lab.finetune import Settings
from dicomguard.lab.instances import computed_radiograph
from dicomguard.pixels.image import Image
from dicomguard.pixels.reader import images

# Seeds of phantoms by split. The demo and the tests draw theirs from zero upwards, which no split here uses.
_PHANTOM_SEEDS = {
    Split.TRAIN: 1_000_000,
    Split.VALIDATION: 2_000_000,
    Split.CALIBRATION: 3_000_000,
    Split.TEST: 4_000_000,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One picture: `make(bits)` gives its DICOM instance, `truth` is 0 or 1, `group` the patient."""

    key: str
    truth: int
    group: str
    make: Callable[[int], Dataset]

    def image(self, bits: int) -> Image:
        """The instance's only frame, read as the node reads it."""
        return images(self.make(bits))[0]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one bundle is made. `bits`: stored bits that are attacked; `alpha`, `eps`: what it is enrolled with."""

    name: str
    labels: tuple[str, str]
    alpha: float
    bits: tuple[int, ...]
    settings: Settings
    cases: Callable[[Path, Split], list[Case]]
    task: str
    description: str
    data_source: str
    intended_use: str
    checked: int = field(default=110)
    attacked: int = field(default=40)
    eps: float = field(default=0.004)


def _radiographs(data: Path, split: Split) -> list[Case]:
    held_out = {example.group for example in read_csv(data / "chest_xray_fullres.csv")}
    examples = split_by_group(read_csv(data / "chest_xray.csv"), held_out=held_out)[split]
    # Thresholds and figures want exchangeable images: one for each patient. Training takes all there are.
    chosen = examples if split is Split.TRAIN else one_per_group(examples)
    return [_radiograph(example) for example in chosen]


def _radiograph(example: Example) -> Case:
    def make(bits: int) -> Dataset:
        return computed_radiograph(load_gray(example.path), bits=bits, name=example.path.name)

    return Case(example.path.name, int(example.label == "pneumonia"), example.group, make)


def _phantoms(counts: dict[Split, int]) -> Callable[[Path, Split], list[Case]]:
    def cases(_data: Path, split: Split) -> list[Case]:
        first = _PHANTOM_SEEDS[split]
        return [_phantom(first + index, index % 2) for index in range(counts[split])]

    return cases


def _phantom(seed: int, truth: int) -> Case:
    def make(bits: int) -> Dataset:
        if bits != 12:
            raise DicomguardError(f"phantoms have 12 stored bits, not {bits}.")
        return phantom.make(seed, opacity=bool(truth), modality="CR" if seed % 4 < 2 else "DX")

    return Case(f"phantom-{seed}", truth, str(seed), make)


def batches(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    """Consecutive slices of at most `size`."""
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def truths(cases: Sequence[Case]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The labels as an array (N,)."""
    return np.array([case.truth for case in cases], np.int64)


RECIPES = {
    "chest-xray": Recipe(
        name="chest-xray",
        labels=("normal", "pneumonia"),
        alpha=0.05,
        bits=(8, 12),
        settings=Settings(epochs=6, variants=6),
        cases=_radiographs,
        task="Normal or pneumonia on a frontal chest radiograph of a child",
        description="EfficientNet-Lite0, ImageNet weights, last layers fine-tuned under a little noise.",
        data_source="Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography and Chest X-Ray Images, Mendeley "
        "Data rscbjbr9sj (doi 10.17632/rscbjbr9sj), Cell 2018;172:1122; CC BY 4.0. Official training split only.",
        intended_use="Showing and testing the node on real radiographs. Not a medical device; not for diagnosis.",
    ),
    "phantom": Recipe(
        name="phantom",
        labels=("no opacity", "opacity"),
        alpha=0.01,
        bits=(12,),
        settings=Settings(epochs=8, variants=4, batch=16, rate=7e-4, zoom=0.04, rotation=4.0, gamma=0.1, gain=0.05),
        cases=_phantoms({Split.TRAIN: 800, Split.VALIDATION: 160, Split.CALIBRATION: 320, Split.TEST: 200}),
        task="Opacity or none on a synthetic chest-like QA phantom",
        description="EfficientNet-Lite0, ImageNet weights, last layers fine-tuned under a little noise.",
        data_source="Synthetic phantoms of dicomguard.phantom, drawn by seed. No patient data.",
        intended_use="Demonstration, canaries and tests of the node. Says nothing about patients.",
    ),
}
