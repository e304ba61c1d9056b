"""Files that are written whole or not at all: beside their place first, then put there in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dicomguard.errors import DicomguardError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at `path`: it is put there once its last byte is on the disk.

    Where writing it raises, `path` is as it was, and nothing lies beside it. The folder must be there. Two processes
    that write the same `path` do not meet: the one that ends last is found there.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Any text, in UTF-8; its folder is made. Raises DicomguardError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from error


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Any result that JSON knows, and a line feed; its folder is made. Raises DicomguardError."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises OSError and ValueError: what is to be done about it, only the caller knows."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")  # noqa: TRY004 - as json does for what is no JSON at all
    return found


def damaged(path: Path, error: Exception) -> DicomguardError:
    """What to do about a file that another program, or a dying disk, left in a place of ours."""
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return DicomguardError(f"{path} cannot be read: {words}.", advice="Delete it; what it held is made again.")


def not_written(path: Path, error: OSError) -> DicomguardError:
    """What a person reads when a disk is full or a folder is not theirs."""
    return DicomguardError(
        f"{path} cannot be written: {error.strerror or error}.",
        advice="What was finished is kept: make room and give the same command again.",
    )
