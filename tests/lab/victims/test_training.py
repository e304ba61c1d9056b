"""From a collection to a bundle that the one scorer loads: learnt, reproducible, resumable, and described."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomguard.errors import DicomguardError
from dicomguard.lab.datasets import Split
from dicomguard.lab.victims import REPORT, Hardening, Options, report_of, train
from dicomguard.lab.victims.figures import auc
from dicomguard.lab.victims.grid import Origin, Stage
from dicomguard.lab.victims.training import _shortened, name_of
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.scorer import Scorer
from tests.lab.victims.toys import collection, victim


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "toy"
    train(victim(), collection(), out, Options(seed=3), command="dicomguard lab train --seed 3")
    return out


def test_the_bundle_is_one_that_the_scorer_loads_and_it_has_learnt(trained: Path) -> None:
    scorer = Scorer.load(trained)
    cases = collection().cases(Split.TEST)
    odds = scorer.answer(scorer.prepare([case.image(8) for case in cases]).pixels).log_odds
    assert odds.shape == (18, 1, 2)
    right = odds[:, 0].argmax(1) == [case.truth for case in cases]
    report = report_of(trained)
    assert report is not None
    assert report["test"]["accuracy"]["hits"] == right.sum() >= 16
    assert scorer.fingerprint == report["fingerprint"]
    assert Bundle(trained).inference.network_def.arguments["num_classes"] == 1


def test_the_report_says_what_made_it(trained: Path) -> None:
    report = report_of(trained)
    assert report is not None
    assert report["command"] == "dicomguard lab train --seed 3"
    assert (report["seed"], report["victim"], report["data_set"]) == (3, "toy", "toy set")
    assert report["reduction"] == "A toy."
    assert {"torch", "monai", "numpy", "dicomguard"} <= report["versions"].keys()
    assert report["counts"]["train"] == {"none": 24, "patch": 24}
    assert len(report["history"]) <= 6
    assert report["chosen_figure"] == max(row["figure"] for row in report["history"])
    for split in ("validation", "test"):
        found = report[split]
        low, high = found["accuracy"]["interval"]
        assert low <= found["accuracy"]["rate"] <= high
        assert found["auc"]["interval"][0] <= found["auc"]["value"] <= found["auc"]["interval"][1]
        assert found["recall"].keys() == {"none", "patch"}
    text = (trained / "docs" / "README.md").read_text()
    for words in ("A toy.", "random weights", "It is made up.", "seed 3", "not for diagnosis", "AUC"):
        assert words in text


def test_it_is_not_trained_again_unless_something_changed(trained: Path, tmp_path: Path) -> None:
    before = (trained / REPORT).stat().st_mtime_ns
    ticks: list[str] = []
    train(victim(), collection(), trained, Options(seed=3), tick=lambda stage, _share: ticks.append(stage))
    assert ticks == []
    assert (trained / REPORT).stat().st_mtime_ns == before
    assert not trained.with_name("toy.work").exists()
    assert not trained.with_name("toy.partial").exists()


def test_nothing_that_stands_there_is_replaced(trained: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter1.txt").write_text("years of work")
    beside = tmp_path / "thesis.old"
    beside.mkdir()
    with pytest.raises(DicomguardError, match="holds something that is no victim"):
        train(victim(), collection(), mine, Options(seed=3))
    assert (mine / "chapter1.txt").read_text() == "years of work"
    assert beside.exists()
    with pytest.raises(DicomguardError, match="of another run: other settings, or other pictures"):
        train(victim(), collection(), trained, Options(seed=4))
    with pytest.raises(DicomguardError, match="of another run: other settings, or other pictures"):
        train(victim(), replace(collection(), content="0" * 64), trained, Options(seed=3))
    report = report_of(trained)
    assert report is not None
    assert report["seed"] == 3


def test_a_bundle_that_was_damaged_is_not_taken_for_trained(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for path in (copy / "models").iterdir():
        path.unlink()
    with pytest.raises(DicomguardError, match="not the bundle any more"):
        train(victim(), collection(), copy, Options(seed=3))


@pytest.mark.parametrize("pattern", ["state-*.pt", "train-*.npy"])
def test_what_was_kept_and_is_damaged_is_named(tmp_path: Path, pattern: str) -> None:
    work = tmp_path / "work"
    train(victim(), collection(), tmp_path / "first", Options(seed=3), work=work)
    (path,) = work.glob(pattern)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DicomguardError, match=rf"{path.name} cannot be read.*Delete it"):
        train(victim(), collection(), tmp_path / "second", Options(seed=3), work=work)
    assert not (tmp_path / "second").exists()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return Bundle(folder).network.state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_decides(tmp_path: Path) -> None:
    short = victim(Stage(1.0, 2, 5e-3))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(ord(name))  # wherever the process stands
        train(short, collection(16, others=8), tmp_path / name, Options(seed=seed))
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


class StopError(Exception):
    pass


@pytest.mark.parametrize("hardening", [None, Hardening(eps=0.02, steps=2)], ids=["plain", "hardened"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, after: int, hardening: Hardening | None
) -> None:
    staged = victim(Stage(0.0, 2, 1e-2), Stage(1.0, 2, 5e-3))
    toys, options = collection(16, others=8), Options(seed=5, hardening=hardening)
    whole = train(staged, toys, tmp_path / "whole", options)
    done = [0]

    def tick(stage: str, share: float) -> None:
        done[0] += stage == "training" and share > 0
        if done[0] == after + 1:
            raise StopError

    with pytest.raises(StopError):
        train(staged, toys, tmp_path / "torn", options, tick=tick)
    assert report_of(tmp_path / "torn") is None
    assert (tmp_path / "torn.work").is_dir()
    ended = train(staged, toys, tmp_path / "torn", options)
    assert same(tmp_path / "whole", tmp_path / "torn")
    assert ended["history"] == whole["history"]
    assert not (tmp_path / "torn.work").exists()


def test_several_classes_and_colours(tmp_path: Path) -> None:
    report = train(victim(), collection(45, classes=3, planes=3), tmp_path / "toy", Options(seed=1))
    assert report["labels"] == ["none", "patch", "low patch"]
    assert report["test"]["accuracy"]["rate"] > 0.7
    scorer = Scorer.load(tmp_path / "toy")
    assert Bundle(tmp_path / "toy").inference.input.planes == 3
    image = collection(classes=3, planes=3).cases(Split.TEST)[0].image(8)
    assert scorer.answer(scorer.prepare([image]).pixels).log_odds.shape == (1, 1, 3)


def test_stages_unfreeze_from_the_end_and_an_early_stop_ends_a_stage(tmp_path: Path) -> None:
    frozen = victim(Stage(0.0, 3, 1e-2))
    train(frozen, collection(16, others=8), tmp_path / "head", Options(seed=2))
    train(victim(Stage(0.0, 1, 1e-9)), collection(16, others=8), tmp_path / "still", Options(seed=2))
    moved, still = weights_of(tmp_path / "head"), weights_of(tmp_path / "still")
    assert {name for name in moved if not torch.equal(moved[name], still[name])} == {"head.weight", "head.bias"}
    patient = victim(Stage(1.0, 30, 1e-9), patience=2)
    report = train(patient, collection(16, others=8), tmp_path / "stopped", Options(seed=2))
    assert len(report["history"]) < 30


def test_adversarial_training_makes_the_network_harder_to_attack(tmp_path: Path) -> None:
    from dicomguard.lab.victims.adversarial import robust_figure
    from dicomguard.scoring.classifier import Classifier

    toys = collection(40)
    eps = Hardening(eps=0.08, steps=3)
    plain = victim(Stage(1.0, 8, 5e-3), patience=8)
    train(plain, toys, tmp_path / "plain", Options(seed=1))
    report = train(plain, toys, tmp_path / "hard", Options(seed=1, hardening=eps))
    assert report["hardening"]["eps"] == 0.08
    assert report["name"] == "toy-toy-set-hardened"
    assert "PGD" in (tmp_path / "hard" / "docs" / "README.md").read_text()
    cases = toys.cases(Split.TEST)
    scorer = Scorer.load(tmp_path / "plain")
    planes = scorer.prepare([case.image(8) for case in cases]).pixels.numpy()
    pictures = np.rint(planes * 65535).astype(np.uint16)
    truth = np.array([case.truth for case in cases])
    figures = [
        robust_figure(
            Classifier(Bundle(tmp_path / name).network, [0.5] * 3, [0.5] * 3).eval(),
            pictures,
            truth,
            2,
            eps,
            torch.device("cpu"),
            seed=9,
        )
        for name in ("plain", "hard")
    ]
    assert figures[1] > figures[0] + 0.1


def test_fewer_epochs_are_shared_out_and_said(tmp_path: Path) -> None:
    plan = victim(Stage(0.0, 4, 1e-3), Stage(0.2, 6, 1e-3), Stage(1.0, 10, 1e-3)).plan
    assert [stage.epochs for stage in _shortened(plan, 10).stages] == [2, 3, 5]
    assert sum(stage.epochs for stage in _shortened(plan, 1).stages) == 1
    assert _shortened(plan, None) is plan
    with pytest.raises(DicomguardError, match="train nothing"):
        _shortened(plan, 0)
    report = train(victim(), collection(16, others=8), tmp_path / "toy", Options(epochs=1))
    assert report["reduction"] == "A toy. At most 1 epochs instead of 6."
    assert "At most 1 epochs" in (tmp_path / "toy" / "docs" / "README.md").read_text()


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(DicomguardError, match=f"device {device} cannot be used"):
            train(victim(), collection(), tmp_path / "toy", Options(device=device))
    assert not (tmp_path / "toy").exists()


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DicomguardError, match="no finite number"):
        train(victim(Stage(1.0, 30, 1e9)), collection(16, others=8), tmp_path / "toy")
    assert report_of(tmp_path / "toy") is None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DicomguardError, match="cannot be written"):
        train(victim(Stage(1.0, 1, 1e-3)), collection(16, others=8), tmp_path / "file" / "toy")


def test_half_a_report_is_none(tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text('{"inputs": ')
    assert report_of(tmp_path) is None
    (tmp_path / REPORT).write_text(json.dumps([1]))
    assert report_of(tmp_path) is None


def test_names_fit_bundles() -> None:
    toys = collection()
    object.__setattr__(toys, "name", "My Set (2)/ä")
    assert name_of(victim(), toys, Options()) == "toy-my-set-2"


def test_the_area_under_the_curve() -> None:
    truth = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    shares = np.stack([1 - scores, scores], 1)
    assert auc(shares, truth, seed=0)["value"] == pytest.approx(0.75)
    assert auc(shares, np.zeros(4, int), seed=0)["value"] is None
    flat = np.full((40, 3), 1 / 3)
    assert auc(flat, np.arange(40) % 3, seed=0)["value"] == pytest.approx(0.5)
    perfect = auc(np.eye(3)[np.arange(40) % 3], np.arange(40) % 3, seed=0)
    assert perfect["interval"] == [1.0, 1.0]


def test_imagenet_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    absent = victim(
        Stage(1.0, 1, 1e-3), target="torchvision.models.squeezenet1_1", origin=Origin.TORCHVISION, dropout=0.0
    )
    report = train(absent, collection(16, others=8), tmp_path / "toy", Options(download=False))
    assert "ImageNet weights could not be had (downloads were not wanted): trained from scratch" in report["reduction"]
    assert "could not be had" in (tmp_path / "toy" / "docs" / "README.md").read_text()


def test_a_network_that_learnt_in_few_steps_is_judged_by_its_own_statistics(tmp_path: Path) -> None:
    report = train(victim(Stage(1.0, 2, 5e-3)), collection(), tmp_path / "toy", Options(seed=3))
    assert report["chosen_figure"] > 0.9  # a running average of twelve steps would give .5
