"""Listings of picture files: a folder for each class, and tables with groups."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.listing import Entry, Listing, Maker
from dicomguard.lab.datasets import Example, Split, load_colour, load_gray
from dicomguard.lab.instances import secondary_capture

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"})
_SPLITS = {split.value: split for split in Split}
NO_PATIENTS = "The source names no patients: different pictures of one may stand on both sides of a split."


def entry(
    path: Path, label: str, group: str, *, key: str, planes: int, root: Path | None = None, pinned: Split | None = None
) -> Entry:
    """One picture file, read in gray or in colour. `root`: what the stamp names it under, so that a folder may move."""
    read = partial(load_colour if planes == 3 else load_gray, path)
    return Entry(Example(path, label, group), key, read, stamp(path, root), pinned)


def stamp(path: Path, root: Path | None = None) -> str:
    """Name, size and time of change; that a file is missing is found out when it is read."""
    try:
        told = path.stat()
    except OSError:
        return "missing"
    name = path.relative_to(root) if root is not None and path.is_relative_to(root) else path
    return f"{name} {told.st_size} {told.st_mtime_ns}"


def files(folder: Path) -> list[Path]:
    """The picture files under a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def planes_of(paths: Iterable[Path]) -> int:
    """3 where one of the first few files shows colours, else 1: gray pictures are often stored as RGB."""
    for path in list(paths)[:24]:
        try:
            with PIL.Image.open(path) as image:
                colours = np.asarray(image.convert("RGB")).astype(np.int16)
        except (OSError, ValueError, SyntaxError):
            continue  # counted and named when it is read for good
        # A few levels apart is what JPEG makes of gray.
        if np.abs(colours - colours[..., :1]).max() > 24:
            return 3
    return 1


def folders(root: Path, *, maker: Maker | None = None, bits: int = 8) -> Listing:
    """A folder for each class, named like it; the classes in alphabetical order. The group is the file.

    Raises:
        DicomguardError: there are not at least two folders with pictures.

    """
    there = {folder.name: files(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
    found = {name: paths for name, paths in there.items() if paths}
    empty = [name for name in there if name not in found and not name.startswith(".")]
    if len(found) < 2:
        raise DicomguardError(
            f"{root} holds {len(found)} folders with pictures; a folder for each of two or more classes is needed.",
            advice=f"Picture files end in {', '.join(sorted(SUFFIXES))}. DICOM files need a labels.csv beside them.",
        )
    planes = planes_of(path for paths in found.values() for path in paths[:8])
    entries = [
        entry(
            path,
            label,
            path.relative_to(root).as_posix(),
            key=path.relative_to(root).as_posix(),
            planes=planes,
            root=root,
        )
        for label, paths in found.items()
        for path in paths
    ]
    return Listing(
        name=root.name,
        labels=tuple(found),
        entries=entries,
        source=f"Folder {root.name}, a folder for each class.",
        maker=maker or secondary_capture,
        bits=bits,
        planes=planes,
        limits=(NO_PATIENTS, *([f"No class, for they hold no pictures: {', '.join(empty)}."] if empty else [])),
    )


def table(path: Path, *, maker: Maker | None = None, bits: int = 8) -> Listing:
    """A CSV with the columns path, label, group, and split where the splits are given (train, validation, ...).

    Raises:
        DicomguardError: the table cannot be read, lacks a column, is empty, has one class, or an unknown split.

    """
    rows = read_table(path, ("path", "label", "group"))
    given = "split" in rows[0]
    unknown = sorted({row["split"] for row in rows} - _SPLITS.keys()) if given else []
    if unknown:
        raise DicomguardError(
            f"{path}: {unknown[0]!r} is no split.", advice=f"Write one of {', '.join(_SPLITS)}, or drop the column."
        )
    planes = planes_of(path.parent / row["path"] for row in rows[:: max(len(rows) // 24, 1)])
    entries = [
        entry(
            path.parent / row["path"],
            row["label"],
            row["group"],
            key=row["path"],
            planes=planes,
            root=path.parent,
            pinned=_SPLITS[row["split"]] if given else None,
        )
        for row in rows
    ]
    return Listing(
        name=path.stem,
        labels=labels_of(path, (row["label"] for row in rows)),
        entries=distinct(path, entries),
        source=f"Table {path.name}.",
        maker=maker or secondary_capture,
        bits=bits,
        planes=planes,
        strict=given,
    )


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV, each with at least `columns`.

    Raises:
        DicomguardError: it cannot be read, lacks a column, or is empty.

    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DicomguardError(f"{path} cannot be read as a table: {error}.", advice="Give a CSV in UTF-8.") from error
    if not rows:
        raise DicomguardError(f"{path} lists nothing.", advice=f"It needs the columns {', '.join(columns)}.")
    lacking = [name for name in columns if name not in rows[0]]
    if lacking:
        raise DicomguardError(
            f"{path} has no column {lacking[0]}.", advice=f"It needs the columns {', '.join(columns)}."
        )
    for number, row in enumerate(rows, 2):
        if any(not row[name] for name in columns):
            raise DicomguardError(f"{path}, line {number}: a value is missing.", advice="Fill it in, or drop the line.")
    return rows


def labels_of(path: Path, labels: Iterable[str]) -> tuple[str, ...]:
    """The different ones in alphabetical order. Raises DicomguardError where there is one only."""
    found = tuple(sorted(set(labels)))
    if len(found) < 2:
        raise DicomguardError(f"{path} names one class only, {found[0]}.", advice="At least two are needed.")
    return found


def distinct(path: Path, entries: list[Entry]) -> list[Entry]:
    """The entries as they are. Raises DicomguardError where one picture is listed twice."""
    refuse_twice(path, ((one.example.path, one.key) for one in entries))
    return entries


def refuse_twice(table: Path, listed: Iterable[tuple[Hashable, str]]) -> None:
    """Raises DicomguardError where a table lists one thing twice: what it is, and what the table calls it."""
    seen: set[Hashable] = set()
    for one, called in listed:
        if one in seen:
            raise DicomguardError(f"{table} lists {called} twice.", advice="Drop one of the lines.")
        seen.add(one)
