"""Every picture of a listing read once: which cannot be read, which are copies, what the others look like.

Kept on disk where a folder is given, under a name made of what the files are, because a large set takes minutes.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.listing import Entry, Picture
from dicomguard.lab.duplicates import Signatures, signatures
from dicomguard.lab.whole import damaged, replacing

_VERSION = "1"
_UNREADABLE_SHARE = 0.02
_NAMED = 5  # file names in a sentence
# Everything that decoders of pictures and of DICOM raise on bad files; Pillow's PNG reader raises SyntaxError.
_BAD_FILE = (
    OSError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,
    ValueError,
    SyntaxError,
    KeyError,
    struct.error,
    DicomguardError,
    PIL.Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Of N entries: `digests` (SHA-256 of shape and samples), `colours` (N,) planes, `found` what they look like.

    `unreadable`: what was wrong with those that are not among the N, by path.
    """

    entries: list[Entry]
    digests: list[str]
    colours: NDArray[np.int64]
    found: Signatures
    unreadable: dict[str, str]


def take(entries: Sequence[Entry], cache: Path | None, advance: Callable[[float], None]) -> Inventory:
    """Read them all.

    Raises:
        DicomguardError: more than 2 % of them, and more than one, cannot be read.

    """
    stamps = "\n".join([_VERSION, *(f"{entry.example.path} {entry.stamp}" for entry in entries)])
    kept = None if cache is None else cache / f"inventory-{hashlib.sha256(stamps.encode()).hexdigest()[:16]}.npz"
    if kept is not None and kept.exists():
        try:
            with kept.open("rb") as file, np.load(file, allow_pickle=False) as held:
                facts = {name: held[name] for name in held.files}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise damaged(kept, error) from error
    else:
        facts = _read(entries, advance)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as partial, partial.open("wb") as made:
                np.savez(made, **facts)  # type: ignore[arg-type] # numpy types its keyword arguments as `allow_pickle`
    readable = facts["wrong"] == ""
    unreadable = {
        str(entry.example.path): str(wrong)
        for entry, wrong, good in zip(entries, facts["wrong"], readable, strict=True)
        if not good
    }
    _refuse_many(unreadable, len(entries))
    return Inventory(
        [entry for entry, good in zip(entries, readable, strict=True) if good],
        facts["digests"][readable].tolist(),
        facts["colours"][readable],
        Signatures(facts["copies"][readable], facts["frequencies"][readable]),
        unreadable,
    )


def _read(entries: Sequence[Entry], advance: Callable[[float], None]) -> dict[str, NDArray[np.generic]]:
    digests, colours, wrong = [], [], []
    copies = np.zeros((len(entries), 32, 32), np.float32)
    frequencies = np.zeros((len(entries), 8, 8), np.float32)
    for place, entry in enumerate(entries):
        try:
            picture = entry.read()
            seen = signatures([luminance(picture)])
        except _BAD_FILE as error:
            digests.append("")
            colours.append(0)
            wrong.append(_one_line(error))
        else:
            digests.append(hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).data).hexdigest())
            colours.append(3 if picture.ndim == 3 else 1)
            wrong.append("")
            copies[place], frequencies[place] = seen.copies[0], seen.frequencies[0]
        advance(1 / len(entries))
    return {
        "digests": np.array(digests, np.str_),
        "colours": np.array(colours, np.int64),
        "wrong": np.array(wrong, np.str_),
        "copies": copies,
        "frequencies": frequencies,
    }


def luminance(picture: Picture) -> Picture:
    """Shape (H, W) or (H, W, 3) to (H, W)."""
    return picture if picture.ndim == 2 else np.asarray(PIL.Image.fromarray(picture).convert("L"))


def _refuse_many(unreadable: dict[str, str], count: int) -> None:
    if len(unreadable) > max(1, math.floor(_UNREADABLE_SHARE * count)):
        name, wrong = next(iter(unreadable.items()))
        raise DicomguardError(
            f"{len(unreadable)} of {count} pictures cannot be read, among them {some(unreadable)} (the first: {name}: "
            f"{wrong}).",
            advice="Copy or download the data set again, or take these files out.",
        )


def some(paths: Sequence[str] | dict[str, str]) -> str:
    """The names of the first few."""
    named = ", ".join(Path(path).name for path in list(paths)[:_NAMED])
    return named + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
