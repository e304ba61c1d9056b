from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.errors import DicomguardError
from dicomguard.lab import card
from dicomguard.lab.adversaries import Adversaries, read
from dicomguard.lab.benchmark import Bench, _shard
from dicomguard.lab.recipes import RECIPES, Case
from dicomguard.scoring import bundle, calibration
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import write_small


def case(scorer: Scorer, seed: int) -> Case:
    """A phantom whose truth is what the classifier says, so that the attack has something to flip."""

    def make(bits: int) -> Dataset:
        assert bits == 12
        return phantom.make(seed, opacity=bool(seed % 2), rows=64, columns=64)

    with torch.inference_mode():
        answer = scorer.logits(scorer.prepare([read(make(12))[0]])) >= 0
    return Case(f"phantom-{seed}", int(answer[0]), str(seed), make)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = write_small(tmp_path_factory.mktemp("bench"))
    scorer = Scorer.load(folder)
    pictures = [read(phantom.make(seed, opacity=False, rows=64, columns=64))[0] for seed in range(1000, 1090)]
    curves = scorer.curves(scorer.prepare(pictures), [bytes([i]) * 32 for i in range(90)])
    fitted = calibration.fit(curves, [str(i) for i in range(90)], fingerprint=scorer.fingerprint, source="phantoms")
    bundle.write_calibration(folder, fitted)
    return Scorer.load(folder)


@pytest.mark.slow
def test_files_are_attacked_forged_scored_and_counted(scorer: Scorer, tmp_path: Path) -> None:
    cases = [case(scorer, seed) for seed in range(12)]
    ticks: list[str] = []
    bench = Bench(scorer, 12, tmp_path, ticks.append)
    adversaries = Adversaries(scorer, 12, tmp_path)
    bench.measure_clean(cases)
    bench.measure_attacks(cases, adversaries, 100)
    calibrated = scorer.calibration
    assert calibrated is not None
    report = bench.report(cases, calibrated)
    assert report["accuracy"]["rate"] == 1.0
    assert report["clean_flagged"]["count"] == 12
    assert report["attacked"] == 12
    survivors = ticks.count("attacked files that flip")
    assert survivors >= 3
    assert report["attacked_flagged"]["count"] == survivors
    assert report["survived_rounding"]["hits"] == survivors
    assert report["undetected_success"]["count"] == 12
    assert sum(part["count"] for part in report["by_strength"].values()) == survivors
    # What was measured is not measured again.
    again = Bench(scorer, 12, tmp_path, ticks.append)
    before = len(ticks)
    again.measure_clean(cases)
    again.measure_attacks(cases, Adversaries(scorer, 12, tmp_path), 100)
    assert len(ticks) == before
    assert again.report(cases, calibrated) == report
    text = card.text(RECIPES["phantom"], tmp_path, calibrated, [report])
    assert f"({report['attacked_flagged']['hits']}/{survivors}" in text


@pytest.mark.slow
def test_a_misclassified_case_is_not_attacked(scorer: Scorer, tmp_path: Path) -> None:
    right = case(scorer, 1)
    wrong = Case("wrong", 1 - right.truth, "1", right.make)
    bench = Bench(scorer, 12, tmp_path, lambda _: None)
    bench.measure_clean([wrong])
    bench.measure_attacks([wrong], Adversaries(scorer, 12, tmp_path), 100)
    assert scorer.calibration is not None
    report = bench.report([wrong], scorer.calibration)
    assert report["attacked"] == 0
    assert report["attacked_flagged"]["rate"] is None
    assert report["clean_flagged_misclassified"]["count"] == 1


@pytest.mark.slow
def test_the_picture_kept_is_the_one_that_flipped(scorer: Scorer, tmp_path: Path) -> None:
    adversaries = Adversaries(scorer, 12, tmp_path)
    cases = [case(scorer, seed) for seed in range(6)]
    adversaries.attack(cases)
    flipped = [each for each in cases if adversaries.outcomes[each.key]["flipped"]]
    assert flipped
    for each in flipped:
        picture = adversaries[each.key]
        clean = read(each.make(12))[0].pixels
        assert np.abs(picture - clean).max() <= adversaries.outcomes[each.key]["strength"] + 1e-6
        with torch.inference_mode():
            answer = scorer.logits(scorer.preprocess(torch.from_numpy(picture)).unsqueeze(0)) >= 0
        assert bool(answer[0]) != bool(each.truth)


def test_shards() -> None:
    assert _shard("") == (0, 1)
    assert _shard("2/3") == (2, 3)
    for wrong in ("3/3", "x", "1"):
        with pytest.raises(DicomguardError, match="I/N"):
            _shard(wrong)
