"""Noise curves of many images, one line of JSON each, so that a long measurement goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dicomguard.scoring.consistency import NoiseCurve


class Journal:
    """Results by key in an append-only file that belongs to one fingerprint; others' lines are ignored."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._rows: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
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


def to_row(curve: NoiseCurve) -> dict[str, Any]:
    """A curve as JSON-ready values."""
    return {
        "logit": curve.logit,
        "probability": curve.probability,
        "margin": curve.margin,
        "probability_drops": list(map(float, curve.probability_drops)),
        "logit_drops": list(map(float, curve.logit_drops)),
        "noisy_margins": list(map(float, curve.noisy_margins)),
    }


def to_curve(row: dict[str, Any]) -> NoiseCurve:
    """The inverse of `to_row`; further keys of the row are ignored."""
    return NoiseCurve(
        logit=row["logit"],
        probability=row["probability"],
        margin=row["margin"],
        probability_drops=np.array(row["probability_drops"]),
        logit_drops=np.array(row["logit_drops"]),
        noisy_margins=np.array(row["noisy_margins"]),
    )


def measured(
    keys: Iterable[str], journal: Journal, measure: Callable[[str], NoiseCurve], advance: Callable[[], None]
) -> list[NoiseCurve]:
    """The curve of every key, from the journal or from `measure`."""
    curves = []
    for key in keys:
        if key not in journal:
            journal.put(key, to_row(measure(key)))
        curves.append(to_curve(journal[key]))
        advance()
    return curves
