"""`dicomguard lab train` and `lab datasets`, as a person types them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicomguard.cli.app import app
from dicomguard.errors import ConfigError, DicomguardError
from dicomguard.lab.victims import VICTIMS
from tests.lab.data.toys import class_folders
from tests.lab.victims.toys import victim

RUN = CliRunner()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomguard.lab.victims.grid.VICTIMS", {"toy": dataclasses.replace(victim(), name="toy")})


def test_train_writes_a_bundle_and_shows_its_figures(tmp_path: Path, toy: None) -> None:
    class_folders(tmp_path / "set", {"ill": 70, "well": 70})
    given = ["lab", "train", "--victim", "toy", "--data-set", "set", "--data", str(tmp_path), "--out"]
    more = ["--epochs", "1", "--threads", "1", "--cache", str(tmp_path / "cache")]
    shown = RUN.invoke(app, [*given, str(tmp_path / "out"), *more])
    assert shown.exit_code == 0, shown.output
    assert "accuracy" in shown.output
    assert "At most 1 epochs instead of 6." in shown.output
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert report["threads"] == 1
    told = RUN.invoke(app, [*given, str(tmp_path / "out"), *more, "--json"])
    assert json.loads(told.output)["inputs"] == report["inputs"]


def test_an_unknown_victim_is_named_with_those_there_are(tmp_path: Path) -> None:
    given = [
        "lab",
        "train",
        "--victim",
        "x",
        "--data-set",
        "set",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    told = RUN.invoke(app, given)
    assert isinstance(told.exception, DicomguardError)
    assert all(name in told.exception.advice for name in VICTIMS)


def test_what_cannot_be_is_said_before_the_pictures_are_read(tmp_path: Path, toy: None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    (tmp_path / "weights.pt").write_text("none")
    given = ["lab", "train", "--victim", "toy", "--data-set", "not there", "--data", str(tmp_path), "--out"]
    for words, said in (
        ([str(tmp_path / "mine")], "no victim"),
        ([str(tmp_path / "out"), "--device", "abacus"], "device abacus"),
        ([str(tmp_path / "out"), "--weights", str(tmp_path / "weights.pt")], "weights.pt"),
        ([str(tmp_path / "out")], "not there"),
    ):
        told = RUN.invoke(app, [*given, *words])
        assert isinstance(told.exception, DicomguardError)
        assert said in str(told.exception)


def test_datasets_lists_and_counts(tmp_path: Path) -> None:
    listed = RUN.invoke(app, ["lab", "datasets", "--data", str(tmp_path), "--json"])
    rows = [json.loads(line) for line in listed.output.splitlines()]
    assert {row["name"] for row in rows} >= {"chest_xray", "rfmid", "lidc_idri"}
    assert not any(row["here"] for row in rows)
    class_folders(tmp_path / "set", {"ill": 70, "well": 70})
    counted = RUN.invoke(app, ["lab", "datasets", "set", "--data", str(tmp_path), "--json"])
    (row,) = [json.loads(line) for line in counted.output.splitlines()]
    assert sum(sum(by.values()) for by in row["counts"].values()) == 140
    shown = RUN.invoke(app, ["lab", "datasets", "set", "--data", str(tmp_path)])
    assert "calibration" in shown.output
    absent = RUN.invoke(app, ["lab", "datasets", "rfmid", "--data", str(tmp_path)])
    assert isinstance(absent.exception, DicomguardError)
    assert "https://" in absent.exception.advice


@pytest.mark.parametrize("names", [[], ["chest_xray"]])
def test_datasets_says_that_there_is_no_such_folder(tmp_path: Path, names: list[str]) -> None:
    told = RUN.invoke(app, ["lab", "datasets", *names, "--data", str(tmp_path / "nowhere")])
    assert isinstance(told.exception, ConfigError)
    assert "nowhere is not there" in str(told.exception)
