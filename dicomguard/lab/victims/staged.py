"""Train a network in stages, each unfreezing more of it from the end, with an early stop on the validation split.

The noise-consistency paper fine-tunes the last layers of ImageNet networks. What is frozen stays in evaluation mode:
its batch statistics remain ImageNet's. A network that is trained from scratch has one stage, of everything.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomguard.errors import DicomguardError
from dicomguard.lab.finetune import augment, weighted_loss
from dicomguard.lab.victims.grid import Plan, Stage
from dicomguard.lab.victims.pictures import Advance, batch_of
from dicomguard.scoring.classifier import Classifier, classifying_layer

_SETTLING = 8  # batches that batch statistics are taken from

State = dict[str, Any]
Spoil = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""`spoil(model, planes, truth)` -> planes: what training is to see in place of a batch; see `adversarial`."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on: `pictures` (N, planes, H, W) with 65535 for white, `truth` (N,), and how many classes."""

    pictures: NDArray[np.uint16]
    truth: NDArray[np.int64]
    classes: int


@dataclass(slots=True)
class Progress:
    """Where a run stands; what `keep` is handed after each epoch, and what `resume` begins with.

    `history`: one row for each epoch. `best`: the validation figure that the weights in `chosen` reached.
    """

    stage: int = 0
    epoch: int = 0
    best: float = -math.inf
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    chosen: State = field(default_factory=dict)
    weights: State = field(default_factory=dict)
    optimizer: State = field(default_factory=dict)
    schedule: State = field(default_factory=dict)
    shuffling: Tensor | None = None
    varying: Tensor | None = None
    random: Tensor | None = None


def train(
    model: Classifier,
    plan: Plan,
    material: Material,
    validate: Callable[[Classifier], float],
    *,
    seed: int,
    device: torch.device,
    advance: Advance,
    spoil: Spoil | None = None,
    resume: Progress | None = None,
    keep: Callable[[Progress], None] = lambda _progress: None,
) -> Progress:
    """Train `model` (normalisation and network) in place, and leave the weights with the best figure in it.

    `validate` is given the model in evaluation mode after each epoch; the larger its figure the better, and of equals
    the first is kept. A stage begins with the best weights so far.

    Raises:
        DicomguardError: the loss is no finite number any more.

    """
    at = resume or Progress()
    shuffling, varying = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    total = sum(stage.epochs for stage in plan.stages)
    before = sum(stage.epochs for stage in plan.stages[: at.stage]) + at.epoch
    advance("training", before / total)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        if resume is not None:
            model.load_state_dict(at.weights)
            assert at.shuffling is not None
            assert at.varying is not None
            assert at.random is not None
            shuffling.set_state(at.shuffling)
            varying.set_state(at.varying)
            torch.set_rng_state(at.random)
        for number in range(at.stage, len(plan.stages)):
            stage = plan.stages[number]
            if number > 0 and at.epoch == 0:
                model.load_state_dict(at.chosen)
            moving = unfreeze(model, stage.share)
            optimizer, schedule = _optimizer(model, stage, plan, math.ceil(len(material.truth) / plan.batch))
            if at.epoch:
                optimizer.load_state_dict(at.optimizer)
                schedule.load_state_dict(at.schedule)
            while at.epoch < stage.epochs and at.waited < plan.patience:
                _switch(model, moving)
                loss = _epoch(model, plan, material, optimizer, schedule, shuffling, varying, spoil, device)
                model.eval()
                _settle(model, moving, plan, material, device)
                figure = validate(model)
                at.history.append({"stage": number, "epoch": at.epoch, "loss": round(loss, 5), "figure": figure})
                if figure > at.best:
                    at.best, at.waited, at.chosen = figure, 0, copy.deepcopy(model.state_dict())
                else:
                    at.waited += 1
                at.epoch += 1
                advance("training", 1 / total)
                at.stage, at.weights = number, model.state_dict()
                at.optimizer, at.schedule = optimizer.state_dict(), schedule.state_dict()
                at.shuffling, at.varying, at.random = (
                    shuffling.get_state(),
                    varying.get_state(),
                    torch.get_rng_state(),
                )
                keep(at)
            advance("training", (stage.epochs - at.epoch) / total)
            at.stage, at.epoch, at.waited = number + 1, 0, 0
    model.load_state_dict(at.chosen)
    model.eval()
    return at


def unfreeze(model: nn.Module, share: float) -> list[nn.Module]:
    """Let the last `share` of the layers move, at least the classifying one; returns those that do, in order.

    A layer is a module with weights of its own, in the order in which the network lists them.
    """
    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    model.requires_grad_(requires_grad=False)
    moving = layers[len(layers) - round(share * len(layers)) :]
    head = classifying_layer(model)
    if head is not None and not any(layer is head for layer in moving):
        moving.append(head)
    for layer in moving:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_()
    return moving


def _switch(model: nn.Module, moving: list[nn.Module]) -> None:
    """Training mode for what moves, and for what has no weights (dropout); frozen statistics stay as they are."""
    model.train()
    for module in model.modules():
        if list(module.parameters(recurse=False)) and not any(module is layer for layer in moving):
            module.training = False


def _optimizer(
    model: nn.Module, stage: Stage, plan: Plan, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay on biases and scales, and one cycle of the rate over the stage."""
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, stage.rate, total_steps=max(stage.epochs * steps, 2), pct_start=0.15
    )
    return optimizer, schedule


def _epoch(
    model: Classifier,
    plan: Plan,
    material: Material,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    shuffling: torch.Generator,
    varying: torch.Generator,
    spoil: Spoil | None,
    device: torch.device,
) -> float:
    """Once through the pictures in a new order; returns the mean loss."""
    truth = torch.from_numpy(material.truth)
    counts = torch.bincount(truth, minlength=material.classes).clamp(min=1).float()
    weights = (len(truth) / (material.classes * counts)).to(device)
    order = torch.randperm(len(truth), generator=shuffling)
    losses = []
    for chosen in torch.split(order, plan.batch):
        if len(chosen) == 1 and len(order) > 1:
            schedule.step()
            continue  # batch statistics of one picture are none
        batch = augment(batch_of(material.pictures, chosen.numpy()), plan.varied, varying).to(device)
        answers = truth[chosen].to(device)
        if spoil is not None:
            batch = spoil(model, batch, answers)
        outputs, _ = model(batch)
        loss = weighted_loss(outputs, answers, weights, plan.varied.label_smoothing)
        if not bool(loss.isfinite()):
            raise DicomguardError(
                "the training loss is no finite number any more.", advice="Lower the rates of the victim's plan."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses)) if losses else math.nan


def _settle(model: Classifier, moving: list[nn.Module], plan: Plan, material: Material, device: torch.device) -> None:
    """Take the batch statistics of layers that moved anew from pictures as they are, with the weights as they are now.

    A running average lags behind by dozens of steps, which is several epochs of a small set: a network that has learnt
    would be judged by statistics of one that had not. Leaves the model in evaluation mode.
    """
    norms = [layer for layer in moving if isinstance(layer, nn.BatchNorm2d)]
    if not norms:
        return
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    count = min(len(material.truth), _SETTLING * plan.batch)
    places = np.linspace(0, len(material.truth) - 1, count).round().astype(np.int64)
    with torch.no_grad():
        for chosen in np.array_split(places, max(count // plan.batch, 1)):
            model(batch_of(material.pictures, chosen).to(device))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()


def balanced_accuracy(outputs: Tensor, truth: NDArray[np.int64], classes: int) -> float:
    """Mean recall over the classes that occur, of (N, 1) or (N, classes) outputs."""
    answers = ((outputs[:, 0] >= 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)).numpy()
    return float(np.mean([(answers[truth == c] == c).mean() for c in range(classes) if (truth == c).any()]))


def outputs_of(model: Classifier, pictures: NDArray[np.uint16], device: torch.device, *, chunk: int = 32) -> Tensor:
    """Shape (N, outputs), on the CPU, of a model in evaluation mode: for choosing between epochs only."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(pictures), chunk):
            places = np.arange(start, min(start + chunk, len(pictures)))
            found.append(model(batch_of(pictures, places).to(device))[0].cpu())
    return torch.cat(found)


def as_saved(progress: Progress) -> dict[str, Any]:
    """As plain values that torch.save and a weights-only torch.load know."""
    return {name: getattr(progress, name) for name in progress.__slots__}


def from_saved(state: Mapping[str, Any]) -> Progress:
    """The inverse of `as_saved`."""
    return Progress(**state)
