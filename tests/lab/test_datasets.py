from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.errors import DicomguardError
from dicomguard.lab.datasets import SHARES, Example, Split, one_per_group, read_csv, split_by_group
from dicomguard.lab.recipes import RECIPES


def example(number: int, group: str) -> Example:
    return Example(Path(f"{number}.jpeg"), "normal", group)


def test_shares_are_a_partition() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)
    parts = split_by_group([example(i, f"patient-{i}") for i in range(5000)])
    for split, share in SHARES.items():
        assert len(parts[split]) / 5000 == pytest.approx(share, abs=0.02)


@given(st.lists(st.sampled_from([f"p{i}" for i in range(40)]), max_size=80), st.sets(st.sampled_from(["p1", "p2"])))
@settings(deadline=None)
def test_no_patient_stands_on_two_sides_and_nobody_is_lost(groups: list[str], held_out: set[str]) -> None:
    examples = [example(i, group) for i, group in enumerate(groups)]
    parts = split_by_group(examples, held_out=held_out)
    assert sorted(e.path for part in parts.values() for e in part) == sorted(e.path for e in examples)
    seen = [{e.group for e in part} for part in parts.values()]
    assert sum(map(len, seen)) == len(set(groups))
    assert held_out & set(groups) <= {e.group for e in parts[Split.TEST]}


def test_one_image_for_each_patient_whatever_the_order() -> None:
    examples = [example(i, f"p{i % 7}") for i in range(50)]
    chosen = one_per_group(examples)
    assert len(chosen) == 7
    assert set(chosen) == set(one_per_group(examples[::-1]))


def test_a_table_that_cannot_be_read_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(DicomguardError, match="path,label,group"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_text("file,label\na,b\n")
    with pytest.raises(DicomguardError, match="path,label,group"):
        read_csv(tmp_path / "bad.csv")
    (tmp_path / "empty.csv").write_text("path,label,group\n")
    with pytest.raises(DicomguardError, match="no images"):
        read_csv(tmp_path / "empty.csv")


@pytest.mark.data
def test_patients_of_the_full_size_radiographs_are_test_patients(data_dir: Path) -> None:
    full = {e.group for e in read_csv(data_dir / "chest_xray_fullres.csv")}
    cases = {split: RECIPES["chest-xray"].cases(data_dir, split) for split in Split}
    assert full <= {case.group for case in cases[Split.TEST]}
    for split in (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION):
        assert full.isdisjoint(case.group for case in cases[split])
    image = cases[Split.TEST][0].image(12)
    assert image.pixels.shape == (1, 224, 224)
    assert image.bits_stored == 12


def test_phantoms_of_different_splits_never_share_a_seed() -> None:
    recipe = RECIPES["phantom"]
    keys = [case.key for split in Split for case in recipe.cases(Path(), split)]
    assert len(keys) == len(set(keys))
    truths = [case.truth for case in recipe.cases(Path(), Split.TEST)]
    assert sum(truths) == len(truths) // 2
