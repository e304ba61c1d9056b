"""The papers' layouts, made up in small; and where to get what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from dicomguard.errors import DicomguardError
from dicomguard.lab.data import open_collection
from dicomguard.lab.data.papers import PAPERS, kermany_patient
from dicomguard.lab.datasets import Split
from dicomguard.lab.instances import computed_radiograph
from tests.lab.data.toys import blobs, coloured, save


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_absent_comes_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DicomguardError, match=r"is not in") as raised:
        open_collection(name, tmp_path)
    assert "https://" in raised.value.advice
    assert PAPERS[name].layout in raised.value.advice


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("person1_bacteria_2", "person1"),
        ("person1945_virus_4850", "person1945"),
        ("IM-0115-0001", "IM-0115"),
        ("NORMAL2-IM-0383-0001-0002", "NORMAL2-IM-0383"),
        ("something", "something"),
    ],
)
def test_the_patient_of_a_radiograph_is_in_its_name(stem: str, patient: str) -> None:
    assert kermany_patient(stem) == patient


def test_kermany(tmp_path: Path) -> None:
    root = tmp_path / "chest_xray"
    for index in range(70):
        save(root / "train" / "NORMAL" / f"IM-{index:04}-0001.jpeg", blobs(index))
        save(root / "train" / "PNEUMONIA" / f"person{index}_virus_{index}.jpeg", blobs(100 + index))
    for index in range(20):
        save(root / "test" / "NORMAL" / f"NORMAL2-IM-{index:04}-0001.jpeg", blobs(200 + index))
        save(root / "test" / "PNEUMONIA" / f"person{60 + index}_bacteria_1.jpeg", blobs(300 + index))
    save(root / "val" / "NORMAL" / "NORMAL2-IM-1427-0001.jpeg", blobs(400))
    found = open_collection("kermany", tmp_path, least=3)
    assert {case.key.split("/")[0] for case in found.cases(Split.TEST)} == {"test"}
    assert len(found.cases(Split.TEST)) == 40
    assert any("10 pictures of the training side" in words for words in found.left_out)  # person60 to person69
    tested = {case.group for case in found.cases(Split.TEST)}
    for split in (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION):
        assert tested.isdisjoint(case.group for case in found.cases(split))
    assert found.cases(Split.TEST)[0].make(12).Modality == "CR"


def test_kaggle_brain_mri(tmp_path: Path) -> None:
    seed = 0
    for part, count in (("Training", 60), ("Testing", 12)):
        for name in ("glioma", "notumor", "pituitary"):
            for index in range(count):
                save(tmp_path / part / name / f"{part[:2]}-{name}_{index:04}.jpg", blobs(seed))
                seed += 1
    save(tmp_path / "Training" / "glioma" / "copy.jpg", blobs(0))
    found = open_collection("kaggle_brain_mri", tmp_path, least=3)
    assert found.labels == ("no tumour", "tumour")
    assert {case.key.split("/")[0] for case in found.cases(Split.TEST)} == {"Testing"}
    assert found.counts()["test"] == {"no tumour": 12, "tumour": 24}
    assert sum(sum(by.values()) for by in found.counts().values()) <= 216


def test_rfmid(tmp_path: Path) -> None:
    seed = 0
    for folder, table, count in (
        ("Training_Set/Training", "Training_Set/RFMiD_Training_Labels.csv", 80),
        ("Evaluation_Set/Validation", "Evaluation_Set/RFMiD_Validation_Labels.csv", 20),
        ("Test_Set/Test", "Test_Set/RFMiD_Testing_Labels.csv", 20),
    ):
        rows = ["ID,Disease_Risk,DR,ARMD"]
        for index in range(1, count + 1):
            save(tmp_path / folder / f"{index}.png", coloured(seed))
            rows.append(f"{index},{index % 2},0,{index % 2}")
            seed += 1
        (tmp_path / table).write_text("\n".join(rows) + "\n")
    found = open_collection("rfmid", tmp_path, least=2)
    assert found.planes == 3
    assert len(found.cases(Split.TEST)) == 20
    assert {Path(case.key).parent.as_posix() for case in found.cases(Split.TEST)} == {"Test_Set/Test"}
    case = found.cases(Split.TEST)[0]
    assert case.truth == int(Path(case.key).stem) % 2
    assert case.image(8).pixels.shape == (3, 40, 40)


def test_cbis_ddsm(tmp_path: Path) -> None:
    rows = {"train": ["patient_id,pathology,image file path"], "test": ["patient_id,pathology,image file path"]}
    for index in range(100):
        part = "test" if index >= 84 else "train"
        made = computed_radiograph(blobs(index), bits=12, name=str(index))
        name = f"Mass-{part.title()}_P_{index // 2:05}_LEFT_{'CC' if index % 2 else 'MLO'}"
        made.PatientID = name
        made.SeriesInstanceUID = generate_uid()
        path = tmp_path / name / "1-1.dcm"
        path.parent.mkdir()
        made.save_as(path, enforce_file_format=True)
        where = f"{name}/{made.StudyInstanceUID}/{made.SeriesInstanceUID}/000000.dcm"
        pathology = "MALIGNANT" if index % 4 < 2 else "BENIGN_WITHOUT_CALLBACK"
        patient = f"P_{index // 2:05}"
        # A mammogram with a malignant lesion and a benign one is malignant.
        rows[part] += [f"{patient},BENIGN,{where}"] * (index % 4 < 2) + [f"{patient},{pathology},{where}"]
    for part, lines in rows.items():
        (tmp_path / f"mass_case_description_{part}_set.csv").write_text("\n".join(lines) + "\n")
    found = open_collection("cbis_ddsm", tmp_path, least=2)
    assert found.labels == ("benign", "malignant")
    assert {case.group for case in found.cases(Split.TEST)} == {f"P_{index:05}" for index in range(42, 50)}
    assert found.counts()["test"] == {"benign": 4, "malignant": 4}
    assert all(case.group.startswith("P_") for split in Split for case in found.cases(split))


LIDC = """<?xml version="1.0" encoding="UTF-8"?>
<LidcReadMessage xmlns="http://www.nih.gov"><readingSession>{nodules}</readingSession></LidcReadMessage>"""
NODULE = """<unblindedReadNodule><noduleID>1</noduleID>{rating}
<roi><imageZposition>1.0</imageZposition><imageSOP_UID>{uid}</imageSOP_UID><inclusion>TRUE</inclusion></roi>
</unblindedReadNodule>"""
RATED = "<characteristics><subtlety>5</subtlety><malignancy>{}</malignancy></characteristics>"


def lidc(root: Path, ratings: dict[int, list[int | None]]) -> Path:
    for index, given in ratings.items():
        made = computed_radiograph(blobs(index), bits=12, name=str(index))
        made.PatientID = f"LIDC-IDRI-{index:04}"
        folder = root / f"LIDC-IDRI-{index:04}" / "scan"
        folder.mkdir(parents=True)
        made.save_as(folder / "1-001.dcm", enforce_file_format=True)
        nodules = [
            NODULE.format(uid=made.SOPInstanceUID, rating="" if one is None else RATED.format(one)) for one in given
        ]
        (folder / "069.xml").write_text(LIDC.format(nodules="".join(nodules)))
    return root


def test_lidc_idri_takes_the_median_rating(tmp_path: Path) -> None:
    ratings: dict[int, list[int | None]] = {}
    for index in range(80):
        ratings[index] = [5, 4, 1, 5] if index % 2 else [1, 2, None, 5]
    ratings[80] = [3, 3, 3]
    ratings[81] = [None]
    lidc(tmp_path, ratings)
    found = open_collection("lidc_idri", tmp_path, least=2)
    cases = [case for split in Split for case in found.cases(split)]
    assert len(cases) == 80
    assert {"LIDC-IDRI-0080", "LIDC-IDRI-0081"}.isdisjoint(case.group for case in cases)
    assert all(found.labels[c.truth] == ("malignant" if int(c.group[-4:]) % 2 else "benign") for c in cases)


@pytest.mark.parametrize("text", ["<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "<a><b></a>"], ids=["entity", "torn"])
def test_annotations_that_are_none(text: str, tmp_path: Path) -> None:
    root = lidc(tmp_path, {0: [5]})
    (root / "LIDC-IDRI-0000" / "scan" / "bad.xml").write_text(text)
    with pytest.raises(DicomguardError, match=r"bad\.xml"):
        open_collection("lidc_idri", tmp_path)
