"""A bundle's network with gradients through its features too, and the Mahalanobis distance on them.

The node's `Classifier` gives features without their graph, for a node has no use for it. Outputs and features here are
those of `Scorer.answer` on the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dicomguard.errors import BundleError
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.classifier import Classifier, fused
from dicomguard.scoring.features import FeatureModel

Deep = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Prepared pixels (n, planes, H, W) to log-odds (n, questions, classes) and features (n, F); gradients flow."""


class DeepNetwork:
    """A bundle's network as a `Deep` function, in float32 on a device; what it gives is where the pixels are."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        network = fused(bundle.network)
        self._head = bundle.head
        self._seen: Tensor | None = None
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise BundleError(
                f"bundle {bundle.metadata.name} has no linear layer, so it has no features to attack.",
                advice="Use an attack on its log-odds alone.",
            )
        linear[-1].register_forward_pre_hook(self._keep)
        given = bundle.inference.input.mean, bundle.inference.input.std
        self._network = Classifier(network, *given).eval().to(device)
        self._device = device

    def _keep(self, _module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._seen = given[0]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Deep`."""
        outputs, _ = self._network(pixels.to(self._device))
        seen, self._seen = self._seen, None
        assert seen is not None
        return self._head.log_odds(outputs).to(pixels.device), seen.float().to(pixels.device)

    def log_odds(self, pixels: Tensor) -> Tensor:
        """The log-odds alone."""
        return self(pixels)[0]

    def features(self, pixels: Tensor) -> Tensor:
        """The features alone."""
        return self(pixels)[1]


def mahalanobis(model: FeatureModel, features: Tensor, answers: Tensor) -> Tensor:
    """`FeatureModel.distances` of features (n, F) to the classes `answers` (n, questions): (n, questions).

    In double precision, for the inverse variances span many orders of magnitude.
    """
    arrays = model.means, model.basis, model.inner
    means, basis, inner = (torch.from_numpy(part).to(features.device).double() for part in arrays)
    questions = torch.arange(answers.shape[1], device=answers.device)
    residuals = features.double().unsqueeze(1) - means[questions, answers]
    along = residuals @ basis.T
    found: Tensor = model.outer * residuals.square().sum(-1) + along.square() @ inner
    return found
