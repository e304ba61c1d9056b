"""The protected model as a function from prepared planes to one logit, made fast for inference without changing it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Classifier(nn.Module):
    """Normalise, replicate a gray plane, run the network, read one logit: shape (N, planes, H, W) -> (N,).

    Two outputs are read as z1 - z0, whose sigmoid is their softmax. More outputs are refused by the bundle loader.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, planes: Tensor) -> Tensor:
        """The logit towards the positive label."""
        x = planes.expand(-1, self.mean.shape[1], -1, -1)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found = self.network(x)
        outputs = cast("Tensor", found[0] if isinstance(found, tuple) else found)  # MONAI's ViT adds its hidden states
        if outputs.ndim != 2 or outputs.shape[1] not in (1, 2):
            raise ValueError(f"the network gives outputs of shape {tuple(outputs.shape)}; one or two logits are read")
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]


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
