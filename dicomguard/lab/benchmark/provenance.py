"""What a cell's result rests on beside its settings: the code behind it and the library that computes."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from dicomguard.lab.measure import code_digest

_PICTURES = (
    "pixels",
    "lab/data",
    "lab/cases.py",
    "lab/datasets.py",
    "lab/duplicates.py",
    "lab/instances.py",
    "lab/stored.py",
)
_VICTIM = (*_PICTURES, "scoring", "lab/victims", "lab/finetune.py", "lab/benchmark/kinds/victims.py")
_FILES = (
    *_PICTURES,
    "scoring",
    "attacks",
    "enrol",
    "lab/attacks",
    "lab/detectors",
    "lab/certificates.py",
    "lab/figures.py",
    "lab/benchmark/attacking.py",
    "lab/benchmark/files.py",
    "lab/benchmark/judging.py",
    "lab/benchmark/shifts.py",
    "lab/benchmark/kinds",
)


@cache
def made_by(kind: str) -> str:
    """Twelve hex digits that change with the code behind a kind of cell, or with torch; comments do not count."""
    return code_digest(*(_VICTIM if kind == "victim" else _FILES))[:12] + f", torch {version('torch')}"
