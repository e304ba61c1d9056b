"""The bundles that are shipped: they load, are enrolled for themselves, and stay within their size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicomguard.enrol.selftest import forge
from dicomguard.lab.datasets import Split
from dicomguard.lab.recipes import RECIPES
from dicomguard.scoring import bundle, noise
from dicomguard.scoring.enrolment import Tolerance
from dicomguard.scoring.scorer import Scorer

BUNDLES = Path(__file__).parents[2] / "config" / "bundles"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_shipped_bundle_loads_enrolled_with_a_card(name: str) -> None:
    scorer = Scorer.load(BUNDLES / name)
    recipe = RECIPES[name]
    assert scorer.name == name
    assert scorer.labels == recipe.labels
    assert scorer.noise.levels == (0.01, 0.02, 0.03, 0.04, 0.05)
    assert scorer.noise.repeats == 8
    assert sum(p.stat().st_size for p in (BUNDLES / name).rglob("*") if p.is_file()) <= 10_000_000
    assert f"# {name}" in (BUNDLES / name / bundle.CARD).read_text()
    training = json.loads((BUNDLES / name / "docs" / "training.json").read_text())
    assert training["auroc"] >= 0.9
    assert scorer.enrolment is not None
    assert scorer.enrolment.armed == "enforce"
    assert scorer.enrolment.alpha == recipe.alpha
    assert scorer.thresholds is not None
    assert scorer.thresholds.alpha == recipe.alpha
    assert scorer.guard is not None
    assert scorer.guard.settings.eps == recipe.eps


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_score_of_a_shipped_bundle_is_exact_without_a_gpu(name: str) -> None:
    scorer = Scorer.load(BUNDLES / name)
    assert scorer.has_one_path
    assert scorer.enrolment is not None
    assert scorer.enrolment.tolerance == Tolerance(statistic=0.0, path=scorer.path)


@pytest.mark.data
@pytest.mark.slow
def test_real_radiographs_are_read_classified_and_scored(data_dir: Path) -> None:
    scorer = Scorer.load(BUNDLES / "chest-xray")
    cases = RECIPES["chest-xray"].cases(data_dir, Split.TEST)[:6]
    batch = scorer.prepare([case.image(12) for case in cases])
    assert batch.pixels.shape == (6, 1, 224, 224)
    seeds = [noise.seeds(b"key", case.key, 0, "", scorer.fingerprint) for case in cases]
    scores = scorer.score(batch, seeds)
    assert all(score.is_finite for score in scores)
    assert [score.predicted for score in scores] == [scorer.labels[case.truth] for case in cases]


@pytest.mark.slow
def test_the_phantom_bundle_passes_clean_phantoms_and_catches_attacked_ones(tmp_path: Path) -> None:
    scorer = Scorer.load(BUNDLES / "phantom")
    thresholds = scorer.thresholds
    assert thresholds is not None
    cases = RECIPES["phantom"].cases(tmp_path, Split.TEST)[-4:]
    images = [case.image(12) for case in cases]
    batch = scorer.prepare(images)
    seeds = [noise.seeds(b"key", case.key, 0, "", scorer.fingerprint) for case in cases]
    clean = scorer.score(batch, seeds)
    assert [score.predicted for score in clean] == [scorer.labels[case.truth] for case in cases]
    assert all(score.statistic <= thresholds.statistic for score in clean)
    assert all(score.margin >= thresholds.margin_floor for score in clean)
    attacked = [image for image in forge(scorer, images, "early-stopped BIM", seeds=range(4)) if image is not None]
    assert len(attacked) >= 2
    found = scorer.score(scorer.prepare(attacked), seeds[: len(attacked)])
    assert all(score.statistic > thresholds.statistic for score in found)
    # Other keys draw other noise; the verdicts stay.
    for key in (b"one", b"two", b"three"):
        (score,) = scorer.score(scorer.prepare(images[:1]), [noise.seeds(key, "1.2.3", 0, "", scorer.fingerprint)])
        assert score.statistic <= thresholds.statistic
