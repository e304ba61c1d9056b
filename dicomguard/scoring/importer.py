"""Bring your own model: a state dict becomes a bundle, offline, without ever running what is in the file.

A `.pt` file is a pickle. It is opened with `weights_only=True` (tensors and containers, no code) in a process of its
own with limits on memory, time and file size (`importer_child`), which hands back safetensors; nothing else is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import monai
import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dicomguard.errors import BundleError
from dicomguard.scoring import bundle, networks
from dicomguard.scoring.bundle import Constructor, Inference, Input, Noise
from dicomguard.scoring.scorer import Scorer

TIMEOUT_S = 300
DEFAULT_NOISE = Noise(levels=[0.01, 0.02, 0.03, 0.04, 0.05], repeats=8)


def import_bundle(
    weights: Path,
    out: Path,
    *,
    name: str,
    network: str,
    network_args: Mapping[str, Any] | None = None,
    labels: tuple[str, ...],
    head: Literal["softmax", "multilabel"] = "softmax",
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    planes: int = 1,
    mode: str = "area",
    description: str = "",
) -> dict[str, Any]:
    """Write a bundle at `out` (a folder that does not exist yet) and return its description.

    `weights`: .pt, .pth or .safetensors with a state dict, or with one under `state_dict`, `model_state_dict`, `model`
    or `net`. `labels`: in the order of the outputs (negative and positive class of a single one). `image_size`: (rows,
    columns) that the network takes. `mean`,
    `std`: of the unit range [0, 1], one number for each input plane of the network. `planes`: 1 where the network is
    fed one gray plane (replicated), 3 for colour. The bundle is not enrolled: do that before it is armed.

    Raises:
        BundleError: the file is no state dict, does not fit the network, or the network does not run.

    """
    if out.exists():
        raise BundleError(f"{out} exists already.", advice="Name a folder that does not exist, or remove this one.")
    inference = _inference(
        network, network_args or {}, image_size=image_size, mean=mean, std=std, planes=planes, mode=mode, head=head
    )
    built = networks.build(network, inference.network_def.arguments)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as scratch:
        state = read_state(weights, Path(scratch) / "weights.safetensors")
        bundle.fill(built, state)
        folder = Path(scratch) / "bundle"
        metadata = {
            "name": name,
            "version": "1.0.0",
            "labels": labels,
            "task": "multi-label classification" if head == "multilabel" else "classification",
            "description": description,
            "monai_version": monai.__version__,
            "pytorch_version": str(torch.__version__),
            "numpy_version": np.__version__,
        }
        try:
            bundle.write(folder, state=built.state_dict(), metadata=metadata, inference=inference, card=_card(metadata))
        except ValidationError as error:
            raise _refused(error) from error
        Scorer.load(folder)
        folder.rename(out)
    return bundle.describe(out)


def read_state(weights: Path, scratch: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by way of the isolated process; `scratch` is where it writes safetensors.

    Raises:
        BundleError: what the child found wrong, in its words; or that it ran into a limit.

    """
    if not weights.is_file():
        raise BundleError(f"{weights} is no file.", advice="Give the path of a .pt, .pth or .safetensors file.")
    command = [sys.executable, "-I", "-m", "dicomguard.scoring.importer_child", str(weights.resolve()), str(scratch)]
    # An empty environment but for PATH: nothing in it may redirect what the child loads or where it connects.
    environment = {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{weights} took longer than {TIMEOUT_S} s to read.", advice="Is it a state dict?") from error
    if done.returncode != 0:
        raise BundleError(f"{weights}: {_reason(done)}.", advice="Save it with torch.save(model.state_dict(), path).")
    try:
        state: dict[str, Tensor] = load_file(scratch)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{weights} could not be converted: {error}.") from error
    return state


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    try:
        return str(json.loads(done.stdout)["error"])[:400]
    except (ValueError, KeyError, TypeError):
        return f"the reading process ended with status {done.returncode} (a limit on memory or time, or a broken file)"


def _inference(
    network: str,
    arguments: Mapping[str, Any],
    *,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    planes: int,
    mode: str,
    head: Literal["softmax", "multilabel"],
) -> Inference:
    try:
        return Inference(
            network_def=Constructor.model_validate({"_target_": network, **arguments}),
            preprocessing=[
                Constructor.model_validate({"_target_": "Resize", "spatial_size": list(image_size), "mode": mode})
            ],
            input=Input(planes=planes, mean=list(mean), std=list(std), size=list(image_size)),
            noise=DEFAULT_NOISE,
            head=head,
        )
    except ValidationError as error:
        raise _refused(error) from error


def _refused(error: ValidationError) -> BundleError:
    first = error.errors()[0]
    return BundleError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.", advice="Correct this value.")


def _card(metadata: Mapping[str, Any]) -> str:
    return (
        f"# {metadata['name']}\n\n{metadata['description'] or 'An imported model.'}\n\n"
        f"Labels: {', '.join(metadata['labels'])}. Not enrolled yet: describe here what it was "
        "trained on, what it is meant for, and what the noise check reaches on it.\n"
    )
