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

from dicomguard.errors import BundleError
from dicomguard.scoring import bundle
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.scorer import Scorer


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


def edit(folder: Path, name: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def pin(folder: Path) -> None:
    digest = hashlib.sha256((folder / bundle.WEIGHTS).read_bytes()).hexdigest()
    edit(folder, bundle.METADATA, lambda c: c.update(weights_sha256=digest))


def test_a_bundle_comes_back_as_it_was_written(small_bundle: Path) -> None:
    read = Bundle(small_bundle)
    assert read.metadata.labels == ("normal", "opacity")
    assert not (small_bundle / "enrolment").exists()
    assert len(read.fingerprint) == 64
    described = bundle.describe(small_bundle)
    assert json.loads(json.dumps(described))["network"] == "EfficientNetLite0"
    assert described["fingerprint"] == read.fingerprint
    assert described["weights_bytes"] < 10e6


def test_weights_are_stored_in_half_precision_and_computed_in_single(small_bundle: Path) -> None:
    stored = load_file(small_bundle / bundle.WEIGHTS)
    assert stored["head.weight"].dtype == torch.float16
    assert all(v.dtype != torch.float16 for k, v in stored.items() if k.endswith("running_var"))
    assert {p.dtype for p in Bundle(small_bundle).network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", [bundle.METADATA, bundle.INFERENCE, bundle.WEIGHTS], ids=lambda p: p.stem)
def test_a_missing_file_is_named(copy: Path, name: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name.name) as raised:
        Scorer.load(copy)
    assert raised.value.advice


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        Scorer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b[:500] + b"\1" + b[501:]])
def test_truncated_or_altered_weights_are_refused(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    path = copy / bundle.WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match="SHA-256"):
        Scorer.load(copy)


def test_a_file_that_is_no_safetensors_is_refused_even_with_the_right_checksum(copy: Path) -> None:
    (copy / bundle.WEIGHTS).write_bytes(b"\x80\x04pickle" * 40)
    pin(copy)
    with pytest.raises(BundleError, match="no safetensors"):
        Scorer.load(copy)


def test_weights_of_another_network_or_with_nan_are_refused(copy: Path) -> None:
    state = load_file(copy / bundle.WEIGHTS)
    save_file({k: v for k, v in state.items() if k != "head.bias"}, copy / bundle.WEIGHTS)
    pin(copy)
    with pytest.raises(BundleError, match=r"head\.bias"):
        Scorer.load(copy)
    save_file({**state, "head.bias": torch.tensor([float("nan")])}, copy / bundle.WEIGHTS)
    pin(copy)
    with pytest.raises(BundleError, match="NaN"):
        Scorer.load(copy)


REFUSED: list[tuple[str, Path, Callable[[dict[str, Any]], object], str]] = [
    ("unknown key", bundle.INFERENCE, lambda c: c.update(postprocessing=[]), "postprocessing"),
    ("unknown metadata", bundle.METADATA, lambda c: c.update(labls=1), "labls"),
    ("network", bundle.INFERENCE, lambda c: c["network_def"].update(_target_="os.system"), "allow list"),
    ("torch loader", bundle.INFERENCE, lambda c: c["network_def"].update(_target_="torch.hub.load"), "allow list"),
    ("argument", bundle.INFERENCE, lambda c: c["network_def"].update(colour=3), "colour"),
    ("weights argument", bundle.INFERENCE, lambda c: c["network_def"].update(weights="DEFAULT"), "not allowed"),
    ("transform", bundle.INFERENCE, lambda c: c["preprocessing"][0].update(_target_="Lambda"), "allow list"),
    ("random transform", bundle.INFERENCE, lambda c: c["preprocessing"][0].update(_target_="RandFlip"), "allow list"),
    ("transform argument", bundle.INFERENCE, lambda c: c["preprocessing"][0].update(lazy=True), "lazy"),
    ("expression", bundle.INFERENCE, lambda c: c["network_def"].update(num_classes="$1+1"), "expressions"),
    ("reference", bundle.INFERENCE, lambda c: c["preprocessing"][0].update(spatial_size="@size"), "expressions"),
    ("nested", bundle.INFERENCE, lambda c: c["network_def"].update(dropout={"_target_": "x"}), "nested"),
    ("no levels", bundle.INFERENCE, lambda c: c["noise"].update(levels=[]), "levels"),
    ("level of 2", bundle.INFERENCE, lambda c: c["noise"].update(levels=[2.0]), "levels"),
    ("std of zero", bundle.INFERENCE, lambda c: c["input"].update(std=[0.0] * 3), "std"),
    ("two planes", bundle.INFERENCE, lambda c: c["input"].update(planes=2), "planes"),
    ("three labels", bundle.METADATA, lambda c: c.update(labels=["a", "b", "c"]), "3 softmax labels"),
    ("no labels", bundle.METADATA, lambda c: c.update(labels=[]), "labels"),
    ("65 labels", bundle.METADATA, lambda c: c.update(labels=[f"l{n}" for n in range(65)]), "labels"),
    ("equal labels", bundle.METADATA, lambda c: c.update(labels=["a", "a"]), "labels must differ"),
    ("one label", bundle.METADATA, lambda c: c.update(labels=["a"]), "excludes at least two"),
    ("head", bundle.INFERENCE, lambda c: c.update(head="sigmoid"), "head"),
    ("several findings", bundle.INFERENCE, lambda c: c.update(head="multilabel"), "2 multilabel labels"),
    ("name", bundle.METADATA, lambda c: c.update(name="../up"), "name"),
    ("three logits", bundle.INFERENCE, lambda c: c["network_def"].update(num_classes=3), "do not fit"),
    ("size", bundle.INFERENCE, lambda c: c["input"].update(size=[32, 32]), "Resize"),
]


@pytest.mark.parametrize(("name", "change", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_the_loader_refuses(
    copy: Path, name: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(copy, name, change)
    with pytest.raises(BundleError, match=words):
        Scorer.load(copy)


def test_broken_json_names_the_file(copy: Path) -> None:
    (copy / bundle.INFERENCE).write_text("{")
    with pytest.raises(BundleError, match=r"inference\.json"):
        Scorer.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["noise"].update(repeats=5),
        lambda c: c["noise"].update(levels=[0.01, 0.03, 0.06]),
        lambda c: c["preprocessing"][0].update(mode="bilinear"),
        lambda c: c["input"].update(mean=[0.4] * 3),
        lambda c: c.update(head="multilabel"),
    ],
    ids=["repeats", "levels", "resize", "mean", "head"],
)
def test_every_setting_that_moves_a_score_moves_the_fingerprint(
    copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    before = Bundle(copy).fingerprint
    edit(copy, bundle.INFERENCE, change)
    assert Bundle(copy).fingerprint != before


def test_words_about_the_model_do_not_move_the_fingerprint(copy: Path) -> None:
    before = Bundle(copy).fingerprint
    edit(copy, bundle.METADATA, lambda c: c.update(description="other words"))
    assert Bundle(copy).fingerprint == before


def test_other_labels_move_the_fingerprint(copy: Path) -> None:
    before = Bundle(copy).fingerprint
    edit(copy, bundle.METADATA, lambda c: c.update(labels=["opacity", "normal"]))
    assert Bundle(copy).fingerprint != before


def test_another_version_of_the_statistic_moves_the_fingerprint(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bundle(copy).fingerprint
    monkeypatch.setattr(bundle, "STATISTIC", "another; 3")
    assert Bundle(copy).fingerprint != before
