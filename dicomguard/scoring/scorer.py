"""The one scorer, for the node and for the lab: images in, scores out. Nobody else touches the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dicomguard.decision import Score, Thresholds
from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.scoring import consistency, memory
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.calibration import Calibration
from dicomguard.scoring.classifier import Classifier, fused
from dicomguard.scoring.consistency import NoiseCurve

_SALIENCY_WINDOW = 9  # pixels over which a gradient is averaged to be readable


class Scorer:
    """A loaded bundle on a device. Deterministic: the same images and seeds give the same scores in any batch."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        memory.keep_buffers()
        self.name = bundle.metadata.name
        self.labels = bundle.metadata.labels
        self.fingerprint = bundle.fingerprint
        self.calibration: Calibration | None = bundle.calibration
        self.thresholds: Thresholds | None = None if self.calibration is None else self.calibration.thresholds()
        self.noise = bundle.inference.noise.settings()
        self.input_size = (bundle.inference.input.size[0], bundle.inference.input.size[1])
        self.preprocess = bundle.inference.preprocess()
        self.device = _device(device)
        self._planes = bundle.inference.input.planes
        self._model = Classifier(fused(bundle.network), bundle.inference.input.mean, bundle.inference.input.std)
        self._model.eval().to(self.device)
        self._try_out()

    @classmethod
    def load(cls, bundle_dir: Path, *, device: str = "cpu") -> Scorer:
        """Read and check a bundle, then run it once.

        Raises:
            BundleError: naming what is wrong and what to do next; see `bundle.Bundle`.

        """
        return cls(Bundle(bundle_dir), device=device)

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Presentation values of any size to (N, planes, H, W) float32 in [0, 1]."""
        with torch.inference_mode():
            if not images:
                return torch.empty(0, self._planes, *self.input_size, device=self.device)
            return self.preprocess.images(images).to(self.device)

    def score(self, batch: Tensor, seeds: Sequence[bytes]) -> list[Score]:
        """One `Score` for each image of a prepared batch; `seeds` from `scoring.noise.seed`, one each.

        An uncalibrated scorer puts the largest probability drop into `statistic`; its thresholds are None.
        """
        return [self._score(curve) for curve in self.curves(batch, seeds)]

    def curves(self, batch: Tensor, seeds: Sequence[bytes]) -> list[NoiseCurve]:
        """The raw numbers of the noise check, which a calibration is fitted on."""
        return consistency.curves(self.logits, batch.to(self.device), seeds, self.noise)

    def logits(self, batch: Tensor) -> Tensor:
        """Logit towards `labels[1]`, shape (N,), of a prepared batch; gradients flow."""
        logits: Tensor = self._model(batch)
        return logits

    def saliency(self, batch: Tensor) -> NDArray[np.float32]:
        """Where the answer is most sensitive: |gradient of the logit|, averaged locally, largest value 1.

        Shape (N, planes, H, W) -> (N, H, W), for the picture that goes with the evidence (Simonyan et al. 2013).
        """
        pixels = batch.detach().clone().to(self.device).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.logits(pixels).sum(), pixels)
        strength = gradient.abs().amax(1, keepdim=True)
        strength = F.avg_pool2d(strength, _SALIENCY_WINDOW, stride=1, padding=_SALIENCY_WINDOW // 2)
        strength = strength / strength.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        saliency: NDArray[np.float32] = strength[:, 0].cpu().numpy()
        return saliency

    def _score(self, curve: NoiseCurve) -> Score:
        if self.calibration is None:
            statistic = float(np.max(curve.probability_drops))
        else:
            statistic = self.calibration.statistic_of(curve)
        return Score(
            predicted=self.labels[1] if curve.logit >= 0 else self.labels[0],
            probability=curve.probability,
            margin=curve.margin,
            levels=self.noise.levels,
            probability_drops=tuple(map(float, curve.probability_drops)),
            logit_drops=tuple(map(float, curve.logit_drops)),
            min_noisy_margin=float(np.min(curve.noisy_margins)),
            statistic=statistic,
        )

    def _try_out(self) -> None:
        """A forward pass on mid gray: what does not run now must not be found out by a patient's image."""
        try:
            with torch.inference_mode():
                pixels = self.preprocess(torch.full((self._planes, 2 * self.input_size[0], self.input_size[1]), 0.5))
                logits = self.logits(pixels.unsqueeze(0).to(self.device))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise BundleError(
                f"bundle {self.name}: the network does not run on its own input: {_one_line(error)}.",
                advice="Check the transforms, the input size and the number of planes against the training code.",
            ) from error
        if tuple(pixels.shape[1:]) != self.input_size:
            raise BundleError(
                f"bundle {self.name}: the transforms make {tuple(pixels.shape[1:])}, not {self.input_size}.",
                advice="End the transforms with a Resize to the input size.",
            )
        if logits.shape != (1,) or not math.isfinite(float(logits[0])):
            raise BundleError(f"bundle {self.name}: the network does not give one finite logit.")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BundleError(
            f"device {name} cannot be used: {_one_line(error)}.", advice="Use cpu, or install what the device needs."
        ) from error
    return device


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
