"""Reading what a bundle or an enrolment is made of: bounded, typed, and nothing trusted before its checksum holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dicomguard.errors import BundleError

Model = TypeVar("Model", bound=BaseModel)

_CONFIG_BYTES = 16 << 20
_WEIGHTS_BYTES = 2 << 30


def parse(kind: type[Model], path: Path) -> Model:
    """A JSON file as a model; raises as `parse_named`."""
    return parse_named(kind, path)[0]


def parse_named(kind: type[Model], path: Path) -> tuple[Model, str]:
    """A JSON file as a model, and the SHA-256 of the very bytes that it was read from.

    Raises:
        BundleError: it cannot be read, is oversized or does not fit; the text names the file and the field.

    """
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise BundleError(f"{path} is larger than {_CONFIG_BYTES >> 20} MiB.", advice="This is no bundle config.")
        data = path.read_bytes()
        return kind.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", advice="Restore the bundle's files.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the file"
        raise BundleError(f"{path}: {where}: {first['msg']}.", advice="Correct it, or restore the file.") from error


def read_pinned(path: Path, sha256: str) -> bytes:
    """The bytes of a weight file whose SHA-256 is pinned elsewhere.

    Raises:
        BundleError: it cannot be read, is oversized, or is not the one that is pinned.

    """
    try:
        if path.stat().st_size > _WEIGHTS_BYTES:
            raise BundleError(f"{path} is larger than {_WEIGHTS_BYTES >> 30} GiB.", advice="Use a smaller model.")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}.", advice="Restore the file, or import the weights again."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BundleError(
            f"{path} has SHA-256 {found[:12]}..., {sha256[:12]}... is pinned: it was truncated or changed.",
            advice="Restore the file from where it came from; do not edit the checksum.",
        )
    return data
