"""The test data's own sets, on a dozen pictures of each where the whole is not needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab.data import catalogue, open_collection
from dicomguard.lab.data.named import KNOWN, listing
from dicomguard.lab.datasets import Split, read_csv
from dicomguard.lab.recipes import RECIPES
from tests.lab.data.toys import blobs, coloured, save, table

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def small(data_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a set's table with a dozen rows of each label, whose paths lead to the real files."""

    def make(name: str) -> Path:
        known = KNOWN[name]
        taken: dict[str, int] = {}
        rows = []
        for row in read_csv(data_dir / f"{known.table}.csv"):
            taken[row.label] = taken.get(row.label, 0) + 1
            if taken[row.label] <= 12:
                rows.append((str(row.path), row.label, row.group))
        table(tmp_path, rows).rename(tmp_path / f"{known.table}.csv")
        return tmp_path

    return make


@pytest.mark.data
@pytest.mark.parametrize("name", KNOWN)
def test_real_pictures_become_instances_of_their_modality(name: str, small: Callable[[str], Path]) -> None:
    known, listed = KNOWN[name], listing(name, small(name))
    assert len(listed.entries) == 12 * len(known.classes)
    assert {entry.example.label for entry in listed.entries} == set(known.labels)
    assert listed.maker is not None
    for entry in listed.entries[::11]:
        picture = entry.read()
        assert picture.shape == ((224, 224, 3) if known.planes == 3 else (224, 224))
        made = listed.maker(picture, bits=listed.bits, name=entry.key)
        expected = {"chest": "CR", "brain": "MR", "lung_": "CT", "breas": "US", "fundu": "OP"}[name[:5]]
        assert made.Modality == expected
        assert made.BitsStored == known.bits


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), [("chest_xray", "chest-xray"), ("brain_mri", "brain-mri")])
def test_splits_are_those_of_the_shipped_bundles(name: str, recipe: str, data_dir: Path) -> None:
    found = open_collection(name, data_dir)
    assert found.salt == ""
    for split in Split:
        theirs = {case.key: (case.truth, case.group) for case in RECIPES[recipe].cases(data_dir, split)}
        assert {case.key: (case.truth, case.group) for case in found.cases(split)} == theirs


def made_up(tmp_path: Path, name: str, count: int = 90) -> Path:
    known = KNOWN[name]
    rows = []
    for place, label in enumerate(known.classes):
        for index in range(count):
            seed = place * 1000 + index
            save(tmp_path / name / f"{label}_{index}.png", coloured(seed) if known.planes == 3 else blobs(seed))
            rows.append((f"{name}/{label}_{index}.png", label, f"{label}-{index}"))
    table(tmp_path, rows).rename(tmp_path / f"{known.table}.csv")
    return tmp_path


def test_several_labels_of_the_table_may_be_one_answer(tmp_path: Path) -> None:
    data = made_up(tmp_path, "lung_ct")
    binary = open_collection("lung_ct", data)
    assert binary.labels == ("not malignant", "malignant")
    assert binary.stands_in_for == "LIDC-IDRI"
    for split in Split:
        for case in binary.cases(split):
            assert case.truth == int(case.key.startswith("malignant"))
    three = open_collection("lung_ct_3", data)
    assert three.labels == ("benign", "malignant", "normal")
    assert all(case.key.startswith(three.labels[case.truth]) for split in Split for case in three.cases(split))


def test_fundus_pictures_keep_their_colours(tmp_path: Path) -> None:
    found = open_collection("fundus", made_up(tmp_path, "fundus"), side=20)
    assert (found.planes, found.bits, found.stands_in_for) == (3, 8, "RFMiD")
    image = found.cases(Split.TRAIN)[0].image(8)
    assert image.pixels.shape == (3, 20, 20)
    assert np.ptp(image.pixels, axis=0).max() > 0.1


def test_unknown_labels_are_an_error(tmp_path: Path) -> None:
    table(tmp_path, [("a.png", "odd", "a")]).rename(tmp_path / "lung_ct.csv")
    with pytest.raises(DicomguardError, match="unknown label 'odd'"):
        open_collection("lung_ct", tmp_path)


def test_the_catalogue_says_what_is_here(tmp_path: Path) -> None:
    made_up(tmp_path, "fundus", 3)
    here = {offer.name for offer in catalogue.catalogue(tmp_path) if offer.is_here}
    assert here == {"fundus"}
    assert len(catalogue.catalogue(tmp_path)) == len(KNOWN) + 5
