"""PGD adversarial training: half of every batch as it is, half attacked (Joel et al. 2023, Table 2; Madry et al. 2018).

The paper keeps the epoch that is best on the test set; here the validation split chooses, by the mean of its balanced
accuracies clean and attacked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomguard.attacks.attacked import into_ball
from dicomguard.lab.victims.pictures import batch_of
from dicomguard.lab.victims.staged import Spoil, balanced_accuracy, outputs_of
from dicomguard.scoring.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Hardening:
    """`eps` in fractions of the presentation range; steps of `relative_step` of it; `share` of a batch is attacked."""

    eps: float = 0.004
    relative_step: float = 0.25
    steps: int = 10
    share: float = 0.5


def spoiling(settings: Hardening) -> Spoil:
    """The last `share` of each batch, attacked away from the truth.

    Starts are drawn from torch's own generator, which `staged.train` seeds, keeps and restores.
    """

    def spoil(model: nn.Module, planes: Tensor, truth: Tensor) -> Tensor:
        count = round(settings.share * len(planes))
        if not count:
            return planes
        clean = planes[len(planes) - count :]
        attacked = attack(model, clean, truth[len(planes) - count :], settings)
        return torch.cat([planes[: len(planes) - count], attacked])

    return spoil


def attack(
    model: nn.Module, planes: Tensor, truth: Tensor, settings: Hardening, generator: torch.Generator | None = None
) -> Tensor:
    """PGD on the margin of the truth, all steps taken, the last kept; the model's mode is restored afterwards.

    Not one of the ladders of `attacks`: those keep what flips and stop there, training wants the confident end.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    offsets = torch.rand(planes.shape, generator=generator).to(planes) * 2 - 1
    current = into_ball(planes + settings.eps * offsets, planes, settings.eps)
    for _ in range(settings.steps):
        current.requires_grad_()
        (gradient,) = torch.autograd.grad(_margins(model(current)[0], truth).sum(), current)
        with torch.no_grad():
            moved = current - settings.relative_step * settings.eps * gradient.sign()
            current = into_ball(moved, planes, settings.eps)
    for module, mode in modes:
        module.training = mode
    return current.detach()


def _margins(outputs: Tensor, truth: Tensor) -> Tensor:
    """The log-odds of the truth against the strongest other class, (N,)."""
    if outputs.shape[1] == 1:
        return torch.where(truth == 1, outputs[:, 0], -outputs[:, 0])
    own = outputs.gather(1, truth[:, None])[:, 0]
    return own - outputs.scatter(1, truth[:, None], -torch.inf).amax(1)


def robust_figure(
    model: Classifier,
    pictures: NDArray[np.uint16],
    truth: NDArray[np.int64],
    classes: int,
    settings: Hardening,
    device: torch.device,
    *,
    seed: int,
    chunk: int = 32,
) -> float:
    """The mean of balanced accuracy clean and under `attack`; the same starts whenever it is asked."""
    generator = torch.Generator().manual_seed(seed)
    attacked = []
    for start in range(0, len(pictures), chunk):
        places = np.arange(start, min(start + chunk, len(pictures)))
        answers = torch.from_numpy(truth[places]).to(device)
        moved = attack(model, batch_of(pictures, places).to(device), answers, settings, generator)
        with torch.inference_mode():
            attacked.append(model(moved)[0].cpu())
    clean = balanced_accuracy(outputs_of(model, pictures, device), truth, classes)
    return (clean + balanced_accuracy(torch.cat(attacked), truth, classes)) / 2
