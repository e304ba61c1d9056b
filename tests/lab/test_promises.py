"""The benchmark of an enrolment, from files to the page, on a small network and small phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dicomguard import phantom
from dicomguard.attacks.suite import SUITE
from dicomguard.errors import DicomguardError
from dicomguard.lab import certificates, command, falsify, promises, promises_page, speed
from dicomguard.lab.datasets import Split
from dicomguard.lab.finetune import Settings
from dicomguard.lab.recipes import Case, Recipe
from dicomguard.lab.stored import read
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import enrol_small, write_small

_FIRST = {Split.TRAIN: 0, Split.VALIDATION: 1000, Split.CALIBRATION: 2000, Split.TEST: 3000}
_COUNT = {Split.TRAIN: 70, Split.VALIDATION: 5, Split.CALIBRATION: 100, Split.TEST: 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    made = write_small(tmp_path_factory.mktemp("promises"), size=16, repeats=2)
    images = [read(phantom.make(9000 + n, opacity=False, rows=64, columns=64))[0] for n in range(60)]
    enrol_small(made, images=images)
    return made


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    scorer = Scorer.load(folder)

    def cases(_data: Path, split: Split) -> list[Case]:
        return [_case(scorer, _FIRST[split] + n) for n in range(_COUNT[split])]

    return Recipe(
        name="small",
        labels=("normal", "opacity"),
        alpha=0.1,
        bits=(12,),
        settings=Settings(),
        cases=cases,
        task="nothing",
        description="A toy.",
        data_source="Phantoms.",
        intended_use="Tests.",
        splits="by seed",
    )


def _case(scorer: Scorer, seed: int) -> Case:
    """A phantom whose truth is what the toy answers, so that every attack has something to change."""
    made = phantom.make(seed, opacity=bool(seed % 2), rows=64, columns=64)
    answer = int(scorer.answer(scorer.prepare([read(made)[0]]).pixels).log_odds.argmax(-1)[0, 0])
    return Case(f"phantom-{seed}", answer, str(seed), lambda _bits: made)


def given(tmp_path: Path, **more: object) -> object:
    facts = {
        "data": tmp_path,
        "command": "scripts/bench something small",
        "cases": None,
        "work": tmp_path / "work",
        "results": tmp_path / "results",
        "flips": 3,
        "bits": None,
        "shard": "",
        "threads": 1,
        "eps": None,
        "sigma": None,
        "epochs": 1,
        "budget": None,
        "bases": 2,
        "attempts": 4,
        "draws": 300,
        "confirm_only": False,
        "survey_only": False,
        "disagreeing": 2,
        "argv": ["small"],
    }
    return type("Given", (), facts | more)()


@pytest.mark.slow
def test_from_files_to_the_page(recipe: Recipe, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "ALPHAS", (0.1,))
    quiet = Console(quiet=True)
    (folder / "docs").mkdir(exist_ok=True)
    promises.run(recipe, folder, given(tmp_path, shard="0/2"), quiet)
    promises.run(recipe, folder, given(tmp_path, shard="1/2"), quiet)
    assert not (tmp_path / "results").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    promises.run(recipe, folder, given(tmp_path, flips=1), quiet)
    # Whatever the shards had looked at is not looked at again.
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == before
    result = json.loads((tmp_path / "results" / "score-small.json").read_text())
    (report,) = result["reports"]
    assert report["accuracy"]["hits"] == 6
    assert {row["rule"] for row in report["rows"]} >= {"as shipped", "ours", "noise check alone", "confidence alone"}
    shipped = report["rows"][0]
    assert shipped["clean"]["count"] == 6
    assert set(shipped["attacks"]) == set(SUITE)
    assert shipped["attacks"]["PGD 0.016"]["count"] >= 2
    assert set(report["cascade_loss"]) == {"0.1"}
    assert "as shipped, alpha 0.1" in (folder / "docs" / "README.md").read_text()

    certificates.run(recipe, folder, given(tmp_path, eps=[0.004]), quiet)
    falsify.run(recipe, folder, given(tmp_path), quiet)
    images = [case.image(12) for case in recipe.cases(tmp_path, Split.TEST)]
    others = [case.image(12) for case in recipe.cases(tmp_path, Split.CALIBRATION)]
    timed = speed.measure(folder, images, others, rounds=1)
    (tmp_path / "results" / "speed-small.json").write_text(json.dumps(timed | {"command": "scripts/bench speed small"}))
    timed["throughput"][0] |= {"card": "a card", "of_bf16_peak": 0.31}
    (tmp_path / "results" / "speed-small-cuda.json").write_text(json.dumps(timed | {"command": "on a card"}))
    page = promises_page.page(tmp_path / "results", ["small", "absent"])
    assert "a card, 31% of its bfloat16 peak" in page
    assert "PGD 0.016" in page
    assert "falsifications: **0**" in page
    assert "eager float32 passes" in page
    assert "rests on" in page  # fewer than 300 files are named
    assert "score: not measured yet (`scripts/bench files absent`)" in page


def test_a_shard_must_be_one() -> None:
    assert command.shard("") == (0, 1)
    assert command.shard("2/3") == (2, 3)
    for wrong in ("3/3", "x/2", "1", "-1/2"):
        with pytest.raises(DicomguardError):
            command.shard(wrong)


def test_a_bundle_that_is_not_enrolled_cannot_promise(recipe: Recipe, tmp_path: Path) -> None:
    bare = write_small(tmp_path / "bare", size=16, repeats=2)
    with pytest.raises(DicomguardError, match="not enrolled"):
        promises.run(recipe, bare, given(tmp_path), Console(quiet=True))
