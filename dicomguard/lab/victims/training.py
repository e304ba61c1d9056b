"""Train a victim on a collection, to a bundle that the one scorer loads, and say how good it is.

    <out>/                 the bundle (configs, weights, model card)
    <out>/training.json    figures on validation and test files with intervals, and all that made them

Runs go on after an interruption from `<out>.work`. The bundle is written beside its place and moved there last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import monai
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

import dicomguard
from dicomguard.errors import DicomguardError
from dicomguard.lab import finetune
from dicomguard.lab.cases import truths
from dicomguard.lab.data import Collection
from dicomguard.lab.datasets import Split
from dicomguard.lab.victims import adversarial, card, staged
from dicomguard.lab.victims.adversarial import Hardening
from dicomguard.lab.victims.figures import figures
from dicomguard.lab.victims.grid import Origin, Plan, Stage, Victim
from dicomguard.lab.victims.pictures import Advance, tensors
from dicomguard.lab.victims.staged import Material
from dicomguard.lab.victims.weights import Begun, begin
from dicomguard.lab.whole import damaged, read_object, replacing
from dicomguard.scoring import bundle, memory
from dicomguard.scoring.bundle import Bundle, Constructor, Inference, Input, Noise
from dicomguard.scoring.classifier import Classifier
from dicomguard.scoring.device import usable
from dicomguard.scoring.networks import EfficientNetLite0
from dicomguard.scoring.scorer import Scorer

REPORT = "training.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What may differ between runs of one victim on one collection.

    `epochs`: in all, shared out over the stages of the plan; None for the plan's own. `weights`: a file to begin with.
    `download`: whether missing ImageNet weights may be fetched. `hardening`: adversarial training.
    """

    seed: int = 0
    epochs: int | None = None
    weights: Path | None = None
    download: bool = True
    hardening: Hardening | None = None
    device: str = "cpu"


def train(
    victim: Victim,
    collection: Collection,
    out: Path,
    options: Options | None = None,
    *,
    work: Path | None = None,
    command: str = "",
    tick: Advance = lambda _stage, _share: None,
) -> dict[str, Any]:
    """Train, unless `out` holds what this very run makes; returns what training.json says.

    Raises:
        ConfigError: no such device.
        DicomguardError: weights that do not fit, a loss that is no number, no room for the bundle, or `out` holds
            anything else, which is never replaced.

    """
    options = options or Options()
    out = out.resolve()
    check(victim, out, options)
    kept = report_of(out)
    device = usable(options.device)
    name = name_of(victim, collection, options)
    cases = {split: collection.cases(split) for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)}
    begun = begin(victim, len(collection.labels), seed=options.seed, file=options.weights, download=options.download)
    whole = victim.plan if begun.pretrained or victim.origin is Origin.RANDOM else (victim.scratch or victim.plan)
    plan = _shortened(whole, options.epochs)
    reduction = _reduction(victim, begun, whole, plan, options)
    inference = inference_of(victim, collection)
    facts = {
        "victim": repr(victim),
        "plan": asdict(plan),
        "begun": begun.words,
        "network": _digest(begun.network.state_dict()),
        "labels": collection.labels,
        "bits": collection.bits,
        "content": collection.content,
        "cases": {split: [(case.key, case.truth) for case in part] for split, part in cases.items()},
        "seed": options.seed,
        "hardening": None if options.hardening is None else asdict(options.hardening),
        "version": dicomguard.__version__,
    }
    inputs = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    if kept is not None and kept.get("inputs") != inputs:
        raise DicomguardError(
            f"{out} holds {kept.get('name', 'a victim')} of another run: other settings, or other pictures.",
            advice="Choose another --out, or delete that folder.",
        )
    if kept is not None:
        _check_whole(out, kept)
        return kept
    folder = work or out.with_name(f"{out.name}.work")
    started = time.monotonic()
    memory.keep_buffers()
    try:
        pictures = {
            split: tensors(cases[split], collection, inference, folder, split.value, tick)
            for split in (Split.TRAIN, Split.VALIDATION)
        }
        run = _Run(victim, plan, options, device, folder / f"state-{inputs}.pt", tick)
        material = Material(pictures[Split.TRAIN], truths(cases[Split.TRAIN]), len(collection.labels))
        checked = Material(pictures[Split.VALIDATION], truths(cases[Split.VALIDATION]), len(collection.labels))
        state, best, history = run.fit(begun, material, checked)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        bundle.write(
            partial,
            state=state,
            metadata=_metadata(name, victim, collection, reduction),
            inference=inference,
            card="",
        )
        scorer = Scorer(Bundle(partial))
        report: dict[str, Any] = {
            "name": name,
            "victim": victim.name,
            "data_set": collection.name,
            "stands_in_for": {"network": victim.stands_in_for, "data_set": collection.stands_in_for},
            "reduction": reduction,
            "weights": begun.words,
            "pretrained": begun.pretrained,
            "hardening": facts["hardening"],
            "command": command,
            "seed": options.seed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "versions": _versions(),
            "inputs": inputs,
            "fingerprint": scorer.fingerprint,
            "labels": list(collection.labels),
            "counts": collection.counts(),
            "bits": collection.bits,
            "limits": list(collection.limits),
            "plan": asdict(plan),
            "history": history,
            "chosen_by": "balanced accuracy on validation"
            + ("" if options.hardening is None else ", mean of clean and attacked"),
            "chosen_figure": best,
        }
        for split in (Split.VALIDATION, Split.TEST):
            report[split.value] = figures(
                scorer,
                cases[split],
                collection.bits,
                seed=options.seed,
                tick=lambda done, split=split: tick(f"files, {split}", done),  # type: ignore[misc]
            )
        report["seconds"] = round(time.monotonic() - started, 1)
        (partial / bundle.CARD).write_text(card.text(report, collection))
        (partial / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        _put(partial, out)
    except OSError as error:
        raise DicomguardError(
            f"{out} cannot be written: {error.strerror or error}.",
            advice="Make room or choose another --out; what was trained so far is kept.",
        ) from error
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def check(victim: Victim, out: Path, options: Options) -> None:
    """Before hours are spent on it: whether the device is there, `out` is free or holds a victim, and weights fit.

    Raises:
        ConfigError: no such device.
        DicomguardError: `out` holds something else, or the weights cannot be read or do not fit.

    """
    usable(options.device)
    if report_of(out) is None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DicomguardError(f"{out} holds something that is no victim.", advice="Choose another --out.")
    if options.weights is not None:
        begin(victim, 2, seed=options.seed, file=options.weights)


def report_of(out: Path) -> dict[str, Any] | None:
    """What training.json of a trained victim says; None where there is none that can be read."""
    try:
        return read_object(out / REPORT)
    except (OSError, ValueError):
        return None


def name_of(victim: Victim, collection: Collection, options: Options) -> str:
    """The bundle's name: letters that a bundle may be named with."""
    words = [victim.name, collection.name, *(["hardened"] if options.hardening is not None else [])]
    plain = re.sub(r"[^a-z0-9._-]+", "-", "-".join(words).lower()).strip("-.")
    return plain[:63] or "victim"


def inference_of(victim: Victim, collection: Collection) -> Inference:
    """The bundle's inference config, with the noise of the noise-consistency paper."""
    size = [victim.side, victim.side]
    return Inference(
        network_def=Constructor.model_validate(victim.network_def(len(collection.labels))),
        preprocessing=[Constructor.model_validate({"_target_": "Resize", "spatial_size": size, "mode": "area"})],
        input=Input(planes=victim.planes or collection.planes, mean=list(victim.mean), std=list(victim.std), size=size),
        noise=Noise(levels=[0.01, 0.02, 0.03, 0.04, 0.05], repeats=8),
    )


class _Run:
    """One training, with its state on disk after each epoch."""

    def __init__(
        self, victim: Victim, plan: Plan, options: Options, device: torch.device, path: Path, tick: Advance
    ) -> None:
        self.victim = victim
        self.plan = plan
        self.options = options
        self.device = device
        self.path = path
        self.tick = tick

    def fit(self, begun: Begun, material: Material, checked: Material) -> tuple[dict[str, Any], float, list[Any]]:
        """The state dict of the chosen network, the figure that chose it, and a row for each epoch."""
        if self.plan.is_cached and begun.pretrained and self.options.hardening is None:
            assert isinstance(begun.network, EfficientNetLite0)
            return self._on_cached_features(begun.network, material, checked)
        model = Classifier(begun.network, self.victim.mean, self.victim.std).to(self.device)
        hardening, seed = self.options.hardening, self.options.seed
        saved = self._load()
        progress = staged.train(
            model,
            self.plan,
            material,
            lambda current: self._figure(current, checked),
            seed=seed,
            device=self.device,
            advance=self.tick,
            spoil=None if hardening is None else adversarial.spoiling(hardening),
            resume=None if saved is None else staged.from_saved(saved),
            keep=lambda progress: self._save(staged.as_saved(progress)),
        )
        return _cpu(model.network.state_dict()), progress.best, progress.history

    def _figure(self, model: Classifier, checked: Material) -> float:
        if self.options.hardening is not None:
            return adversarial.robust_figure(
                model,
                checked.pictures,
                checked.truth,
                checked.classes,
                self.options.hardening,
                self.device,
                seed=self.options.seed + 4,
            )
        outputs = staged.outputs_of(model, checked.pictures, self.device)
        return staged.balanced_accuracy(outputs, checked.truth, checked.classes)

    def _on_cached_features(
        self, network: EfficientNetLite0, material: Material, checked: Material
    ) -> tuple[dict[str, Any], float, list[Any]]:
        """`finetune`: the early blocks run once for each variant, which spares most of the time on two cores."""
        network.eval().requires_grad_(requires_grad=False)
        settings = dataclasses.replace(
            self.plan.varied, seed=self.options.seed, epochs=self.plan.stages[0].epochs, rate=self.plan.stages[0].rate
        )
        saved = self._load() or {"state": None, "best": -math.inf, "chosen": {}, "history": [], "waited": 0}
        latest: dict[str, Any] = {}
        images = material.pictures.astype(np.float32) / np.float32(65535)
        done = saved["state"] is not None and saved["state"]["epoch"] + 1 >= settings.epochs
        epochs = finetune.finetune(
            network, images, material.truth, settings, self.tick, resume=saved["state"], keep=latest.update
        )
        for epoch, current in () if done or saved["waited"] >= self.plan.patience else epochs:
            model = Classifier(current, self.victim.mean, self.victim.std).eval()
            figure = self._figure(model, checked)
            saved["history"].append({"stage": 0, "epoch": epoch, "figure": figure})
            if figure > saved["best"]:
                chosen = {name: value.clone() for name, value in current.state_dict().items()}
                saved.update(best=figure, chosen=chosen, waited=0)
            else:
                saved["waited"] += 1
            saved["state"] = latest
            self._save(saved)
            if saved["waited"] >= self.plan.patience:
                break
        return saved["chosen"], saved["best"], saved["history"]

    def _load(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            return cast("dict[str, Any]", torch.load(self.path, map_location="cpu", weights_only=True))
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise damaged(self.path, error) from error

    def _save(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(self.path) as partial:
                torch.save(state, partial)
        except RuntimeError as error:  # what torch makes of a full disk
            raise DicomguardError(
                f"{self.path} cannot be written: the disk may be full.",
                advice="Make room and give the same command again; it goes on after the last epoch that was kept.",
            ) from error


def _shortened(plan: Plan, epochs: int | None) -> Plan:
    """The plan with `epochs` in all, shared out as it shares its own; a stage without any falls out."""
    if epochs is None:
        return plan
    if epochs < 1:
        raise DicomguardError(f"{epochs} epochs train nothing.", advice="Give at least 1.")
    whole = sum(stage.epochs for stage in plan.stages)
    stages: list[Stage] = []
    begun = ended = 0
    for stage in plan.stages:
        ended += stage.epochs
        upto = round(ended / whole * epochs)
        if upto > begun:
            stages.append(dataclasses.replace(stage, epochs=upto - begun))
        begun = upto
    return dataclasses.replace(plan, stages=tuple(stages))


def _reduction(victim: Victim, begun: Begun, whole: Plan, plan: Plan, options: Options) -> str:
    words = [victim.reduction] if victim.reduction else []
    if victim.origin is not Origin.RANDOM and not begun.pretrained:
        words.append(begun.words[:1].upper() + begun.words[1:] + ".")
    planned, given = (sum(stage.epochs for stage in one.stages) for one in (whole, plan))
    if given < planned:
        words.append(f"At most {given} epochs instead of {planned}.")
    if options.hardening is not None and victim.plan.is_cached:
        words.append("Adversarial training moves the last blocks only.")
    return " ".join(words)


def _metadata(name: str, victim: Victim, collection: Collection, reduction: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0.0",
        "labels": collection.labels,
        "task": " or ".join(collection.labels),
        "description": f"Victim {victim.name} of the lab. {reduction}".strip(),
        "authors": "dicomguard",
        "copyright": "Apache-2.0",
        "data_source": collection.source,
        "intended_use": "To be attacked in experiments. Not a medical device; not for diagnosis.",
        "monai_version": monai.__version__,
        "pytorch_version": str(torch.__version__),
        "numpy_version": np.__version__,
    }


def _versions() -> dict[str, str]:
    return {
        "dicomguard": dicomguard.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "monai": monai.__version__,
        "numpy": np.__version__,
    }


def _put(partial: Path, out: Path) -> None:
    """Move a whole folder into its place, where an empty one may stand."""
    if out.exists():
        out.rmdir()
    partial.rename(out)


def _check_whole(out: Path, kept: dict[str, Any]) -> None:
    """Raises DicomguardError where the bundle is not the one that the report speaks of."""
    try:
        is_whole = Scorer(Bundle(out)).fingerprint == kept.get("fingerprint")
    except DicomguardError:
        is_whole = False
    if not is_whole:
        raise DicomguardError(
            f"{out} is not the bundle any more that its {REPORT} speaks of.",
            advice="Delete the folder and train again.",
        )


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of the weights that training begins with: a file of the same name may hold others."""
    total = hashlib.sha256()
    for name, value in state.items():
        total.update(name.encode())
        total.update(cast("NDArray[Any]", value.detach().cpu().contiguous().numpy()).tobytes())
    return total.hexdigest()


def _cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
