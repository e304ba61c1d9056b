"""Copies, look-alikes, bad files, few pictures, and salts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab.data import open_collection
from dicomguard.lab.data.division import divide
from dicomguard.lab.data.inventory import take
from dicomguard.lab.data.pictures import folders
from dicomguard.lab.data.pictures import table as listed
from dicomguard.lab.datasets import SHARES, Split
from dicomguard.lab.duplicates import Likeness
from tests.lab.data.toys import blobs, class_folders, save, table

TWO = {"ill": 60, "well": 60}


def everything(found) -> set[str]:
    return {case.key for split in Split for case in found.cases(split)}


def test_exact_copies_are_left_out_and_told(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", TWO)
    for number in range(3):
        shutil.copy(root / "ill" / "ill_000.png", root / "ill" / f"copy_{number}.png")
    found = open_collection("set", tmp_path)
    assert len(everything(found)) == 120
    assert any("3 exact copies" in words for words in found.left_out)
    assert any("3 exact copies" in words for words in found.limits)


def test_copies_that_contradict_each_other_are_both_left_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", TWO)
    shutil.copy(root / "ill" / "ill_000.png", root / "well" / "copy.png")
    found = open_collection("set", tmp_path)
    assert everything(found).isdisjoint({"ill/ill_000.png", "well/copy.png"})
    assert any("different labels" in words for words in found.left_out)


def test_look_alikes_never_stand_on_two_sides(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", TWO)
    for path in sorted((root / "ill").iterdir())[:40]:
        number = int(path.stem[-3:])
        save(root / "ill" / f"mirrored_{number:03}.png", np.ascontiguousarray(blobs(number)[:, ::-1]))
    found = open_collection("set", tmp_path)
    side = {Path(case.key).stem: split for split in Split for case in found.cases(split)}
    pairs = [(f"ill_{i:03}", f"mirrored_{i:03}") for i in range(40)]
    kept = [side[one] is side[other] for one, other in pairs if one in side and other in side]
    assert all(kept)
    assert any("look like one of a later split" in words for words in found.left_out)
    # Joined, each pair is one group; outside of training a group gives one picture.
    listing = folders(root)
    joined = divide(
        type(listing)(**{n: getattr(listing, n) for n in listing.__slots__} | {"joins": True, "rule": Likeness()}),
        take(listing.entries, None, lambda _share: None),
    )
    groups = {split: [entry.example.group for entry in part] for split, part in joined.parts.items()}
    assert sum(len(set(part)) for part in groups.values()) == len(set().union(*groups.values())) == 120
    assert len(groups[Split.TRAIN]) > len(set(groups[Split.TRAIN]))


def test_a_few_unreadable_files_are_counted_and_many_are_an_error(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", TWO)
    (root / "ill" / "broken_0.png").write_bytes(b"no picture")
    data = (root / "ill" / "ill_000.png").read_bytes()
    (root / "well" / "broken_1.png").write_bytes(data[: len(data) // 2])
    found = open_collection("set", tmp_path)
    assert len(everything(found)) == 120
    assert any("2 unreadable files: broken_0.png, broken_1.png" in words for words in found.left_out)
    (root / "well" / "broken_2.png").write_bytes(b"")
    with pytest.raises(DicomguardError, match="3 of 123 pictures cannot be read") as raised:
        open_collection("set", tmp_path)
    assert "broken_0.png" in raised.value.message


def test_a_missing_file_of_a_table_counts_as_unreadable(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "ill" if i % 2 else "well", str(i)) for i in range(100)]
    for index in range(99):
        save(tmp_path / f"{index}.png", blobs(index))
    table(tmp_path, rows)
    found = open_collection("pictures.csv", tmp_path, least=3)
    assert any("1 unreadable files: 99.png" in words for words in found.left_out)


def test_a_class_with_too_few_pictures_is_an_error(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", {"ill": 9, "well": 60})
    with pytest.raises(DicomguardError, match=r"pictures of class ill \(9 in all\); at least 5 are needed") as raised:
        open_collection("set", tmp_path)
    assert raised.value.advice


def test_few_groups_are_dealt_by_the_first_salt_that_gives_each_class_its_share(tmp_path: Path) -> None:
    rows = []
    for index in range(240):
        label = "ill" if index < 120 else "well"
        save(tmp_path / f"{index}.png", blobs(index))
        rows.append((f"{index}.png", label, f"{label}-{index // 10}"))  # twelve groups of ten for each class
    path = table(tmp_path, rows)
    listing = listed(path)
    listing = type(listing)(**{n: getattr(listing, n) for n in listing.__slots__} | {"one_each": False})
    inventory = take(listing.entries, None, lambda _share: None)
    found = divide(listing, inventory)
    for split, part in found.parts.items():
        for label in ("ill", "well"):
            count = sum(entry.example.label == label for entry in part)
            assert count >= 0.5 * SHARES[split] * 120
    assert divide(listing, inventory).salt == found.salt


def test_what_was_read_is_kept_and_what_changed_is_read_again(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", TWO)
    shares: list[float] = []
    first = open_collection("set", tmp_path, cache=tmp_path / "cache", advance=shares.append)
    assert sum(shares) == pytest.approx(1)
    shares.clear()
    again = open_collection("set", tmp_path, cache=tmp_path / "cache", advance=shares.append)
    assert shares == []
    assert everything(first) == everything(again)
    shutil.copy(root / "ill" / "ill_000.png", root / "ill" / "copy.png")
    changed = open_collection("set", tmp_path, cache=tmp_path / "cache", advance=shares.append)
    assert shares
    assert any("1 exact copies" in words for words in changed.left_out)
    assert not list((tmp_path / "cache").glob("*partial*"))
