"""What each shipped bundle is trained on: pictures for the optimiser, `Image`s for calibration, words for the card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.errors import DicomguardError
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import (
    Example,
    Split,
    alternating,
    load_gray,
    one_per_group,
    read_csv,
    shuffled,
    split_by_group,
)
from dicomguard.lab.duplicates import regrouped
from dicomguard.lab.finetune import Settings
from dicomguard.lab.instances import computed_radiograph, magnetic_resonance

# Seeds of phantoms by split. The demo and the tests draw theirs from zero upwards, which no split here uses.
_PHANTOM_SEEDS = {
    Split.TRAIN: 1_000_000,
    Split.VALIDATION: 2_000_000,
    Split.CALIBRATION: 3_000_000,
    Split.TEST: 4_000_000,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one bundle is made. `bits`: stored bits that are attacked; `alpha`, `eps`: what it is enrolled with.

    `spares`: further test pictures of patients that `cases` has one of, for attacks that seldom succeed.
    `splits` and `limits`: what the card says on how the data were divided, and on what the figures cannot show.
    """

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
    splits: str
    limits: tuple[str, ...] = ()
    checked: int = field(default=110)
    attacked: int = field(default=40)
    eps: float = field(default=0.004)
    spares: Callable[[Path], list[Case]] = field(default=lambda _: [])


def _radiographs_of(data: Path, split: Split) -> list[Example]:
    held_out = {example.group for example in read_csv(data / "chest_xray_fullres.csv")}
    return split_by_group(read_csv(data / "chest_xray.csv"), held_out=held_out)[split]


def _radiographs(data: Path, split: Split) -> list[Case]:
    examples = _radiographs_of(data, split)
    # Thresholds and figures want exchangeable images: one for each patient. Training takes all there are.
    chosen = examples if split is Split.TRAIN else one_per_group(examples)
    return [_radiograph(example) for example in chosen]


def _spare_radiographs(data: Path) -> list[Case]:
    return [_radiograph(example) for example in _left_over(_radiographs_of(data, Split.TEST))]


def _left_over(examples: Sequence[Example]) -> list[Example]:
    chosen = {example.path for example in one_per_group(examples)}
    return shuffled([example for example in examples if example.path not in chosen])


def _radiograph(example: Example) -> Case:
    def make(bits: int) -> Dataset:
        return computed_radiograph(load_gray(example.path), bits=bits, name=example.path.name)

    return Case(example.path.name, int(example.label == "pneumonia"), example.group, make)


@cache
def _grouped(table: Path) -> tuple[Example, ...]:
    """Kept, because every split asks for it and comparing thousands of pictures takes seconds."""
    return tuple(regrouped(read_csv(table)))


def _slices(data: Path, split: Split) -> list[Case]:
    examples = split_by_group(_grouped(data / "brain_mri.csv"))[split]
    if split is not Split.TRAIN:
        examples = one_per_group(examples)
    # The table lists class after class, but whoever measures may stop early. Validation is a few dozen attacks, so
    # both classes take turns there; calibration and test stay exchangeable draws wherever they are cut.
    ordered = alternating(examples, _has_tumour) if split is Split.VALIDATION else shuffled(examples)
    return [_slice(example) for example in ordered]


def _spare_slices(data: Path) -> list[Case]:
    return [_slice(example) for example in _left_over(split_by_group(_grouped(data / "brain_mri.csv"))[Split.TEST])]


def _has_tumour(example: Example) -> bool:
    return example.label != "notumor"


def _slice(example: Example) -> Case:
    def make(bits: int) -> Dataset:
        return magnetic_resonance(load_gray(example.path), bits=bits, name=example.path.name)

    return Case(example.path.name, int(_has_tumour(example)), example.group, make)


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


RECIPES = {
    "chest-xray": Recipe(
        name="chest-xray",
        labels=("normal", "pneumonia"),
        alpha=0.05,
        bits=(8, 12),
        settings=Settings(epochs=6, variants=6),
        cases=_radiographs,
        spares=_spare_radiographs,
        task="Normal or pneumonia on a frontal chest radiograph of a child",
        description="EfficientNet-Lite0, ImageNet weights, last layers fine-tuned under a little noise.",
        data_source="Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography and Chest X-Ray Images, Mendeley "
        "Data rscbjbr9sj (doi 10.17632/rscbjbr9sj), Cell 2018;172:1122; CC BY 4.0. Official training split only.",
        intended_use="Showing and testing the node on real radiographs. Not a medical device; not for diagnosis.",
        splits="by patient: train 50 %, validation 8 %, calibration 20 %, test 22 % of them, and every patient whose "
        "radiograph is at hand in full size in test. Validation, calibration and test take one image for each patient.",
        limits=("The official test split is known to differ from the training split: accuracy drops by ten points.",),
    ),
    "brain-mri": Recipe(
        name="brain-mri",
        labels=("no tumour", "tumour"),
        alpha=0.05,
        bits=(8, 12),
        settings=Settings(epochs=6, variants=6, mirror=True),
        cases=_slices,
        spares=_spare_slices,
        task="Tumour or none on a slice of a brain MRI",
        description="EfficientNet-Lite0, ImageNet weights, last layers fine-tuned under a little noise.",
        data_source="Kaggle 'Brain Tumor MRI Dataset' (Figshare: Cheng 2017, doi 10.6084/m9.figshare.1512427; SARTAJ; "
        "Br35H); CC BY 4.0 / CC0. Official training folder only.",
        intended_use="Showing and testing the node on real MRI slices. Not a medical device; not for diagnosis.",
        splits="by group of near-duplicates, since the source names no patients: its 5312 files show 1894 different "
        "slices, of which 251 without tumour, the others are mirrored, sharpened or otherwise changed copies. Train "
        "50 %, validation 8 %, calibration 20 %, test 22 % of the groups. Validation, calibration and test take one "
        "image of each group, in the proportion in which groups occur; training takes all and weighs the two classes "
        "the same.",
        limits=(
            (
                "Slices without tumour come from other sites than those with one, in other contrasts: what tells the "
                "sources apart tells the classes apart too, and accuracy here says little about finding tumours."
            ),
            "Different slices of one patient may stand on both sides of a split: nothing in the source tells them.",
            "Sequence, position and spacing in the headers are nominal: the source is picture files.",
        ),
        checked=150,
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
        splits="by seed; no phantom of the demonstration or of the tests is among them.",
    ),
}
