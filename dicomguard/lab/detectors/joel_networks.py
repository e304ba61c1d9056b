"""The two networks that Joel et al. 2023 train to tell attacked pictures from clean ones.

Heads, optimisers, batch and epochs as in their supplement (S3, S4), activations between dense layers ReLU; pictures go
in as [0, 1], a gray plane three times. Which epoch is kept is decided by the accuracy on files that are given for that:
theirs are those of the test, an honest choice is others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.backbones import backbone, enlarged, small_backbone
from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed
from dicomguard.lab.detectors.supervised import lessons, set_aside

_CHUNK = 32
_LEARNED = 0.6  # accuracy on the selection


@dataclass(frozen=True, slots=True)
class Profile:
    """How a detector's network is trained.

    `side`: larger pictures are cut to their middle (an average would wash out what is to be found), None: as they are.
    `rates`: learning rates by backbone. `adaptive`: AdamW instead of SGD. `least_steps`: as many epochs more as that
    takes; `most_steps`: as many as that takes while no epoch was clearly better than a guess.
    """

    epochs: int
    batch: int
    rates: tuple[tuple[str, float], ...]
    side: int | None = None
    adaptive: bool = False
    small: bool = False
    least_steps: int = 0
    most_steps: int = 0

    def planned(self, pictures: int) -> tuple[int, int]:
        """Epochs for so many pictures: of a network that learns, and at most."""
        steps = math.ceil(pictures / self.batch)
        least = max(self.epochs, math.ceil(self.least_steps / steps))
        return least, max(least, math.ceil(self.most_steps / steps))

    def reductions(self) -> tuple[str, ...]:
        """What is reduced against the paper, beside the backbone's weights."""
        found = []
        if self.side is not None:
            found.append(f"pictures larger than {self.side} x {self.side} are cut to their middle")
        if self.adaptive:
            found.append("AdamW in place of SGD, because there is no pretrained network to begin with")
        if self.epochs != PAPER.epochs or self.batch != PAPER.batch:
            least = f", {self.least_steps} steps at least," if self.least_steps else ""
            least += f" {self.most_steps} while nothing is learned," if self.most_steps else ""
            found.append(
                f"{self.epochs} epochs{least} with batches of {self.batch}, not {PAPER.epochs} with {PAPER.batch}"
            )
        return tuple(found)


PAPER = Profile(epochs=30, batch=64, rates=(("resnet50", 2e-4), ("densenet121", 2e-3)))
SMALL = replace(
    PAPER, epochs=6, batch=32, rates=(("resnet50", 1e-3), ("densenet121", 1e-3)), side=64, adaptive=True, small=True
)


class DeepDetector:
    """`resnet50` or `densenet121` with the paper's head. Score: the log-odds of "attacked"; its own decision is > 0."""

    def __init__(
        self,
        kind: str,
        profile: Profile = PAPER,
        *,
        weights: Path | None = None,
        download: bool = False,
        device: str = "cpu",
        tick: Callable[[int], None] | None = None,
    ) -> None:
        """`weights`, `download`: see `backbones.backbone`. `tick` counts epochs.

        Raises:
            DicomguardError: as `backbones.backbone`.

        """
        words = {"resnet50": "ResNet-50", "densenet121": "DenseNet-121"}
        self.name = f"{words.get(kind, kind)} detector"
        self._kind = kind
        self._profile = profile
        self._begin = (
            partial(small_backbone, kind) if profile.small else partial(backbone, kind, weights, download=download)
        )
        _, reduction = self._begin()
        self.reductions = tuple(filter(None, (reduction, *profile.reductions())))
        self._device = torch.device(device)
        self._tick = tick
        self._network: nn.Module | None = None
        self.chosen = -1
        self.history: list[float] = []

    def fit(
        self,
        calibration: Sight,
        attacked: Sight | None = None,
        *,
        seed: int = 0,
        selection: tuple[Sight, Sight] | None = None,
    ) -> None:
        """See `supervised.Supervised`. Afterwards `history` holds each epoch's accuracy on the selection, and `chosen`
        the epoch that was kept: the first of the best.
        """
        attacked = lessons(calibration, attacked, self.name)
        rng = np.random.default_rng(seed)
        if selection is None:
            out, away = set_aside(len(calibration), rng), set_aside(len(attacked), rng)
            selection = calibration.only(out), attacked.only(away)
            calibration, attacked = calibration.only(~out), attacked.only(~away)
        pixels, labels = self._labelled(calibration, attacked)
        judged, truth = self._labelled(*selection)
        # Weights, dropout and heads draw from the global generator: what ran before must have no say.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._train(pixels, labels, judged, truth)

    def _labelled(self, clean: Sight, attacked: Sight) -> tuple[Tensor, Tensor]:
        pixels = torch.cat([self._cut(clean.pixels), self._cut(attacked.pixels)])
        return pixels, torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))]).long()

    def _cut(self, pixels: Tensor) -> Tensor:
        side = self._profile.side
        if side is None:
            return pixels
        top, left = (max(size - side, 0) // 2 for size in pixels.shape[-2:])
        return pixels[..., top : top + side, left : left + side]

    def _train(self, pixels: Tensor, labels: Tensor, judged: Tensor, truth: Tensor) -> None:
        maps, _ = self._begin()
        network = nn.Sequential(maps, _head(self._kind, maps))
        network.to(self._device).to(memory_format=torch.channels_last)
        rate = dict(self._profile.rates)[self._kind]
        make: type[torch.optim.Optimizer] = torch.optim.AdamW if self._profile.adaptive else torch.optim.SGD
        optimiser = make(network.parameters(), lr=rate)  # type: ignore[call-arg] # every optimiser has a rate
        self.history, self.chosen, best = [], -1, copy.deepcopy(network.state_dict())
        least, most = self._profile.planned(len(pixels))
        for epoch in range(most):
            if epoch >= least and max(self.history) >= _LEARNED:
                break
            network.train()
            for chosen in torch.split(torch.randperm(len(pixels)), self._profile.batch):
                if len(chosen) < 2:  # batch normalisation has no variance of one
                    continue
                loss = F.cross_entropy(network(self._given(pixels[chosen])), labels[chosen].to(self._device))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
                optimiser.step()
            if not bool(loss.detach().isfinite()):
                raise DicomguardError(
                    f"the training of {self.name} diverged in epoch {epoch + 1}.", advice="Lower the learning rate."
                )
            hits = ((self._log_odds(network, judged) > 0) == truth.numpy().astype(bool)).mean()
            if not self.history or hits > max(self.history):
                self.chosen, best = epoch, copy.deepcopy(network.state_dict())
            self.history.append(float(hits))
            if self._tick is not None:
                self._tick(1)
        network.load_state_dict(best)
        self._network = network.eval()

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        if self._network is None:
            raise ValueError(f"{self.name} is not fitted")
        return failed_closed(self._log_odds(self._network, self._cut(sight.pixels)))

    def _given(self, pixels: Tensor) -> Tensor:
        planes = enlarged(pixels.to(self._device)).expand(-1, 3, -1, -1)
        return planes.contiguous(memory_format=torch.channels_last)  # a quarter faster on a processor

    def _log_odds(self, network: nn.Module, pixels: Tensor) -> Scores:
        network.eval()
        with torch.no_grad():
            found = [network(self._given(part)) for part in torch.split(pixels, _CHUNK)] if len(pixels) else []
        rows = [(one[:, 1] - one[:, 0]).double().cpu().numpy() for one in found]
        return np.concatenate(rows) if rows else np.empty(0)


def _head(kind: str, maps: nn.Module) -> nn.Module:
    """The dense layers of S3 and S4 behind global average pooling."""
    with torch.no_grad():
        width = maps.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if kind == "resnet50":
        return nn.Sequential(
            *pooled, nn.Dropout(0.5), nn.Linear(width, 100), nn.ReLU(), nn.Dropout(0.5), nn.Linear(100, 2)
        )
    return nn.Sequential(
        *pooled,
        nn.BatchNorm1d(width),
        nn.Dropout(0.5),
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, 2),
    )
