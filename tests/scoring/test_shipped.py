"""The bundles that are shipped: they load, are calibrated for themselves, and stay within their size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dicomguard.lab.adversaries import Adversaries
from dicomguard.lab.benchmark import Bench
from dicomguard.lab.datasets import Split
from dicomguard.lab.recipes import RECIPES
from dicomguard.scoring import bundle, noise
from dicomguard.scoring.scorer import Scorer

BUNDLES = Path(__file__).parents[2] / "config" / "bundles"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_shipped_bundle_loads_calibrated_with_a_card(name: str) -> None:
    scorer = Scorer.load(BUNDLES / name)
    recipe = RECIPES[name]
    assert scorer.name == name
    assert scorer.labels == recipe.labels
    assert scorer.thresholds is not None
    assert scorer.thresholds.alpha == recipe.alpha
    assert scorer.noise.levels == (0.01, 0.02, 0.03, 0.04, 0.05)
    assert scorer.noise.repeats == 8
    assert sum(p.stat().st_size for p in (BUNDLES / name).rglob("*") if p.is_file()) <= 10_000_000
    assert f"# {name}" in (BUNDLES / name / bundle.CARD).read_text()
    training = json.loads((BUNDLES / name / "docs" / "training.json").read_text())
    assert training["auroc"] >= 0.9


@pytest.mark.data
@pytest.mark.slow
def test_real_radiographs_are_read_classified_and_scored(data_dir: Path) -> None:
    scorer = Scorer.load(BUNDLES / "chest-xray")
    cases = RECIPES["chest-xray"].cases(data_dir, Split.TEST)[:6]
    batch = scorer.prepare([case.image(12) for case in cases])
    assert batch.shape == (6, 1, 224, 224)
    seeds = [noise.seed(b"key", case.key, 0, "", scorer.fingerprint, "noise-check") for case in cases[:2]]
    scores = scorer.score(batch[:2], seeds)
    assert all(score.is_finite for score in scores)
    with torch.inference_mode():
        right = (scorer.logits(batch) >= 0).int().tolist() == [case.truth for case in cases]
    assert right


@pytest.mark.slow
def test_the_phantom_bundle_passes_clean_phantoms_and_catches_attacked_ones(tmp_path: Path) -> None:
    scorer = Scorer.load(BUNDLES / "phantom")
    thresholds = scorer.thresholds
    assert thresholds is not None
    cases = RECIPES["phantom"].cases(tmp_path, Split.TEST)[-4:]
    bench = Bench(scorer, 12, tmp_path, lambda _: None)
    adversaries = Adversaries(scorer, 12, tmp_path)
    bench.measure_clean(cases)
    bench.measure_attacks(cases, adversaries, 100)
    assert scorer.calibration is not None
    report = bench.report(cases, scorer.calibration)
    assert report["accuracy"]["rate"] == 1.0
    assert report["clean_flagged"]["hits"] == 0
    assert report["attacked_flagged"]["count"] >= 2
    assert report["attacked_flagged"]["rate"] == 1.0
    # Other keys draw other noise; the verdicts stay.
    batch = scorer.prepare([cases[0].image(12)])
    for key in (b"one", b"two", b"three"):
        (score,) = scorer.score(batch, [noise.seed(key, "1.2.3", 0, "", scorer.fingerprint, "noise-check")])
        assert score.statistic <= thresholds.statistic
