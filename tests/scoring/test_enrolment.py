"""What an enrolment may be on disk: complete, whole, and made for this very bundle; or a named error."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dicomguard.errors import BundleError
from dicomguard.scoring import bundle, enrolment
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import GUARD, enrol_small, write_small


@pytest.fixture
def copy(enrolled_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(enrolled_bundle, tmp_path / "copy"))


def statement(folder: Path) -> Path:
    return folder / enrolment.FOLDER / enrolment.STATEMENT


def tensors(folder: Path) -> Path:
    return folder / enrolment.FOLDER / enrolment.TENSORS


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(statement(folder).read_text())
    change(content)
    statement(folder).write_text(json.dumps(content))


def replace_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], *, pin: bool) -> None:
    save_file(change(load_file(tensors(folder))), tensors(folder))
    if pin:
        digest = hashlib.sha256(tensors(folder).read_bytes()).hexdigest()
        edit(folder, lambda c: c.update(tensors_sha256=digest))


def test_a_bundle_comes_with_its_enrolment(enrolled_bundle: Path) -> None:
    scorer = Scorer.load(enrolled_bundle)
    assert scorer.enrolment is not None
    assert scorer.enrolment.fingerprint == scorer.fingerprint
    assert scorer.enrolment_sha256 == hashlib.sha256(statement(enrolled_bundle).read_bytes()).hexdigest()
    assert scorer.thresholds is not None
    assert scorer.thresholds.alpha == 0.1
    assert scorer.thresholds.statistic == scorer.enrolment.calibration.threshold
    assert scorer.thresholds.margin_floor == scorer.enrolment.calibration.margin_floor
    assert scorer.thresholds.paper_theta == (0.1, 0.1, 0.1)
    assert scorer.guard is not None
    assert scorer.guard.settings == GUARD
    assert scorer.feature_model is not None


def test_a_bundle_without_one_has_no_thresholds(tiny_bundle: Path) -> None:
    scorer = Scorer.load(tiny_bundle)
    assert (scorer.enrolment, scorer.enrolment_sha256, scorer.thresholds, scorer.guard) == (None, None, None, None)


def test_an_enrolment_may_lie_elsewhere(enrolled_bundle: Path, copy: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.move(copy / enrolment.FOLDER, tmp_path / "elsewhere"))
    assert Scorer.load(copy).enrolment is None
    assert Scorer.load(copy, elsewhere).enrolment == Scorer.load(enrolled_bundle).enrolment
    with pytest.raises(BundleError, match="holds no enrolment") as raised:
        Scorer.load(copy, tmp_path / "nowhere")
    assert "--out" in raised.value.advice


def test_without_a_guard_there_are_no_votes(copy: Path) -> None:
    enrol_small(copy, guard=None)
    scorer = Scorer.load(copy)
    assert scorer.guard is None
    assert scorer.enrolment is not None
    assert scorer.enrolment.calibration.guard_share is None


def test_one_that_was_made_for_another_bundle_is_refused(enrolled_bundle: Path, tmp_path: Path) -> None:
    other = write_small(tmp_path / "other", seed=1, size=16, repeats=2)
    shutil.copytree(enrolled_bundle / enrolment.FOLDER, other / enrolment.FOLDER)
    with pytest.raises(BundleError, match="belongs to the fingerprint") as raised:
        Scorer.load(other)
    assert "Enrol this bundle again" in raised.value.advice


@pytest.mark.parametrize(
    "change",
    [lambda c: c["noise"].update(repeats=3), lambda c: c["input"].update(mean=[0.4] * 3)],
    ids=["repeats", "mean"],
)
def test_every_setting_that_moves_a_score_ends_the_enrolment(
    copy: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = copy / bundle.INFERENCE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="belongs to the fingerprint"):
        Scorer.load(copy)


def test_writing_a_bundle_removes_what_was_enrolled_for_the_one_before(copy: Path) -> None:
    write_small(copy, seed=2, size=16, repeats=2)
    assert not (copy / enrolment.FOLDER).exists()


# Tensors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-100], lambda b: b"", lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda b: b + b"\0"],
    ids=["truncated", "empty", "one bit", "longer"],
)
def test_tensors_that_were_damaged_are_refused(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    tensors(copy).write_bytes(damage(tensors(copy).read_bytes()))
    with pytest.raises(BundleError, match=r"enrolment\.safetensors has SHA-256"):
        Scorer.load(copy)


def test_tensors_that_were_quantised_again_are_refused(copy: Path) -> None:
    def again(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.half() for name, t in found.items()}

    replace_tensors(copy, again, pin=False)
    with pytest.raises(BundleError, match="truncated or changed"):
        Scorer.load(copy)


def test_missing_tensors_are_named(copy: Path) -> None:
    tensors(copy).unlink()
    with pytest.raises(BundleError, match=r"enrolment\.safetensors cannot be read"):
        Scorer.load(copy)


def test_what_is_no_safetensors_is_refused_even_with_the_right_checksum(copy: Path) -> None:
    tensors(copy).write_bytes(b"\x80\x04pickle" * 40)
    edit(copy, lambda c: c.update(tensors_sha256=hashlib.sha256(tensors(copy).read_bytes()).hexdigest()))
    with pytest.raises(BundleError, match="no safetensors"):
        Scorer.load(copy)


def without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda found: {name: t for name, t in found.items() if not name.startswith(prefix)}


def nan(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda found: {**found, name: torch.full_like(found[name], torch.nan)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("guard.head"), "guard's weights do not fit"),
        (without("guard."), "guard's weights do not fit"),
        (nan("guard.head.bias"), "NaN or infinity"),
        (without("features.basis"), "feature model's tensors do not fit"),
        (without("features."), "calibrated for a feature model that it does not hold"),
    ],
    ids=["part of the guard", "the guard", "NaN", "part of the feature model", "the feature model"],
)
def test_tensors_that_lack_something_are_refused_even_when_pinned(
    copy: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    replace_tensors(copy, change, pin=True)
    with pytest.raises(BundleError, match=words):
        Scorer.load(copy)


# The statement -------------------------------------------------------------------------------------------------------

EDITS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("unknown key", lambda c: c.update(thresholds=3), "thresholds"),
    ("missing key", lambda c: c.pop("armed"), "armed"),
    ("format", lambda c: c.update(format=2), "format"),
    ("no hash", lambda c: c.update(fingerprint="f" * 63), "fingerprint"),
    ("alpha", lambda c: c.update(alpha=1.0), "alpha"),
    ("armed", lambda c: c.update(armed="always"), "armed"),
    ("NaN threshold", lambda c: c["calibration"].update(threshold=float("nan")), "threshold"),
    ("infinite threshold", lambda c: c["calibration"].update(threshold=float("inf")), "threshold"),
    ("no stages", lambda c: c["calibration"].update(stages=[]), "stages"),
    ("exits", lambda c: c["calibration"].update(exits=[]), "does not fit the bundle's noise levels"),
    ("theta", lambda c: c["paper"].update(theta=[0.1]), "does not fit the bundle's noise levels"),
    ("level", lambda c: c["calibration"]["stages"][1]["draws"].append([3, 0]), "does not fit its labels or noise"),
    ("scale", lambda c: c["calibration"]["stages"][0]["log_odds_scale"].append([[[1.0]]]), "does not fit its labels"),
    ("scale of 0", lambda c: c["calibration"]["stages"][0]["probability_scale"][0].__setitem__(0, 0), "scale"),
    ("four looks", lambda c: c["guard"].update(looks=[1, 2, 3, 4]), "looks"),
    ("looks that fall", lambda c: c["guard"].update(looks=[32, 16]), "looks must increase"),
    ("no guard", lambda c: c.update(guard=None), "calibrated for a guard that it does not hold"),
    ("width", lambda c: c["guard"].update(width=8), "guard's weights do not fit"),
]


@pytest.mark.parametrize(("change", "words"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
def test_a_statement_that_makes_no_sense_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=words) as raised:
        Scorer.load(copy)
    assert raised.value.advice


@pytest.mark.parametrize("text", ["{", "", "[]", "null"])
def test_a_broken_statement_names_the_file(copy: Path, text: str) -> None:
    statement(copy).write_text(text)
    with pytest.raises(BundleError, match=r"enrolment\.json"):
        Scorer.load(copy)


def test_an_edit_that_makes_sense_gives_the_enrolment_another_name(copy: Path) -> None:
    """Nothing signs a statement; but its hash stands in every decision, so decisions tell that it was another one."""
    before = Scorer.load(copy).enrolment_sha256
    edit(copy, lambda c: c["calibration"].update(threshold=99.0))
    after = Scorer.load(copy)
    assert after.thresholds is not None
    assert after.thresholds.statistic == 99
    assert after.enrolment_sha256 != before


def test_writing_is_whole_or_not_at_all(copy: Path) -> None:
    enrol_small(copy, alpha=0.2)
    assert sorted(p.name for p in (copy / enrolment.FOLDER).iterdir()) == [
        "enrolment.json",
        "enrolment.safetensors",
    ]
    thresholds = Scorer.load(copy).thresholds
    assert thresholds is not None
    assert thresholds.alpha == 0.2
