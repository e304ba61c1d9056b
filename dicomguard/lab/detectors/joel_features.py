"""Logistic regression, random forest and linear SVM on deep features, as in Joel et al. 2023.

Their features are those of DenseNet-121 (ImageNet, without its head), flattened, of pictures in [0, 1] without
ImageNet's normalisation. The default here is their global average, standardised. Where those weights cannot be had,
EfficientNet-Lite0's ImageNet features stand in, with its own normalisation, and `reduction` says so.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.backbones import backbone, enlarged
from dicomguard.lab.detectors.sight import Scores, Sight
from dicomguard.lab.detectors.supervised import lessons

_CHUNK = 16
_KEPT = 8


class DeepFeatures:
    """Pixels (N, planes, H, W) in [0, 1] to (N, F) float32. Remembers the last few sets: three detectors share them."""

    def __init__(
        self, maps: nn.Module, *, flatten: bool = False, reduction: str = "", centre: float = 0.0, scale: float = 1.0
    ) -> None:
        """`maps`: (N, 3, H, W) -> (N, C, h, w), given (pixels - centre) / scale. `flatten`: no global average."""
        self.flatten = flatten
        self.reduction = reduction
        self._maps = maps.eval().requires_grad_(requires_grad=False)
        self._given = centre, scale
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __call__(self, pixels: Tensor) -> NDArray[np.float32]:
        """The features of each picture, whatever stands beside it."""
        key = hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._seen(pixels)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _seen(self, pixels: Tensor) -> NDArray[np.float32]:
        centre, scale = self._given
        rows = []
        with torch.no_grad():
            for part in torch.split(pixels, _CHUNK) if len(pixels) else ():
                maps = self._maps((enlarged(part).expand(-1, 3, -1, -1) - centre) / scale)
                rows.append((maps.flatten(1) if self.flatten else maps.mean((2, 3))).float().numpy())
        return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def densenet_features(weights: Path | None = None, *, download: bool = False, flatten: bool = False) -> DeepFeatures:
    """DenseNet-121's features; see `backbones.backbone` for the weights. `flatten`: as the paper."""
    maps, reduction = backbone("densenet121", weights, download=download)
    return DeepFeatures(maps, flatten=flatten, reduction=reduction)


def lite0_features(*, flatten: bool = False) -> DeepFeatures:
    """EfficientNet-Lite0's ImageNet features, in place of DenseNet-121's.

    Raises:
        DicomguardError: its weights (the `train` extra) are not installed.

    """
    from dicomguard.lab.imagenet import imagenet  # noqa: PLC0415 - not needed where other features are given

    words = "features of EfficientNet-Lite0 (ImageNet) stand in for DenseNet-121's"
    return DeepFeatures(imagenet().features, flatten=flatten, reduction=words, centre=0.5, scale=0.5)


def default_features(weights: Path | None = None, *, download: bool = False, flatten: bool = False) -> DeepFeatures:
    """DenseNet-121's where its ImageNet weights can be had, else EfficientNet-Lite0's; `reduction` says which."""
    if weights is not None or download:
        found = densenet_features(weights, download=download, flatten=flatten)
        if not found.reduction:
            return found
    return lite0_features(flatten=flatten)


class Kind(StrEnum):
    """The paper's classifiers, with its settings."""

    LR = "LR"
    RF = "RF"
    SVM = "SVM"


class FeatureDetector:
    """One of them on deep features. Score: signed distance or log-odds; a forest's share of votes less a half.

    Nothing is chosen by a selection set: the settings are the paper's.
    """

    def __init__(
        self, kind: Kind, features: Callable[[Tensor], NDArray[np.float32]], *, standardise: bool | None = None
    ) -> None:
        """`standardise`: None for what the features ask for: not where they are flattened, as in the paper."""
        flat = bool(getattr(features, "flatten", False))
        self.name = f"{kind.value} detector"
        words = "" if flat else "deep features are averaged over places and standardised, not flattened"
        self.reductions = tuple(filter(None, (str(getattr(features, "reduction", "")), words)))
        self._kind = kind
        self._features = features
        self._standardise = not flat if standardise is None else standardise
        self._model: Any = None

    def fit(
        self,
        calibration: Sight,
        attacked: Sight | None = None,
        *,
        seed: int = 0,
        selection: tuple[Sight, Sight] | None = None,  # noqa: ARG002 - as any Supervised
    ) -> None:
        """See `supervised.Supervised`."""
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - only what is taught pays for it

        attacked = lessons(calibration, attacked, self.name)
        rows = np.concatenate([self._features(calibration.pixels), self._features(attacked.pixels)])
        if not np.isfinite(rows).all():
            raise DicomguardError(
                f"{self.name} cannot be taught: a deep feature is NaN or infinite.",
                advice="Check the weights of the feature network.",
            )
        labels = np.concatenate([np.zeros(len(calibration), int), np.ones(len(attacked), int)])
        model = self._fresh(seed)
        with warnings.catch_warnings():
            # The paper's number of iterations is kept even where it does not suffice.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, labels)
        self._model = model

    def _fresh(self, seed: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
        from sklearn.pipeline import make_pipeline  # noqa: PLC0415
        from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
        from sklearn.svm import LinearSVC  # noqa: PLC0415

        models = {
            Kind.LR: lambda: LogisticRegression(max_iter=1000),
            Kind.RF: lambda: RandomForestClassifier(n_estimators=100, random_state=seed),
            Kind.SVM: lambda: LinearSVC(max_iter=5000, random_state=seed),
        }
        model = models[self._kind]()
        return make_pipeline(StandardScaler(), model) if self._standardise else model

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`; infinite where a feature is no number."""
        if self._model is None:
            raise ValueError(f"{self.name} is not fitted")
        found = np.full(len(sight), np.inf)
        if not len(sight):
            return found
        rows = self._features(sight.pixels)
        usable = np.isfinite(rows).all(1)
        if usable.any():
            if self._kind is Kind.RF:
                found[usable] = self._model.predict_proba(rows[usable])[:, 1] - 0.5
            else:
                found[usable] = self._model.decision_function(rows[usable])
        return found
