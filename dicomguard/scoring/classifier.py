"""The protected model as a function from prepared planes to outputs, made fast for inference without changing it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Classifier(nn.Module):
    """Normalise, replicate a gray plane, run the network: (N, planes, H, W) -> outputs (N, O), features (N, F).

    Features are what the last linear layer is given (after pooling, before dropout has any effect), or, in a network
    without one, the last 1 x 1 convolution if that is what stands for it behind the pooling (timm's ResNet V2). A
    network with neither has none, shape (N, 0). `dtype` is what the network computes in; both results are float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self._features: Tensor | None = None
        head = classifying_layer(network)
        if head is not None:
            head.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._features = given[0].detach()

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and features; gradients flow through the outputs."""
        x = planes.expand(-1, self.mean.shape[1], -1, -1)
        x = ((x - self.mean) / self.std).to(self.dtype).contiguous(memory_format=torch.channels_last)
        found = self.network(x)
        outputs = cast("Tensor", found[0] if isinstance(found, tuple) else found)  # MONAI's ViT adds its hidden states
        seen, self._features = self._features, None
        if seen is not None and seen.ndim == 4 and seen.shape[2:] == (1, 1):
            seen = seen.flatten(1)
        if seen is None or seen.ndim != 2:
            seen = outputs.new_empty(len(outputs), 0)
        return outputs.float(), seen.float()


def classifying_layer(network: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """The last linear layer, or in a network without one the last convolution, if that is 1 x 1."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if linear:
        return linear[-1]
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1] if convolutions and convolutions[-1].kernel_size == (1, 1) else None


def fused(network: nn.Module) -> nn.Module:
    """A copy with batch normalisation folded into the convolution before it, in channels-last layout.

    Only neighbours within an `nn.Sequential` are folded: there the order of execution is the order of the list, for any
    architecture. Three times as fast on the CPU; equal up to rounding.
    """
    network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (name, layer), (next_name, following) in itertools.pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, following))
                setattr(module, next_name, nn.Identity())
    return network.to(memory_format=torch.channels_last)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where a card multiplies it in hardware, else float32.

    Never on a CPU: one kind rounds bfloat16 otherwise than another, and a decision must be the same on both.
    """
    is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_fast else torch.float32
