"""Everything from clean pictures to a written enrolment, with hardly any training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dicomguard.enrol import selftest
from dicomguard.enrol.cleanset import Gathered, Part
from dicomguard.enrol.distil import Distillation
from dicomguard.enrol.enrolling import Wishes, enrol, plan, sigma_for
from dicomguard.enrol.selftest import Forged
from dicomguard.errors import BundleError
from dicomguard.scoring import enrolment
from dicomguard.scoring import scorer as module
from dicomguard.scoring.consistency import NoiseSettings
from dicomguard.scoring.guard import GuardSettings, looks_for
from dicomguard.scoring.scorer import Scorer
from tests.enrol.test_cleanset import clean
from tests.scoring.small import gray_image, scores_of, write_small

QUICK = Wishes(
    alpha=0.1,
    eps=0.0001,
    guard_alpha=1e-3,
    sigma=1.0,
    distillation=Distillation(variants=1, epochs=1, least_steps=1, batch=64),
    share_steps=(30, 500),
    tested=6,
)
COUNTS = {Part.DISTILLED: 60, Part.VALIDATION: 6, Part.REFERENCE: 20, Part.HELD_BACK: 12}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_small(tmp_path_factory.mktemp("enrolling"), size=16, repeats=2)


def gather(scorer: Scorer, counts: dict[Part, int]) -> Gathered:
    gathered = Gathered(scorer, None)
    number = 0
    for part, count in counts.items():
        gathered.add_all([clean(number + n, part=part) for n in range(count)])
        number += count
    return gathered


@pytest.fixture(scope="module")
def enrolled(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, enrolment.Enrolment, dict[str, float]]:
    out = tmp_path_factory.mktemp("out")
    scorer = Scorer.load(bundle)
    shares: dict[str, float] = {}

    def advance(stage: str, share: float) -> None:
        shares[stage] = shares.get(stage, 0) + share

    return out, enrol(scorer, gather(scorer, COUNTS), "pictures made up", QUICK, out, advance), shares


def test_an_enrolment_is_complete_and_loads(bundle: Path, enrolled: tuple[Path, Any, Any]) -> None:
    out, made, _ = enrolled
    scorer = Scorer.load(bundle, out)
    assert scorer.enrolment == made
    assert made.fingerprint == scorer.fingerprint
    assert {part.value: getattr(made.clean_set, part.value) for part in Part} == {p.value: n for p, n in COUNTS.items()}
    assert (made.clean_set.images, made.clean_set.patients) == (98, 98)
    assert made.calibration.images == (20, 12)
    assert [len(stage.draws) for stage in made.calibration.stages] == [2, 6]
    assert made.studies is not None
    assert made.studies.promised() == ((1, 1),)
    assert len(made.paper.theta) == 3
    assert scorer.guard is not None
    assert scorer.feature_model is not None
    _, scores = scores_of(scorer, 6, first=900)
    assert all(score.is_finite and 0 < score.p_value <= 1 for score in scores)


def test_without_a_gpu_every_score_is_exact(enrolled: tuple[Path, Any, Any]) -> None:
    assert enrolled[1].tolerance == enrolment.Tolerance(statistic=0.0, path="float32 on cpu")


def test_two_paths_are_compared_and_belong_together(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module, "fast_dtype", lambda _device: torch.bfloat16)
        scorer = Scorer.load(bundle)
        assert not scorer.has_one_path
        made = enrol(scorer, gather(scorer, COUNTS), "", QUICK, tmp_path, lambda *_: None)
        assert made.tolerance.path == "bfloat16 on cpu"
        assert made.tolerance.statistic > 0
        assert not Scorer.load(bundle, tmp_path).has_one_path
        # An enrolment of one path says nothing about another: the canonical one does all the work.
        patched.setattr(module, "fast_dtype", lambda _device: torch.float16)
        assert Scorer.load(bundle, tmp_path).has_one_path
        assert "every score takes the canonical path" in caplog.text
    caplog.clear()
    assert Scorer.load(bundle, tmp_path).has_one_path
    assert not caplog.text


def test_the_self_test_is_on_record(enrolled: tuple[Path, Any, Any]) -> None:
    _, made, _ = enrolled
    assert [trial.attack for trial in made.self_test] == list(selftest.ATTACKS)
    for trial in made.self_test:
        assert trial.tried == 6
        assert trial.flagged <= trial.flipped <= 6
        assert (trial.auroc is None) == (trial.flipped == 0)
    weak = any(t.auroc is None or t.auroc < enrolment.MINIMUM_AUROC for t in made.self_test)
    assert made.armed == ("shadow" if weak else "enforce")
    assert bool(made.refusal) == weak


def test_certified_shares_are_those_of_growing_sets(enrolled: tuple[Path, Any, Any]) -> None:
    _, made, _ = enrolled
    assert [share.distilled for share in made.certified] == [30, 60]
    for share in made.certified:
        assert share.tested == 12
        assert share.certified <= share.agreed <= 12


def test_progress_adds_up(enrolled: tuple[Path, Any, Any]) -> None:
    assert {name: pytest.approx(1) for name in enrolled[2]} == enrolled[2]


@pytest.mark.parametrize("counts", [{Part.REFERENCE: 19, Part.HELD_BACK: 24}, {Part.REFERENCE: 24, Part.HELD_BACK: 8}])
def test_too_few_images_are_refused_before_anything_is_scored(
    bundle: Path, tmp_path: Path, counts: dict[Part, int]
) -> None:
    scorer = Scorer.load(bundle)
    with pytest.raises(BundleError, match="too few") as raised:
        enrol(scorer, gather(scorer, counts), "", QUICK, tmp_path / "out", lambda *_: None)
    assert f"{counts[Part.REFERENCE]} for reference (20 needed)" in str(raised.value)
    assert f"{counts[Part.HELD_BACK]} held back (9 needed)" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_images_of_one_patient_do_not_make_up_for_patients(bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(bundle)
    gathered = gather(scorer, {Part.REFERENCE: 24})
    gathered.add_all([clean(100 + n, patient="the same", part=Part.HELD_BACK) for n in range(40)])
    with pytest.raises(BundleError, match="1 held back"):
        enrol(scorer, gathered, "", QUICK, tmp_path / "out", lambda *_: None)


def test_too_few_images_to_teach_a_guard_give_none(bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(bundle)
    gathered = gather(scorer, {Part.DISTILLED: 10, Part.REFERENCE: 20, Part.HELD_BACK: 10})
    made = enrol(scorer, gathered, "", QUICK, tmp_path, lambda *_: None)
    assert (made.guard, made.certified) == (None, ())
    assert "guard_share" not in made.calibration.used
    # Nothing was there to be attacked, so nothing says that the check sees attacks.
    assert made.armed == "shadow"
    assert "0 of 0 images" in made.refusal
    assert all(math.isfinite(theta) for theta in made.paper.theta)


def test_a_model_whose_attacks_are_not_seen_is_armed_for_shadow_only(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More clean images stand in for attacked ones: nothing tells them from clean ones."""

    def forge_all(_scorer: Scorer, images: Any, _advance: Any) -> list[Forged]:
        found = tuple(gray_image(8000 + number) for number in range(len(images)))
        return [Forged(name, len(found), found, tuple(range(len(found)))) for name in selftest.ATTACKS]

    monkeypatch.setattr(selftest, "forge_all", forge_all)
    scorer = Scorer.load(bundle)
    gathered = gather(scorer, {Part.VALIDATION: 6, Part.REFERENCE: 20, Part.HELD_BACK: 12})
    made = enrol(scorer, gathered, "", QUICK, tmp_path / "unseen", lambda *_: None)
    assert made.armed == "shadow"
    assert "AUROC" in made.refusal
    monkeypatch.setattr(selftest, "auroc", lambda _clean, _attacked: enrolment.MINIMUM_AUROC)
    made = enrol(scorer, gathered, "", QUICK, tmp_path / "seen", lambda *_: None)
    assert (made.armed, made.refusal) == ("enforce", "")


def test_a_budget_that_no_noise_can_certify_is_refused(bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(bundle)
    wishes = Wishes(alpha=0.1, eps=0.05, sigma=0.3)
    with pytest.raises(BundleError, match=r"cannot certify a budget of 0\.05"):
        enrol(scorer, gather(scorer, COUNTS), "", wishes, tmp_path, lambda *_: None)
    with pytest.raises(BundleError, match="too large"):
        sigma_for(0.1, 1e-6)


def test_the_noise_is_the_smallest_that_a_few_hundred_votes_certify() -> None:
    for eps in (0.001, 0.004, 0.008):
        sigma = sigma_for(eps, 1e-6)
        looks = looks_for(eps, sigma)
        settings = GuardSettings(sigma=sigma, eps=eps, looks=looks, ranges=(("MONOCHROME2", 0.0, 4095.0, 2.0, 0.0),))
        assert settings.needed()[0] <= looks[0] <= 250


def test_the_cascade_looks_at_every_other_level_first() -> None:
    assert plan(NoiseSettings((0.01, 0.02, 0.03, 0.04, 0.05), 8)) == (
        ((0, 0), (2, 0), (4, 0)),
        tuple((level, r) for level in range(5) for r in range(2)),
    )
    assert plan(NoiseSettings((0.03,), 1)) == (((0, 0),), ((0, 0),))
