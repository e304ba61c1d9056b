from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dicomguard.errors import BundleError
from dicomguard.scoring import networks
from dicomguard.scoring.importer import import_bundle
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import gray_image

OPTIONS: dict[str, Any] = {
    "name": "own-model",
    "network": "torchvision.models.mobilenet_v3_small",
    "network_args": {"num_classes": 2},
    "labels": ("normal", "abnormal"),
    "image_size": (64, 64),
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return networks.build(OPTIONS["network"], OPTIONS["network_args"]).state_dict()


@pytest.mark.parametrize(
    "shape",
    [
        "plain",
        pytest.param("nested", marks=pytest.mark.slow),
        pytest.param("prefixed", marks=pytest.mark.slow),
        pytest.param("safetensors", marks=pytest.mark.slow),
    ],
)
def test_a_state_dict_becomes_a_bundle(state: dict[str, torch.Tensor], shape: str, tmp_path: Path) -> None:
    weights = tmp_path / ("weights.safetensors" if shape == "safetensors" else "weights.pt")
    if shape == "safetensors":
        save_file(state, weights)
    elif shape == "nested":
        torch.save({"epoch": 3, "state_dict": state}, weights)
    elif shape == "prefixed":
        torch.save({f"module.{name}": value for name, value in state.items()}, weights)
    else:
        torch.save(state, weights)
    described = import_bundle(weights, tmp_path / "bundle", **OPTIONS)
    assert described["name"] == "own-model"
    assert described["labels"] == ["normal", "abnormal"]
    scorer = Scorer.load(tmp_path / "bundle")
    reference = networks.build(OPTIONS["network"], OPTIONS["network_args"])
    reference.load_state_dict(state)
    prepared = scorer.prepare([gray_image(1)]).pixels
    assert scorer.enrolment is None
    mean, std = (torch.tensor(OPTIONS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = reference((prepared.expand(-1, 3, -1, -1) - mean) / std)[0]
        assert scorer.log_odds(prepared)[0, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-2)  # stored in half
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))

    def __init__(self, path: Path) -> None:
        self.path = str(path)


@pytest.mark.parametrize("protocol", [pytest.param("pickle", marks=pytest.mark.slow), "torch"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(protocol: str, tmp_path: Path) -> None:
    weights, trace = tmp_path / "weights.pt", tmp_path / "trace"
    if protocol == "pickle":
        weights.write_bytes(pickle.dumps({"w": Boom(trace)}))
    else:
        torch.save({"w": Boom(trace)}, weights)
    with pytest.raises(BundleError, match="could run code"):
        import_bundle(weights, tmp_path / "bundle", **OPTIONS)
    assert not trace.exists()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 broken zip"], ids=["empty", "text", "zip"])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.pt"):
        import_bundle(tmp_path / "weights.pt", tmp_path / "bundle", **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network_args": {"num_classes": 3}}, "do not fit"),
        ({"network": "torchvision.models.resnet18"}, "do not fit"),
        ({"network": "my.own.Net"}, "allow list"),
        ({"std": [0.2]}, "same length"),
        ({"name": "Bad Name"}, "name"),
        ({"mode": "lanczos"}, "mode"),
    ],
    ids=["classes", "architecture", "unknown network", "std", "name", "mode"],
)
def test_what_does_not_fit_leaves_nothing_behind(
    state: dict[str, torch.Tensor], change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(BundleError, match=words):
        import_bundle(tmp_path / "weights.pt", tmp_path / "bundle", **{**OPTIONS, **change})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.pt"]


def test_an_existing_folder_is_never_overwritten(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        import_bundle(tmp_path / "weights.pt", tmp_path / "bundle", **OPTIONS)


@pytest.mark.slow
def test_a_list_of_tensors_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "weights.pt")
    with pytest.raises(BundleError, match="no state dict"):
        import_bundle(tmp_path / "weights.pt", tmp_path / "bundle", **OPTIONS)


@pytest.mark.parametrize(
    ("head", "labels", "questions", "classes"),
    [
        ("softmax", ("effusion", "mass", "nodule"), 1, 3),
        pytest.param("multilabel", ("effusion", "mass", "nodule"), 3, 2, marks=pytest.mark.slow),
    ],
)
def test_a_network_with_three_outputs_becomes_a_bundle(
    tmp_path: Path, head: str, labels: tuple[str, ...], questions: int, classes: int
) -> None:
    arguments = {"num_classes": 3}
    torch.save(networks.build(OPTIONS["network"], arguments).state_dict(), tmp_path / "weights.pt")
    changed = {**OPTIONS, "network_args": arguments, "labels": labels, "head": head}
    described = import_bundle(tmp_path / "weights.pt", tmp_path / "bundle", **changed)
    assert (described["head"], described["labels"]) == (head, list(labels))
    scorer = Scorer.load(tmp_path / "bundle")
    assert scorer.log_odds(torch.rand(2, 1, 64, 64)).shape == (2, questions, classes)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "labels"), [("softmax", ("a", "b", "c")), ("multilabel", ("a",))])
def test_labels_that_do_not_fit_the_outputs_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, head: str, labels: tuple[str, ...]
) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(BundleError, match=f"for {len(labels)} {head} labels"):
        import_bundle(tmp_path / "weights.pt", tmp_path / "bundle", **{**OPTIONS, "labels": labels, "head": head})
    assert not (tmp_path / "bundle").exists()
