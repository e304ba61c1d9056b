"""The isolated process of `importer`: reads one weights file under limits and writes safetensors.

Run as `python -I -m dicomguard.scoring.importer_child WEIGHTS OUT`; prints one JSON object with `error` where it fails.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_MEMORY_BYTES = 24 << 30  # address space: the libraries alone map several GiB
_FILE_BYTES = 2 << 30
_CPU_S = 200
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network")
# What wrappers put in front of every name: DataParallel, Lightning, torch.compile.
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")


class NoStateDictError(Exception):
    """The file holds something else; the text says what."""


def main(source: Path, target: Path) -> int:
    """Convert; 0 where it worked."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        save_file(state_of(read(source)), target)
    except (NoStateDictError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        print(json.dumps({"error": " ".join(str(error).split())[:400].rstrip(".")}))
        return 1
    return 0


def read(source: Path) -> Any:
    """The file's content: tensors in containers, never code.

    Raises:
        NoStateDictError: it holds pickled objects.

    """
    if source.suffix == ".safetensors":
        return load_file(source)
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NoStateDictError(
            "it holds pickled objects beside tensors, or is no weights file; such a file could run code and is refused"
        ) from error


def state_of(content: Any) -> dict[str, Tensor]:
    """The state dict in `content`, without wrappers' prefixes, each tensor on its own memory."""
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise NoStateDictError("it holds no state dict (a mapping of names to tensors)")
    names = [str(name) for name in content]
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
    # clone: tensors that share memory (tied weights) cannot be stored as they are.
    return {name: value.detach().clone().contiguous() for name, value in zip(names, content.values(), strict=True)}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
