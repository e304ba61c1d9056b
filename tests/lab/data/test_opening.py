"""Every generic layout: folders, tables, archives, DICOM trees; and what is said where one cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomguard.errors import DicomguardError
from dicomguard.lab.data import Collection, names, open_collection
from dicomguard.lab.data.opening import shrunk
from dicomguard.lab.datasets import Split
from dicomguard.lab.instances import computed_radiograph
from tests.lab.data.toys import blobs, class_folders, coloured, save, table

TWO = {"ill": 60, "well": 60}


def keys(collection: Collection) -> dict[Split, set[str]]:
    return {split: {case.key for case in collection.cases(split)} for split in Split}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    found = open_collection("set", class_folders(tmp_path / "set", TWO).parent)
    assert found.labels == ("ill", "well")
    assert (found.name, found.bits, found.planes) == ("set", 8, 1)
    assert sum(len(part) for part in keys(found).values()) == 120
    assert all(count >= 5 for by_label in found.counts().values() for count in by_label.values())
    assert any("no patients" in words for words in found.limits)
    case = found.cases(Split.TEST)[0]
    label, number = Path(case.key).stem.split("_")
    assert found.labels[case.truth] == label
    seed = int(number) + (0 if label == "ill" else 60)
    np.testing.assert_allclose(case.image(8).pixels[0], blobs(seed) / 255, atol=1e-6)
    assert case.make(8).Modality == "OT"


def test_a_folder_without_pictures_is_no_class_and_is_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", TWO)
    (folder / "doubtful").mkdir()
    (folder / ".cache").mkdir()
    found = open_collection("set", tmp_path)
    assert found.labels == ("ill", "well")
    assert any(words.endswith("they hold no pictures: doubtful.") for words in found.limits)


def test_the_same_folder_divides_the_same_way_wherever_it_lies(tmp_path: Path) -> None:
    first = open_collection("set", class_folders(tmp_path / "a" / "set", TWO).parent)
    second = open_collection(str(class_folders(tmp_path / "b" / "set", TWO)), tmp_path)
    assert keys(first) == keys(second)
    assert [c.key for c in first.cases(Split.TRAIN)] == [c.key for c in second.cases(Split.TRAIN)]


def test_labels_take_turns_in_validation_only(tmp_path: Path) -> None:
    found = open_collection("set", class_folders(tmp_path / "set", {"a": 150, "b": 150}).parent)
    assert [case.truth for case in found.cases(Split.VALIDATION)][:8] == [0, 1] * 4
    assert [case.truth for case in found.cases(Split.TRAIN)][:40] != [0, 1] * 20


def test_a_modality_and_a_side_may_be_wished(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", TWO)
    found = open_collection("set", tmp_path, modality="MR", side=16)
    case = found.cases(Split.TEST)[0]
    made = case.make(found.bits)
    assert (made.Modality, made.Rows, made.Columns, made.BitsStored) == ("MR", 16, 16, 12)
    plain = open_collection("set", tmp_path, modality="MR").cases(Split.TEST)
    (unscaled,) = (one for one in plain if f"{one.key}@16" == case.key)
    assert made.SOPInstanceUID != unscaled.make(12).SOPInstanceUID
    assert any("16 x 16" in words for words in found.limits)
    whole = open_collection("set", tmp_path).cases(Split.TEST)[0].image(8).pixels[0]
    blocks = shrunk((whole * 255).round().astype(np.uint8), 20)
    np.testing.assert_allclose(blocks, (whole * 255).reshape(20, 2, 20, 2).mean((1, 3)), atol=0.51)


def test_colours_stay_colours(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", TWO, colours=True)
    found = open_collection("set", tmp_path)
    assert found.planes == 3
    case = found.cases(Split.TRAIN)[0]
    label, number = Path(case.key).stem.split("_")
    expected = coloured(int(number) + (0 if label == "ill" else 60))
    np.testing.assert_allclose(case.image(8).pixels, np.moveaxis(expected, -1, 0) / 255, atol=1e-6)
    assert open_collection("set", tmp_path, modality="OP").cases(Split.TEST)[0].make(8).Modality == "OP"
    with pytest.raises(DicomguardError, match="colour"):
        open_collection("set", tmp_path, modality="CR")


def test_a_table_keeps_groups_together(tmp_path: Path) -> None:
    rows = []
    for index in range(240):
        save(tmp_path / "files" / f"{index}.png", blobs(index))
        rows.append((f"files/{index}.png", "ill" if index % 4 < 2 else "well", f"patient-{index // 2}"))
    table(tmp_path, rows)
    found = open_collection("pictures.csv", tmp_path)
    groups = {split: [case.group for case in found.cases(split)] for split in Split}
    assert sum(len(set(part)) for part in groups.values()) == len(set().union(*groups.values())) == 120
    assert len(groups[Split.TRAIN]) > len(set(groups[Split.TRAIN]))
    for split in (Split.VALIDATION, Split.CALIBRATION, Split.TEST):
        assert len(groups[split]) == len(set(groups[split]))


def given_splits(tmp_path: Path, change: dict[int, tuple[str, str]] | None = None) -> Path:
    rows = []
    for index in range(80):
        split, group = (change or {}).get(index, (list(Split)[index % 4].value, f"p{index}"))
        save(tmp_path / f"{index}.png", blobs(index))
        rows.append((f"{index}.png", "ill" if index % 8 < 4 else "well", group, split))
    return table(tmp_path, rows, columns="path,label,group,split")


def test_splits_that_are_given_are_kept(tmp_path: Path) -> None:
    given_splits(tmp_path)
    found = open_collection("pictures.csv", tmp_path)
    for place, split in enumerate(Split):
        assert {int(Path(key).stem) % 4 for key in keys(found)[split]} == {place}
        assert len(keys(found)[split]) == 20


def test_a_patient_in_two_given_splits_is_an_error(tmp_path: Path) -> None:
    given_splits(tmp_path, {1: ("validation", "p0")})
    with pytest.raises(DicomguardError, match="group p0 stands in train and in validation"):
        open_collection("pictures.csv", tmp_path)


def test_a_copy_in_another_given_split_is_an_error(tmp_path: Path) -> None:
    given_splits(tmp_path)
    save(tmp_path / "1.png", blobs(0))
    with pytest.raises(DicomguardError, match=r"1\.png in validation is the same picture as 0\.png in train"):
        open_collection("pictures.csv", tmp_path)


def test_a_look_alike_in_another_given_split_is_an_error(tmp_path: Path) -> None:
    given_splits(tmp_path)
    save(tmp_path / "1.png", np.ascontiguousarray(blobs(0)[:, ::-1] // 2))
    with pytest.raises(DicomguardError, match=r"looks the same as"):
        open_collection("pictures.csv", tmp_path)


@pytest.mark.parametrize(
    ("columns", "rows", "words"),
    [
        ("path,label", [("0.png", "ill")], "no column group"),
        ("path,label,group", [], "lists nothing"),
        ("path,label,group", [("0.png", "ill", "")], "line 2"),
        ("path,label,group", [("0.png", "ill", "a"), ("1.png", "ill", "b")], "one class only"),
        ("path,label,group", [("0.png", "ill", "a"), ("0.png", "well", "b")], "twice"),
        ("path,label,group,split", [("0.png", "ill", "a", "tuning")], "no split"),
    ],
    ids=["column", "empty", "value", "class", "twice", "split"],
)
def test_tables_that_cannot_be_used(tmp_path: Path, columns: str, rows: list[tuple[str, ...]], words: str) -> None:
    table(tmp_path, rows, columns=columns)
    with pytest.raises(DicomguardError, match=words) as raised:
        open_collection("pictures.csv", tmp_path)
    assert raised.value.advice


def archive(path: Path, **changes: np.ndarray) -> Path:
    parts: dict[str, np.ndarray] = {}
    first = 0
    for part, count in (("train", 100), ("val", 30), ("test", 40)):
        parts[f"{part}_images"] = np.stack([blobs(first + i, 28) for i in range(count)])
        parts[f"{part}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
        first += count
    np.savez(path, **parts | changes)
    return path


def test_a_medmnist_archive_keeps_its_test_part(tmp_path: Path) -> None:
    archive(tmp_path / "pneumoniamnist.npz")
    found = open_collection("pneumoniamnist.npz", tmp_path, modality="CR")
    assert found.labels == ("0", "1")
    assert {Path(key).name.split("_")[0] for key in keys(found)[Split.TEST]} == {"test"}
    assert len(keys(found)[Split.TEST]) == 40
    for split in (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION):
        assert "test" not in {Path(key).name.split("_")[0] for key in keys(found)[split]}
    assert (found.bits, found.cases(Split.TEST)[0].make(12).Modality) == (12, "CR")
    assert "MedMNIST" in found.source


PICKLED = np.array([{"a": 1}] * 100, object)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_images": PICKLED},
        {"train_labels": np.zeros((100, 14), np.uint8)},
        {"train_labels": np.zeros((99, 1), np.uint8)},
        {"train_labels": np.full((100, 1), 70, np.uint8)},
        {"train_images": np.zeros((100, 28, 28, 28), np.uint8)},
        {"train_images": np.zeros((100, 28, 28))},
    ],
    ids=["pickle", "many labels", "too few labels", "no classes", "volumes", "floats"],
)
def test_other_archives_are_refused(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    archive(tmp_path / "a.npz", **changes)
    with pytest.raises(DicomguardError) as raised:
        open_collection("a.npz", tmp_path)
    assert "medmnist.com" in raised.value.advice


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DicomguardError, match="MedMNIST"):
        open_collection("a.npz", tmp_path)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty radiographs of thirty patients, one file with two frames, and one that is no DICOM."""
    root = tmp_path_factory.mktemp("tree")
    rows = ["sop_instance_uid,path,label"]
    for index in range(60):
        made = computed_radiograph(blobs(index), bits=12, name=str(index))
        made.PatientID = f"patient-{index // 2}"
        if index == 7:
            made.NumberOfFrames = 2
            made.PixelData = made.PixelData * 2
        path = root / f"study-{index // 10}" / f"{index}.dcm"
        path.parent.mkdir(exist_ok=True)
        made.save_as(path, enforce_file_format=True)
        rows.append(f"{made.SOPInstanceUID},{path.relative_to(root)},{'opacity' if index % 4 < 2 else 'clear'}")
    (root / "notes.txt").write_text("no DICOM")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def column(root: Path, out: Path, name: str, *, more: str = "") -> Path:
    lines = [line.split(",") for line in (root / "labels.csv").read_text().split()]
    place = lines[0].index(name)
    rows = [f"{line[place]},{line[2]}" + (f",{index % 5}" if more else "") for index, line in enumerate(lines[1:])]
    out.write_text("\n".join([f"{name},label{more}", *rows]) + "\n")
    return out


@pytest.mark.parametrize("name", ["sop_instance_uid", "path"])
def test_a_dicom_tree_is_taken_as_it_is(dicom: Path, tmp_path: Path, name: str) -> None:
    found = open_collection(str(dicom), tmp_path, labels=column(dicom, tmp_path / "labels.csv", name), least=2)
    assert found.labels == ("clear", "opacity")
    assert found.bits == 12
    assert sum("2" in words or "several frames" in words for words in found.left_out) >= 1
    everything = [case for split in Split for case in found.cases(split)]
    assert {case.group for case in everything} <= {f"patient-{i}" for i in range(30)}
    groups = {split: {case.group for case in found.cases(split)} for split in Split}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
    case = found.cases(Split.TEST)[0]
    made: Dataset = case.make(12)
    assert made.SOPInstanceUID == case.key
    assert case.image(12).pixels.shape == (1, 40, 40)


def test_groups_of_the_table_come_before_patients(dicom: Path, tmp_path: Path) -> None:
    labels = column(dicom, tmp_path / "labels.csv", "path", more=",group")
    with pytest.raises(DicomguardError, match="at least 2 are needed"):
        open_collection(str(dicom), tmp_path, labels=labels, least=2)  # five groups are too few for four splits


def test_a_table_of_dicom_files_that_would_be_half_believed_is_refused(dicom: Path, tmp_path: Path) -> None:
    labels = column(dicom, tmp_path / "labels.csv", "path")
    lines = labels.read_text().split()
    for wrong, words in (
        ([*lines, lines[1].rpartition(",")[0] + ",other"], "twice"),
        ([lines[0] + ",split", *(line + ",train" for line in lines[1:])], "column split"),
        ([*lines, *(f"absent{n}.dcm,normal" for n in range(5))], r"5 of the .* files that .* are not there.*absent0"),
    ):
        labels.write_text("\n".join(wrong) + "\n")
        with pytest.raises(DicomguardError, match=words):
            open_collection(str(dicom), tmp_path, labels=labels, least=2)


def test_an_odd_dicom_file_hides_no_other(dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = column(dicom, tmp_path / "labels.csv", "path")
    before = open_collection(str(dicom), tmp_path, labels=labels, least=2)
    odd = dicom / "odd.dcm"

    def read(path: Path, **options: Any) -> Dataset:
        if Path(path) == odd:
            raise NotImplementedError("an unknown VR")
        return dcmread(path, **options)

    dcmread = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", read)
    odd.write_bytes(b"x")
    try:
        assert keys(open_collection(str(dicom), tmp_path, labels=labels, least=2)) == keys(before)
    finally:
        odd.unlink()


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
def test_pictures_of_more_than_eight_bits_are_no_pictures_of_eight(tmp_path: Path, kind: str) -> None:
    class_folders(tmp_path / "set", TWO)
    samples = blobs(1).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]) * 16
    for path in sorted((tmp_path / "set" / "ill").iterdir()):
        path.unlink()
        PIL.Image.fromarray(samples).save(path.with_suffix(".tif"))
    with pytest.raises(DicomguardError, match="more than 8 bits"):
        open_collection("set", tmp_path)


def test_dicom_files_are_not_scaled_and_need_labels(dicom: Path, tmp_path: Path) -> None:
    with pytest.raises(DicomguardError, match="taken as they are"):
        open_collection(str(dicom), tmp_path, side=64)
    (tmp_path / "labels.csv").write_text("uid,label\n1,a\n")
    with pytest.raises(DicomguardError, match="neither sop_instance_uid nor path"):
        open_collection(str(dicom), tmp_path, labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("path,label\nelsewhere.dcm,a\n")
    with pytest.raises(DicomguardError, match="none of the 1 files"):
        open_collection(str(dicom), tmp_path, labels=tmp_path / "labels.csv")


def test_what_is_nowhere_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DicomguardError, match="no data set that is known") as raised:
        open_collection("nothing", tmp_path)
    assert all(name in raised.value.advice for name in names())
    with pytest.raises(DicomguardError, match="not there"):
        open_collection("chest_xray", tmp_path / "nowhere")
    with pytest.raises(DicomguardError, match="cannot be read as a table"):
        open_collection("chest_xray", tmp_path)
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a" / "0.png", blobs(0))
    with pytest.raises(DicomguardError, match="1 folders"):
        open_collection("one", tmp_path)
    with pytest.raises(DicomguardError, match="not made XX"):
        open_collection("one", tmp_path, modality="XX")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DicomguardError, match="neither a folder"):
        open_collection("file.txt", tmp_path)
