"""The networks a bundle may name: an allow list of constructors, called with literal arguments, never with weights.

EfficientNet-Lite0 is written out here because no library of the default install has it, and VGG-11 without the dense
layers that hold nine tenths of its weights; torchvision's and MONAI's classifiers are taken as they are, and timm's
where timm is installed. None of them is asked to download anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as torchvision_models
from torchvision.ops import Conv2dNormActivation

from dicomguard.errors import BundleError

Literal = bool | int | float | str | None | list["Literal"] | dict[str, "Literal"]

# (expansion, kernel, stride, output planes, repeats); Tan and Le 2019 (arXiv 1905.11946), table 1, without squeeze and
# excitation and with ReLU6: TensorFlow's "lite" variant.
_LITE0_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_LITE0_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)

_MONAI_NETWORKS = ("DenseNet121", "DenseNet169", "DenseNet201", "EfficientNetBN", "ResNet", "SEResNet50", "ViT")
# Arguments that would make a constructor fetch weights or run code, whatever else it accepts.
_FORBIDDEN_ARGUMENTS = frozenset(
    {"weights", "weights_backbone", "pretrained", "checkpoint_path", "pretrained_cfg", "features_only", "scriptable"}
)


class SamePad(nn.Module):
    """TensorFlow's SAME padding before a strided convolution: the odd row and column go to the bottom and right."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, H, W) -> (N, C, H', W'), padded with zeros."""
        rows, columns = (
            max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[-2:]
        )
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    activation = partial(nn.ReLU6, inplace=True)
    if stride == 1:
        plain: nn.Module = Conv2dNormActivation(
            inputs, outputs, kernel, groups=groups, norm_layer=_LITE0_NORM, activation_layer=activation, inplace=None
        )
        return plain
    strided = Conv2dNormActivation(
        inputs,
        outputs,
        kernel,
        stride,
        padding=0,
        groups=groups,
        norm_layer=_LITE0_NORM,
        activation_layer=activation,
        inplace=None,
    )
    return nn.Sequential(SamePad(kernel, stride), strided)


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise, project; the input is added where shapes allow (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_convolution(inputs, hidden, 1)]
        layers.append(_convolution(hidden, hidden, kernel, stride, groups=hidden))
        layers.append(
            Conv2dNormActivation(hidden, outputs, 1, norm_layer=_LITE0_NORM, activation_layer=None, inplace=None)
        )
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = cast("Tensor", self.layers(x))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: 3.4 M parameters beside the head; expects three planes normalised with (x - 0.5) / 0.5.

    Numerically that of the Apache-2.0 package `efficientnet-lite-pytorch`, whose ImageNet weights fit after
    `from_imagenet_state`. `features` is a flat sequence, so that the early blocks can be frozen and run once.
    """

    def __init__(self, num_classes: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_convolution(3, 32, 3, 2)]
        planes = 32
        for expansion, kernel, stride, outputs, repeats in _LITE0_STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(planes, outputs, expansion, kernel, stride if index == 0 else 1))
                planes = outputs
        blocks.append(_convolution(planes, 1280, 1))
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3, H, W) -> logits (N, num_classes)."""
        return self.classify(cast("Tensor", self.features(x)))

    def classify(self, features: Tensor) -> Tensor:
        """Pool and classify: shape (N, 1280, h, w) -> (N, num_classes)."""
        return cast("Tensor", self.head(self.dropout(features.mean((2, 3)))))

    def from_imagenet_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the package's ImageNet weights, without its 1000-class head.

        Both networks list the same tensors in the same order; the shapes are checked one by one.
        """
        own = [key for key in self.state_dict() if not key.startswith("head.")]
        theirs = [value for key, value in state.items() if not key.startswith("_fc.")]
        if len(own) != len(theirs):
            raise BundleError(f"the ImageNet weights have {len(theirs)} tensors, EfficientNet-Lite0 has {len(own)}.")
        self.load_state_dict(dict(zip(own, theirs, strict=True)), strict=False)


class VGG11(nn.Module):
    """VGG-11 with batch normalisation (Simonyan, Zisserman 2015, configuration A), pooled globally, one linear layer.

    `width` scales the numbers of planes: 9.2 M parameters at 1, 2.3 M at one half.
    """

    def __init__(self, num_classes: int = 1, width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        if not 1 / 64 <= width <= 4:
            raise ValueError(f"a width of {width} is not possible; 1/64 to 4 are")
        layers: list[nn.Module] = []
        planes = 3
        for step in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            following = max(int(step * width), 1)
            layers += [nn.Conv2d(planes, following, 3, padding=1, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
            planes = following
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(planes, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3, H, W), sides of at least 32, to logits (N, num_classes)."""
        return cast("Tensor", self.head(self.dropout(self.features(x).mean((2, 3)))))


def build(name: str, arguments: Mapping[str, Literal]) -> nn.Module:
    """The network `name` with random weights, on the CPU, in evaluation mode.

    Names: `EfficientNetLite0`; `VGG11`; `torchvision.models.<builder>`; `torchvision.models.VisionTransformer`;
    `monai.networks.nets.<Class>` for the allowed classes; `timm.<model name>` where timm is installed.

    Raises:
        BundleError: the name is not on the allow list, its library is missing, or the arguments do not fit.

    """
    forbidden = sorted(_FORBIDDEN_ARGUMENTS & arguments.keys())
    if forbidden:
        raise BundleError(
            f"network {name}: argument {forbidden[0]} is not allowed in a bundle.",
            advice="Weights come from models/model.safetensors only; remove the argument.",
        )
    constructor, fixed = _constructor(name)
    try:
        # Constructors draw initial weights; the caller's random state is none of their business.
        with torch.random.fork_rng(devices=[]):
            network = constructor(**arguments, **fixed)
    except ImportError as error:  # MONAI's optional parts: its ViT needs einops
        said = " ".join(str(error).split())[:200]
        raise BundleError(
            f"network {name} needs a package that is not installed: {said}", advice="Install it with pip."
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise BundleError(
            f"network {name} does not accept the arguments {dict(arguments)}: {error}.",
            advice="Compare with the constructor's signature in its library's documentation.",
        ) from error
    if not isinstance(network, nn.Module):  # pragma: no cover - the allow list holds constructors of modules only
        raise BundleError(f"network {name} is no neural network.")
    return network.eval()


def names() -> list[str]:
    """Every name on the allow list of this installation, timm's as a pattern."""
    listed = ["EfficientNetLite0", "VGG11", "torchvision.models.VisionTransformer"]
    listed += [f"torchvision.models.{name}" for name in _torchvision_classifiers()]
    listed += [f"monai.networks.nets.{name}" for name in _MONAI_NETWORKS]
    return listed + (["timm.*"] if importlib.util.find_spec("timm") else [])


def _torchvision_classifiers() -> list[str]:
    return torchvision_models.list_models(module=torchvision_models)  # type: ignore[no-any-return] # untyped library


def _constructor(name: str) -> tuple[Any, dict[str, Any]]:
    """The callable behind an allowed name and the arguments that keep it from downloading."""
    if name == "EfficientNetLite0":
        return EfficientNetLite0, {}
    if name == "VGG11":
        return VGG11, {}
    if name == "torchvision.models.VisionTransformer":  # of any size: the builders' sizes are fixed
        return _vision_transformer, {}
    library, _, member = name.rpartition(".")
    if library == "torchvision.models" and member in _torchvision_classifiers():
        return torchvision_models.get_model_builder(member), {"weights": None}
    if library == "monai.networks.nets" and member in _MONAI_NETWORKS:
        return _monai(member)
    if name.startswith("timm."):
        if importlib.util.find_spec("timm") is None:
            raise BundleError(f"network {name} needs timm.", advice="Install it with pip install 'dicomguard[timm]'.")
        timm = importlib.import_module("timm")
        model = name.removeprefix("timm.")
        # "hf-hub:" and "local-dir:" names make timm fetch or read files: only names of its own registry pass.
        if timm.is_model(model) and ":" not in model and "/" not in model:
            return partial(timm.create_model, model), {"pretrained": False}
    raise BundleError(
        f"network {name} is not on the allow list.",
        advice="Use EfficientNetLite0, VGG11, torchvision.models.<builder> or VisionTransformer, one of "
        f"monai.networks.nets.{{{', '.join(_MONAI_NETWORKS)}}} or timm.<model>.",
    )


def _vision_transformer(
    *,
    image_size: int,
    patch_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    mlp_dim: int,
    num_classes: int,
    dropout: float = 0.0,
) -> nn.Module:
    """The constructor with what a bundle may say; its others take callables and stems."""
    network: nn.Module = torchvision_models.VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        num_classes=num_classes,
        dropout=dropout,
    )
    return network


def _monai(member: str) -> tuple[Any, dict[str, Any]]:
    constructor = getattr(importlib.import_module("monai.networks.nets"), member)
    has_pretrained = "pretrained" in inspect.signature(constructor.__init__).parameters
    return constructor, {"pretrained": False} if has_pretrained else {}
