"""The end of the last three stages of a victim's network, and what comes out of them, pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomguard.errors import DicomguardError
from dicomguard.scoring.networks import EfficientNetLite0
from dicomguard.scoring.scorer import Scorer

Layers = Callable[[Tensor], list[NDArray[np.float64]]]
"""Prepared pixels (N, planes, H, W) to one array (N, F) for each layer."""

_LITE0_ENDS = (11, 15, 16)  # the last blocks with 112, 192 and 320 planes; the 1280 features after them are others'
_NAMED = (
    ("layer2", "layer3", "layer4"),  # ResNet, of torchvision, MONAI and timm
    ("features.denseblock2", "features.denseblock3", "features.denseblock4"),  # DenseNet, of torchvision and MONAI
    ("Mixed_5d", "Mixed_6e", "Mixed_7c"),  # Inception v3: the ends of its three grids
)
_STAGED = ("stages",)  # timm's resnetv2 and other convolutional networks: one module for each stage
_TRANSFORMERS = ("encoder.layers", "blocks")  # torchvision; MONAI and timm


def layers(network: nn.Module) -> list[nn.Module]:
    """The modules whose outputs end the last three stages.

    Known: EfficientNet-Lite0, ResNet, VGG (its last three poolings), DenseNet, Inception v3, vision transformers (one
    resolution, whose depth is cut in four), timm's `stages`, and a flat `features`. Of another network the last three
    modules with weights before its last linear layer, opening up the largest until there are three.

    Raises:
        DicomguardError: there are no three such modules, or planes come last in this network (Swin).

    """
    if type(network).__name__.startswith("Swin"):
        raise DicomguardError(
            f"{type(network).__name__} keeps its planes last, which cannot be pooled here.",
            advice="Leave out the detectors that look at layers for this victim.",
        )
    if isinstance(network, EfficientNetLite0):
        return [network.features[place] for place in _LITE0_ENDS]
    for names in _NAMED:
        found = [_member(network, name) for name in names]
        if all(found):
            return [module for module in found if module is not None]
    for name in _STAGED:
        stages = _member(network, name)
        if stages is not None and len(children := list(stages.children())) >= 3:
            return children[-3:]
    for name in _TRANSFORMERS:
        depth = _member(network, name)
        if isinstance(depth, nn.Sequential | nn.ModuleList) and len(depth) >= 4:
            return [depth[len(depth) * quarter // 4 - 1] for quarter in (2, 3, 4)]
    features = _member(network, "features")
    if isinstance(features, nn.Sequential):
        poolings: list[nn.Module] = [module for module in features if isinstance(module, nn.MaxPool2d)]
        if len(poolings) >= 3 and poolings[-1] is features[-1]:
            return poolings[-3:]
        weighted = [module for module in features if any(True for _ in module.parameters())]
        if len(weighted) >= 3:
            return weighted[-3:]
    return _opened(network)


def _member(network: nn.Module, name: str) -> nn.Module | None:
    for step in name.split("."):
        found = getattr(network, step, None)
        if not isinstance(found, nn.Module):
            return None
        network = found
    return network


def _opened(network: nn.Module) -> list[nn.Module]:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear else None
    found: list[nn.Module] = [network]
    while True:
        found = [m for m in found if m is not last and any(True for _ in m.parameters())]
        closed = [m for m in found if any(True for _ in m.children())]
        if last is not None:
            holding = [m for m in closed if any(inner is last for inner in m.modules())]
            closed = holding or closed
            if len(found) >= 3 and not holding:
                return found[-3:]
        elif len(found) >= 3:
            return found[-3:]
        if not closed:
            raise DicomguardError(
                f"{type(network).__name__} has no three layers with weights before its last linear one.",
                advice="Name three of its modules to the detector yourself.",
            )
        largest = max(closed, key=lambda m: sum(p.numel() for p in m.parameters()))
        place = next(i for i, m in enumerate(found) if m is largest)
        found[place : place + 1] = list(largest.children())


def victim_layers(scorer: Scorer, modules: Sequence[nn.Module] | None = None, *, chunk: int = 16) -> Layers:
    """The pooled outputs of the victim's own layers, seen while the scorer's canonical path answers.

    `modules`: other layers of that very network than `layers` finds.
    """
    network = scorer._canonical.network  # noqa: SLF001 - only the lab looks inside a victim, and changes nothing there
    return watched(modules or layers(network), scorer.answer, chunk=chunk)


def watched(modules: Sequence[nn.Module], run: Callable[[Tensor], object], *, chunk: int = 16) -> Layers:
    """What `modules` give, pooled over places, while `run` sends prepared pixels through their network.

    Raises:
        DicomguardError: when called, a module that is not run exactly once in a forward pass.

    """

    def seen(pixels: Tensor) -> list[NDArray[np.float64]]:
        kept: list[list[NDArray[np.float64]]] = [[] for _ in modules]

        def keeper(place: int) -> Callable[[nn.Module, object, object], None]:
            return lambda _module, _given, output: kept[place].append(_pooled(output))

        handles = [module.register_forward_hook(keeper(place)) for place, module in enumerate(modules)]
        parts = torch.split(pixels, chunk) if len(pixels) else ()
        try:
            with torch.no_grad():
                for part in parts:
                    run(part)
        finally:
            for handle in handles:
                handle.remove()
        if any(len(rows) != len(parts) for rows in kept):
            raise DicomguardError(
                "a layer of the victim does not run exactly once in a forward pass.",
                advice="Name other modules of its network to the detector.",
            )
        return [np.concatenate(rows) if rows else np.empty((0, 0)) for rows in kept]

    return seen


def _pooled(output: object) -> NDArray[np.float64]:
    """(N, C, H, W): mean over places. (N, tokens, C): mean over tokens. (N, C) as it is."""
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, torch.Tensor) or first.ndim not in {2, 3, 4}:
        raise DicomguardError(
            f"a layer of the victim gives {type(first).__name__}, which cannot be pooled.",
            advice="Name other modules of its network to the detector.",
        )
    pooled = first.detach().float()
    if pooled.ndim == 4:
        pooled = pooled.mean((2, 3))
    elif pooled.ndim == 3:
        pooled = pooled.mean(1)
    found: NDArray[np.float64] = pooled.double().cpu().numpy()
    return found
