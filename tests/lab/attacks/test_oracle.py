"""The lab's attacks against the Adversarial Robustness Toolbox, which never sees one logit."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch

from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks import oracle
from dicomguard.lab.attacks.oracle import ATTACKS, FIELDS, Duel, Field, TwoLogits, compare, trained
from tests.lab.attacks.toys import blobs, logit

if importlib.util.find_spec("art") is None:
    pytest.skip("needs the extra `eval`: the Adversarial Robustness Toolbox", allow_module_level=True)

# What the Toolbox and its own imports warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def duel() -> Duel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Duel(Field("test", 20, 8, 128, 0.045))


def test_the_network_is_a_good_one_and_the_other_library_sees_two_logits(duel: Duel) -> None:
    pixels, label = blobs(400, 31)
    assert ((logit(pixels) > 0) == (label == 1)).float().mean() > 0.85
    both = TwoLogits(trained())(pixels)
    assert torch.equal(both[:, 1] - both[:, 0], logit(pixels))
    assert duel._classifier.nb_classes == 2
    assert duel.field.images >= 100


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "APGD"])
def test_attacks_at_a_fixed_budget_flip_as_many(duel: Duel, name: str) -> None:
    own, theirs = compare(duel, name)
    assert 0.3 < theirs.flip_rate < 0.95, "at another budget this shows nothing"
    assert own.flip_rate == pytest.approx(theirs.flip_rate, abs=0.02)
    assert own.median_l2 == pytest.approx(theirs.median_l2, rel=0.05)
    assert own.largest_linf <= 0.045 + 1e-5


def test_deepfool_finds_the_same_distances(duel: Duel) -> None:
    own, theirs = compare(duel, "DeepFool")
    assert own.flip_rate == pytest.approx(theirs.flip_rate, abs=0.02)
    assert own.flip_rate > 0.98
    assert own.median_l2 == pytest.approx(theirs.median_l2, rel=0.05)


@pytest.mark.slow
def test_carlini_and_wagner_go_no_farther(duel: Duel) -> None:
    own, theirs = compare(duel, "CW-L2")
    assert own.flip_rate >= theirs.flip_rate - 0.02
    assert own.median_l2 <= 1.05 * theirs.median_l2


@pytest.mark.slow
def test_square_flips_no_fewer(duel: Duel) -> None:
    own, theirs = compare(duel, "Square")
    assert own.flip_rate >= theirs.flip_rate - 0.02
    assert own.largest_linf <= 1.5 * 0.045 + 1e-5


def test_the_comparison_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "FIELDS", (Field("tiny", 20, 8, 16, 0.045),))
    monkeypatch.setattr(oracle, "ATTACKS", ("FGSM", "DeepFool"))
    assert oracle.main(["--rounds", "2", "--results", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "attacks-oracle.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["attacks-oracle.json"]
    rows = written["fields"]["tiny"]["attacks"]
    assert set(rows) == {"FGSM", "DeepFool"}
    assert len(rows["FGSM"]["own"]["seconds"]) == 2
    assert rows["DeepFool"]["times_as_fast"] > 0
    assert str(tmp_path) not in written["command"]
    assert {"torch", "numpy", "adversarial-robustness-toolbox"} < set(written["versions"])


def test_without_the_toolbox_the_comparison_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "art.estimators.classification", None)
    with pytest.raises(DicomguardError, match="is not installed"):
        Duel(FIELDS[0])
    assert oracle.main(["--results", str(tmp_path)]) == 1
    assert "eval" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_shipped_fields_are_large_enough_and_every_attack_has_both_sides(duel: Duel) -> None:
    assert max(field.images for field in FIELDS) >= 100
    for name in ATTACKS:
        assert callable(duel.own(name))
        assert callable(duel.theirs(name))
