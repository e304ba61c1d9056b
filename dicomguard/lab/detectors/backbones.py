"""Where the networks under the supervised detectors come from, and what is said when it is not ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torchvision import models

from dicomguard.errors import DicomguardError

_LEAST = 32
_WITHOUT = "{name} starts from random weights, not from ImageNet"
_BUILDERS: dict[str, Callable[..., Any]] = {"resnet50": models.resnet50, "densenet121": models.densenet121}


def backbone(name: str, weights: Path | None = None, *, download: bool = False) -> tuple[nn.Module, str]:
    """`resnet50` or `densenet121` up to its last feature maps, (N, 3, H, W) -> (N, C, h, w), and what is reduced.

    `weights`: a state dict in torchvision's format. `download`: ask torchvision for its own where there is no file. The
    sentence is "" with ImageNet weights; whoever shows a figure of a network without them shows the sentence, too.

    Raises:
        DicomguardError: the file cannot be read or does not fit; or no such network.

    """
    if name not in _BUILDERS:
        raise DicomguardError(f"there is no backbone {name}.", advice=f"Use one of {', '.join(_BUILDERS)}.")
    builder = _BUILDERS[name]
    if weights is not None:
        network = builder(weights=None)
        _fill(network, weights)
        return _maps(network), ""
    if download:
        try:
            return _maps(builder(weights="DEFAULT")), ""
        except (OSError, RuntimeError) as error:  # no way to the server, or a file that is not the one expected
            reason = " ".join(str(error).split())[:200]
            return _maps(builder(weights=None)), f"{_WITHOUT.format(name=name)} ({reason})"
    return _maps(builder(weights=None)), _WITHOUT.format(name=name)


def enlarged(pixels: Tensor) -> Tensor:
    """Pictures of less than 32 x 32, of which these networks would leave nothing, with each pixel repeated."""
    factor = -(-_LEAST // min(pixels.shape[-2:]))
    return pixels if factor <= 1 else pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _fill(network: nn.Module, weights: Path) -> None:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise DicomguardError(
            f"{weights} holds no weights for {type(network).__name__}: {' '.join(str(error).split())[:200]}.",
            advice="Give the file that torchvision offers for this network, or none.",
        ) from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DicomguardError(
            f"{weights} is no file of weights.", advice="Give the file that torchvision offers for this network."
        ) from error


def _maps(network: nn.Module) -> nn.Module:
    """All but pooling and head."""
    if isinstance(network, models.ResNet):
        return nn.Sequential(*list(network.children())[:-2])
    assert isinstance(network, models.DenseNet)
    return nn.Sequential(network.features, nn.ReLU(inplace=True))


def small_backbone(name: str) -> tuple[nn.Module, str]:
    """What two cores can train in place of `resnet50` or `densenet121`, and what is reduced.

    The residual one begins at full resolution: behind the stride and the pooling of a ResNet-18, which from random
    weights learned nothing in 1,200 steps, little is left of a change of two grey levels.
    """
    if name == "resnet50":
        made = ResNet(
            "basic",
            [1, 1, 1, 1],
            [16, 32, 64, 128],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_size=3,
            conv1_t_stride=1,
            no_max_pool=True,
        )
        stages = (made.conv1, made.bn1, made.act, made.layer1, made.layer2, made.layer3, made.layer4)
        words = "a residual network of 10 layers from random weights stands in for ResNet-50 of ImageNet"
        return nn.Sequential(*stages), words
    if name == "densenet121":
        network = models.DenseNet(growth_rate=12, block_config=(3, 6, 12, 8), num_init_features=24)
        words = "a DenseNet with 29 dense layers from random weights stands in for DenseNet-121 of ImageNet"
        return _maps(network), words
    raise DicomguardError(f"there is no backbone {name}.", advice=f"Use one of {', '.join(_BUILDERS)}.")
