"""The project's own test data, each set as a listing: what it is, what it stands in for, and what it cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.listing import STRICT, Listing, Maker
from dicomguard.lab.data.pictures import NO_PATIENTS, entry
from dicomguard.lab.datasets import read_csv
from dicomguard.lab.duplicates import Likeness
from dicomguard.lab.instances import (
    computed_radiograph,
    computed_tomograph,
    magnetic_resonance,
    ophthalmic_photograph,
    ultrasound,
)


@dataclass(frozen=True, slots=True)
class Known:
    """One set of the test data. `classes`: what each label of its table counts as; `labels`: these, in order."""

    table: str
    labels: tuple[str, ...]
    classes: Mapping[str, str]
    source: str
    maker: Maker
    bits: int
    planes: int = 1
    stands_in_for: str | None = None
    limits: tuple[str, ...] = ()
    rule: Likeness = STRICT
    joins: bool = False
    one_each: bool = True


_CHEST = "Kermany, Zhang, Goldbaum, Mendeley Data rscbjbr9sj (doi 10.17632/rscbjbr9sj), Cell 2018;172:1122; CC BY 4.0. "
_BRAIN = (
    "Kaggle 'Brain Tumor MRI Dataset' (Figshare: Cheng 2017, doi 10.6084/m9.figshare.1512427; SARTAJ; Br35H); "
    "CC BY 4.0 / CC0. Official training folder only."
)
_LUNG = "Alyasriy, AL-Huseiny, IQ-OTH/NCCD lung cancer dataset, Mendeley Data bhmdr45bh2; CC BY 4.0."
_LUNG_LIMITS = (
    (
        "The group is a block of neighbouring file numbers, since the source names no patients: leakage may remain. "
        "Pictures of one block are no independent draws, so that intervals are too narrow."
    ),
    "The pictures are screen copies of CT slices in windows of their own: nothing tells their Hounsfield units.",
)
_BRAIN_LIMITS = (
    (
        "Slices without tumour come from other sites than those with one: what tells the sources apart tells the "
        "classes apart too, and accuracy here says little about finding tumours."
    ),
    NO_PATIENTS,
)

KNOWN: Mapping[str, Known] = {
    "chest_xray": Known(
        table="chest_xray",
        labels=("normal", "pneumonia"),
        classes={"normal": "normal", "pneumonia": "pneumonia"},
        source=_CHEST + "Official training split only.",
        maker=computed_radiograph,
        bits=12,
        limits=("The official test split, which is shifted against the training split, is not among these pictures.",),
    ),
    "brain_mri": Known(
        table="brain_mri",
        labels=("no tumour", "tumour"),
        classes={"notumor": "no tumour", "glioma": "tumour", "meningioma": "tumour", "pituitary": "tumour"},
        source=_BRAIN,
        maker=magnetic_resonance,
        bits=12,
        limits=_BRAIN_LIMITS,
        rule=Likeness(),
        joins=True,
    ),
    "brain_mri_4": Known(
        table="brain_mri",
        labels=("glioma", "meningioma", "no tumour", "pituitary"),
        classes={
            "glioma": "glioma",
            "meningioma": "meningioma",
            "notumor": "no tumour",
            "pituitary": "pituitary",
        },
        source=_BRAIN,
        maker=magnetic_resonance,
        bits=12,
        limits=_BRAIN_LIMITS,
        rule=Likeness(),
        joins=True,
    ),
    "lung_ct": Known(
        table="lung_ct",
        labels=("not malignant", "malignant"),
        classes={"benign": "not malignant", "normal": "not malignant", "malignant": "malignant"},
        source=_LUNG,
        maker=computed_tomograph,
        bits=12,
        stands_in_for="LIDC-IDRI",
        limits=_LUNG_LIMITS,
        one_each=False,
    ),
    "lung_ct_3": Known(
        table="lung_ct",
        labels=("benign", "malignant", "normal"),
        classes={"benign": "benign", "malignant": "malignant", "normal": "normal"},
        source=_LUNG,
        maker=computed_tomograph,
        bits=12,
        stands_in_for="LIDC-IDRI",
        limits=_LUNG_LIMITS,
        one_each=False,
    ),
    "breast_us": Known(
        table="breast_us",
        labels=("not malignant", "malignant"),
        classes={"benign": "not malignant", "normal": "not malignant", "malignant": "malignant"},
        source="Al-Dhabyani, Gomaa, Khaled, Fahmy, Dataset of breast ultrasound images, Data in Brief 2020;28:104863 "
        "(doi 10.1016/j.dib.2019.104863).",
        maker=ultrasound,
        bits=8,
        stands_in_for="CBIS-DDSM",
        limits=(NO_PATIENTS, "Ultrasound, where the paper has mammograms: the task is the same, the pictures are not."),
        rule=Likeness(),
        joins=True,
    ),
    "fundus": Known(
        table="fundus",
        labels=("normal", "diabetic retinopathy"),
        classes={"normal": "normal", "diabetic_retinopathy": "diabetic retinopathy"},
        source="Kaggle 'eye diseases classification' (several sources). Evaluation only: no weights trained on it are "
        "shipped.",
        maker=ophthalmic_photograph,
        bits=8,
        planes=3,
        stands_in_for="RFMiD",
        limits=("The two classes come from several sources, whose cameras may tell them apart.",),
        # Two healthy retinas look alike at 32 x 32 pixels, and a left one is a mirrored right one.
        rule=Likeness(bits=2, together=0.985, alone=0.995),
    ),
}


def listing(name: str, data: Path) -> Listing:
    """A set of the test data under `data`.

    Raises:
        DicomguardError: it is not there, or its table names a class that is not known.

    """
    known = KNOWN[name]
    rows = read_csv(data / f"{known.table}.csv")
    unknown = sorted({row.label for row in rows} - known.classes.keys())
    if unknown:
        raise DicomguardError(f"{known.table}.csv has the unknown label {unknown[0]!r}.", advice="Restore the table.")
    # Patients whose radiograph is at hand in full size are test patients everywhere, as in the shipped bundle.
    full = data / f"{known.table}_fullres.csv"
    held = frozenset(row.group for row in read_csv(full)) if full.exists() else frozenset()
    return Listing(
        name=name,
        labels=known.labels,
        entries=[
            entry(row.path, known.classes[row.label], row.group, key=row.path.name, planes=known.planes, root=data)
            for row in rows
        ],
        source=known.source,
        maker=known.maker,
        bits=known.bits,
        planes=known.planes,
        stands_in_for=known.stands_in_for,
        limits=known.limits,
        rule=known.rule,
        joins=known.joins,
        one_each=known.one_each,
        held=held,
    )
