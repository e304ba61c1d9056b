"""What was seen of many images, one line of JSON each, so that a long measurement goes on where it was interrupted.

What is kept is named by all that it rests on: after a change of any of it nothing old matches, and all is made anew.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dicomguard
from dicomguard.scoring.calibration import Evidence
from dicomguard.scoring.consistency import Draw, Observation


def name_of(*facts: Any) -> str:
    """Twelve hex digits that stand for `facts`, values that JSON knows, for the names of what is kept."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def source_digest(*packages: str) -> str:
    """SHA-256 over the sources of parts of dicomguard, such as `attacks`: what their results were made by."""
    total = hashlib.sha256()
    for name, path in _sources(packages):
        total.update(f"{name}\n".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def code_digest(*places: str) -> str:
    """The same over what files and folders of dicomguard do: comments, docstrings and layout do not count."""
    total = hashlib.sha256()
    for name, path in _sources(places):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        total.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return total.hexdigest()


def _sources(places: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Every Python file of files and folders of dicomguard, by its name there; ValueError where there is none."""
    root = Path(dicomguard.__file__).parent
    for place in places:
        found = [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py"))
        if not found:
            raise ValueError(f"dicomguard has no part {place}")
        for path in found:
            yield path.relative_to(root).as_posix(), path


def imports_of(place: str, *, without: Collection[str] = ()) -> tuple[str, ...]:
    """A module of dicomguard, such as `lab/rules.py`, and all of dicomguard that it imports, and so on, in order.

    Imports within functions count; the packages that a module stands in do not, unless names are imported from them.
    `without`: modules that are left out, with what only they import.
    """
    root = Path(dicomguard.__file__).parent
    found: set[str] = set()
    waiting = [place]
    while waiting:
        here = waiting.pop()
        if here in found or here in without:
            continue
        found.add(here)
        for node in ast.walk(ast.parse((root / here).read_text("utf-8"))):
            for name in _imported(node):
                waiting += [path for path in _files(name, root) if path not in found]
    return tuple(sorted(found))


def _imported(node: ast.AST) -> list[str]:
    """Dotted names that may be modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _files(name: str, root: Path) -> list[str]:
    """The module or the package of that name."""
    first, *rest = name.split(".")
    if first != "dicomguard" or not rest:
        return []
    places = (Path(*rest).with_suffix(".py"), Path(*rest) / "__init__.py")
    return [place.as_posix() for place in places if (root / place).is_file()]


class Journal:
    """Results by key in an append-only file that belongs to one fingerprint; others' lines are ignored."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._rows: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            text = path.read_text()
            if text and not text.endswith("\n"):
                with path.open("a") as file:  # the next row must not be lost with the one that was cut off
                    file.write("\n")
            for line in text.splitlines():
                row = _parsed(line)
                if row is not None and row.get("fingerprint") == fingerprint:
                    self._rows[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        """True where `key` was measured already."""
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The row of `key`."""
        return self._rows[key]

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Write one result."""
        whole = {"key": key, "fingerprint": self._fingerprint, **row}
        with self._path.open("a") as file:
            file.write(json.dumps(whole) + "\n")
        self._rows[key] = whole


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # the line that was being written when the last run was stopped
        return None
    return row if isinstance(row, dict) and "key" in row else None


def to_row(evidence: Evidence) -> dict[str, Any]:
    """Evidence as JSON-ready values, log-odds to five decimals."""
    return {
        "clean": np.round(evidence.seen.clean, 5).tolist(),
        "noisy": np.round(evidence.seen.noisy, 5).tolist(),
        "distances": None if evidence.distances is None else np.round(evidence.distances, 4).tolist(),
        "guard_share": evidence.guard_share,
    }


def to_evidence(row: dict[str, Any], draws: Sequence[Draw]) -> Evidence:
    """The inverse of `to_row`, for the draws that were made; further keys of the row are ignored."""
    return Evidence(
        Observation(np.array(row["clean"]), np.array(row["noisy"]), tuple(draws)),
        None if row["distances"] is None else np.array(row["distances"]),
        row["guard_share"],
    )
