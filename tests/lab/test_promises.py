"""The benchmark of an enrolment, from files to the page, on a small network and small phantoms."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from dicomguard import phantom
from dicomguard.attacks.suite import SUITE
from dicomguard.errors import DicomguardError
from dicomguard.lab import certificates, command, falsify, promises, promises_page, speed
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.finetune import Settings
from dicomguard.lab.recipes import Recipe
from dicomguard.lab.stored import read
from dicomguard.scoring.scorer import Scorer
from dicomguard.screen.examine import _BATCH_FRAMES
from tests.scoring.small import GUARD, enrol_small, write_small

_FIRST = {Split.TRAIN: 0, Split.VALIDATION: 1000, Split.CALIBRATION: 2000, Split.TEST: 3000}
_COUNT = {Split.TRAIN: 70, Split.VALIDATION: 5, Split.CALIBRATION: 100, Split.TEST: 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    made = write_small(tmp_path_factory.mktemp("promises"), size=16, repeats=2)
    images = [read(phantom.make(9000 + n, opacity=False, rows=64, columns=64))[0] for n in range(60)]
    # A budget of sixteen grey levels, so that there is something to attack; hardly anything is certified.
    enrol_small(made, images=images, guard=GUARD.model_copy(update={"eps": 0.004}))
    return made


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    scorer = Scorer.load(folder)

    @cache
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
        "attempts": 4,
        "bases": 2,
        "disagreeing": 1,
        "draws": 300,
        "budget": None,
        "survey_only": False,
        "confirm_only": False,
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

    assert result["in_turn"] is None  # one depth
    assert shipped["band"] is not None
    with Progress(console=quiet) as progress:
        twice = replace(recipe, bits=(12, 12))
        bench = promises.Bench(twice, Scorer.load(folder), given(tmp_path), progress)
        in_turn = bench.in_turn()
        alone = bench.report(12)["rows"][0]
    assert in_turn is not None
    assert in_turn["clean"] == shipped["clean"]
    assert in_turn["band"] == shipped["band"]
    assert alone["band"] is None

    monkeypatch.setattr(certificates, "Distillation", partial(certificates.Distillation, least_steps=2))
    certificates.run(recipe, folder, given(tmp_path, eps=[0.004]), quiet)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert len(kept) == 2  # lessons, and the guard that was taught by them
    certificates.run(recipe, folder, given(tmp_path, eps=[0.004]), quiet)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    falsify.run(recipe, folder, given(tmp_path), quiet)
    images = [case.image(12) for case in recipe.cases(tmp_path, Split.TEST)]
    others = [case.image(12) for case in recipe.cases(tmp_path, Split.CALIBRATION)]
    timed = speed.measure(folder, images, others, rounds=1)
    (tmp_path / "results" / "speed-small.json").write_text(json.dumps(timed | {"command": "scripts/bench speed small"}))
    # The noise check alone is another rule than the enrolment's without its guard.
    assert 1 < timed["mean_passes"] <= 7
    assert [row["batch"] for row in timed["throughput"]] == [_BATCH_FRAMES]
    timed["throughput"][0] |= {"card": "a card", "of_bf16_peak": 0.31}
    (tmp_path / "results" / "speed-small-cuda.json").write_text(json.dumps(timed | {"command": "on a card"}))
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "small").symlink_to(folder)
    page = promises_page.page(tmp_path / "results", tmp_path / "bundles", ["small", "absent"])
    assert "a card, 31% of its bfloat16 peak" in page
    assert "PGD 0.016" in page
    assert "falsifications: **0**" in page
    assert "41 eager float32 passes |" in page
    assert "is missing (" not in page
    assert "score: not measured yet (`scripts/bench files absent`)" in page
    assert page.count("`scripts/bench something small`") == 3  # as it was run, not as it should have been


def test_other_lessons_have_other_names(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    """One more training file, another setting or another width: nothing that was kept before matches."""
    scorer = Scorer.load(folder)

    def names(of: Recipe, **changed: object) -> set[str]:
        shop = certificates.Workshop(certificates.Source.of(of, tmp_path), scorer, tmp_path, lambda *_: None)
        settings = certificates.GuardSettings(sigma=0.25, eps=0.004, looks=(92,), ranges=GUARD.ranges, **changed)
        return {shop.guard_path(settings, certificates.Distillation()).name}

    def fewer(data: Path, split: Split) -> list[Case]:
        return recipe.cases(data, split)[:-1]

    assert names(recipe) == names(recipe)
    assert names(recipe) != names(replace(recipe, cases=fewer))
    assert names(recipe) != names(recipe, width=16)
    shop = certificates.Workshop(certificates.Source.of(recipe, tmp_path), scorer, tmp_path, lambda *_: None)
    paths = {shop.lessons_path(certificates.Distillation(**more)) for more in ({}, {"zoom": 0.1}, {"epochs": 3})}
    assert len(paths) == 2  # how long a guard is trained says nothing about its lessons


def test_the_line_that_was_run_is_recorded_without_the_machine(tmp_path: Path) -> None:
    parser = command.parser("files", "words")
    given = command.parse(
        parser, ["chest-xray", "--data", str(tmp_path / "d"), f"--work={tmp_path}/w", "--threads", "1"]
    )
    assert given.command == "scripts/bench files chest-xray --data d --work=w --threads 1"


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
