"""A protected model on disk, in MONAI-bundle layout, read by a strict loader of our own.

    configs/metadata.json      what the model is, its labels, its weights' SHA-256
    configs/inference.json     network, transforms and noise by name, literal arguments only
    models/model.safetensors   weights, stored as float16 where nothing is lost by it
    docs/README.md             model card
    enrolment/                 what was measured on clean images (absent until enrolled; see `enrolment`)

No pickle, no expressions (`$`), no references (`@`), no imports by name beyond the allow lists, no downloads; unknown
keys are refused, because a misspelt setting that is silently ignored would protect nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from dicomguard.errors import BundleError
from dicomguard.scoring import enrolment, networks
from dicomguard.scoring.calibration import STATISTIC
from dicomguard.scoring.consistency import NoiseSettings
from dicomguard.scoring.files import parse, read_pinned
from dicomguard.scoring.head import Head, HeadKind
from dicomguard.scoring.preprocess import Preprocess

METADATA = Path("configs/metadata.json")
INFERENCE = Path("configs/inference.json")
WEIGHTS = Path("models/model.safetensors")
CARD = Path("docs/README.md")

Label = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=4000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metadata(_Strict):
    """configs/metadata.json, the part of MONAI's metadata schema that says what the model is."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=64)]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    task: Text = ""
    description: Text = ""
    authors: Text = ""
    copyright: Text = ""
    data_source: Text = ""
    intended_use: Text = ""
    monai_version: Text = ""
    pytorch_version: Text = ""
    numpy_version: Text = ""

    @field_validator("labels", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("labels must differ")
        return value


class Constructor(BaseModel):
    """`{"_target_": name, argument: literal, ...}` as MONAI writes it; only literals pass."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)
    target: Annotated[str, Field(alias="_target_", max_length=100)]

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything beside `_target_`."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _only_literals(self) -> Self:
        for name, value in self.arguments.items():
            _refuse_expressions(name, value)
        return self


class Input(_Strict):
    """How the network takes its input: noise goes on `planes`, which are then replicated to one per mean."""

    planes: Annotated[int, Field(ge=1, le=3)]
    mean: Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=1, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=1, max_length=3)]
    size: Annotated[list[Annotated[int, Field(ge=8, le=4096)]], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std must have the same length")
        if self.planes == 2 or self.planes not in (1, len(self.mean)):
            raise ValueError("planes must be 1, or 3 with three means")
        return self


class Noise(_Strict):
    """Uniform noise as fractions of the unit range, clipped to it."""

    levels: Annotated[list[Annotated[float, Field(gt=0, le=0.5)]], Field(min_length=1, max_length=16)]
    repeats: Annotated[int, Field(ge=1, le=64)]

    def settings(self) -> NoiseSettings:
        """The same as the check takes it."""
        return NoiseSettings(tuple(self.levels), self.repeats)


class Inference(_Strict):
    """configs/inference.json."""

    network_def: Constructor
    preprocessing: Annotated[list[Constructor], Field(max_length=8)]
    input: Input
    noise: Noise
    head: Literal["softmax", "multilabel"] = "softmax"

    def preprocess(self) -> Preprocess:
        """The transforms, built. Raises BundleError where one is not allowed."""
        return Preprocess(self.input.planes, [(t.target, t.arguments) for t in self.preprocessing])


def _refuse_expressions(name: str, value: Any) -> None:
    if isinstance(value, str) and (value[:1] in "$@%" or "://" in value):
        raise ValueError(f"{name}: expressions, references and addresses are not allowed ({value[:20]!r})")
    if isinstance(value, dict):
        if any(str(key).startswith("_") for key in value):
            raise ValueError(f"{name}: nested constructors are not allowed")
        for key, member in value.items():
            _refuse_expressions(f"{name}.{key}", member)
    if isinstance(value, list):
        for member in value:
            _refuse_expressions(name, member)


class Bundle:
    """A bundle as it was read: typed configs and the network with its weights in float32, in evaluation mode."""

    def __init__(self, folder: Path) -> None:
        """Read everything; nothing is trusted before its checksum holds.

        Raises:
            BundleError: a file is missing, oversized, malformed or not what the metadata pin; the text names it.

        """
        self.folder = folder
        if not folder.is_dir():
            raise BundleError(
                f"{folder} is no bundle folder.", advice="Give the folder that holds configs/ and models/."
            )
        self.metadata = parse(Metadata, folder / METADATA)
        self.inference = parse(Inference, folder / INFERENCE)
        state = _read_weights(folder / WEIGHTS, self.metadata.weights_sha256)
        self.network = networks.build(self.inference.network_def.target, self.inference.network_def.arguments)
        fill(self.network, state)
        self.head = Head(HeadKind(self.inference.head), self.metadata.labels)
        if self.head.kind is HeadKind.SOFTMAX and len(self.metadata.labels) < 2:
            raise BundleError(
                f"{folder / METADATA} names one label; a softmax head excludes at least two.",
                advice='Name both classes, or write "head": "multilabel" in configs/inference.json.',
            )
        self.fingerprint = fingerprint(self.metadata, self.inference)


def fingerprint(metadata: Metadata, inference: Inference) -> str:
    """SHA-256 in hexadecimal over weights, network, transforms, noise settings, labels and the statistic's version."""
    facts = {
        "weights": metadata.weights_sha256,
        "labels": metadata.labels,
        "inference": inference.model_dump(mode="json", by_alias=True),
        "statistic": STATISTIC,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` strictly, in float32.

    Raises:
        BundleError: names or shapes differ, or a weight is NaN or infinite.

    """
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise BundleError(f"weight {broken[0]} holds NaN or infinity.", advice="Export the model again.")
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, strict=True)
    except RuntimeError as error:
        raise BundleError(
            f"the weights do not fit the network: {' '.join(str(error).split())[:400]}.",
            advice="Check the network's name and arguments (num_classes, width) against the training code.",
        ) from error


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are stored: float16 where the values fit its range, float32 elsewhere (batch variances)."""
    limit = torch.finfo(torch.float16).max
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        is_variance = name.endswith("running_var")
        fits = value.is_floating_point() and not is_variance and bool((value.abs() < limit).all())
        stored[name] = value.half() if fits else value.clone()
    return stored


def write(
    folder: Path,
    *,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    inference: Inference,
    card: str,
) -> Metadata:
    """Write a bundle without calibration; `metadata` is everything but the checksum. Overwrites what is there."""
    data = save_safetensors(halved(state))
    described = Metadata(**metadata, weights_sha256=hashlib.sha256(data).hexdigest())
    for name in (METADATA, WEIGHTS, CARD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / enrolment.FOLDER, ignore_errors=True)  # it was made for what stood here before
    (folder / WEIGHTS).write_bytes(data)
    _write_json(folder / METADATA, described)
    _write_json(folder / INFERENCE, inference)
    (folder / CARD).write_text(card)
    return described


def describe(folder: Path) -> dict[str, Any]:
    """What `bundle show` prints: JSON-ready, after a complete and strict load.

    Raises:
        BundleError: as the loader does.

    """
    bundle = Bundle(folder)
    return {
        "name": bundle.metadata.name,
        "version": bundle.metadata.version,
        "task": bundle.metadata.task,
        "labels": list(bundle.metadata.labels),
        "head": bundle.inference.head,
        "network": bundle.inference.network_def.target,
        "parameters": sum(p.numel() for p in bundle.network.parameters()),
        "input_size": list(bundle.inference.input.size),
        "planes": bundle.inference.input.planes,
        "noise_levels": list(bundle.inference.noise.levels),
        "noise_repeats": bundle.inference.noise.repeats,
        "weights_sha256": bundle.metadata.weights_sha256,
        "weights_bytes": (folder / WEIGHTS).stat().st_size,
        "fingerprint": bundle.fingerprint,
    }


def _write_json(path: Path, model: BaseModel) -> None:
    text = json.dumps(model.model_dump(mode="json", by_alias=True), indent=2)
    path.write_text(text + "\n")


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    data = read_pinned(path, sha256)
    try:
        weights: dict[str, Tensor] = load_safetensors(data)
    except SafetensorError as error:
        raise BundleError(f"{path} is no safetensors file: {error}.", advice="Import the weights again.") from error
    return weights
