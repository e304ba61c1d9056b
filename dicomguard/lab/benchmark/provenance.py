"""What a cell's result rests on beside its settings: the code behind it and the libraries that compute."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from types import MappingProxyType

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
_SEEN = (
    *_PICTURES,
    "scoring",
    "lab/detectors/sight.py",
    "lab/figures.py",
    "lab/benchmark/files.py",
    "lab/benchmark/kinds/opening.py",
)
_ATTACKED = (*_SEEN, "attacks", "lab/attacks", "lab/benchmark/attacking.py")
_GUARD = (*_SEEN, "enrol", "lab/certificates.py", "lab/benchmark/kinds/certified.py")
_CLEAN = (*_SEEN, "attacks/forge.py", "lab/benchmark/shifts.py", "lab/benchmark/kinds/clean.py")
_LOOKS = (*_SEEN, "attacks", "lab/detectors", "lab/report/noise_figures.py", "lab/benchmark/kinds/looks.py")
_JOEL = (*_ATTACKED, "lab/detectors", "lab/benchmark/kinds/joel.py")
_CODE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "victim": (
            *_PICTURES,
            "scoring",
            "enrol/ranks.py",
            "lab/victims",
            "lab/finetune.py",
            "lab/benchmark/kinds/victims.py",
        ),
        "enrolled": (*_SEEN, "attacks", "enrol", "lab/enrolling.py", "lab/benchmark/kinds/enrolled.py"),
        "clean": _CLEAN,
        "shift": _CLEAN,
        "foreign": _CLEAN,
        "attack": (*_ATTACKED, "lab/benchmark/kinds/attack.py"),
        "adaptive": (
            *_ATTACKED,
            "lab/detectors",
            "lab/benchmark/judging.py",
            "lab/benchmark/kinds/adaptive.py",
        ),
        "judge": (
            *_SEEN,
            "enrol",
            "lab/detectors",
            "lab/benchmark/attacking.py",
            "lab/benchmark/judging.py",
            "lab/benchmark/kinds/judged.py",
        ),
        "noise": _LOOKS,
        "pictures": _LOOKS,
        "lessons": _GUARD,
        "certified": _GUARD,
        "pairs": _JOEL,
        "taught": _JOEL,
    }
)
"""By kind of cell the parts of dicomguard that have a say in its result: a change of others leaves it valid."""


@cache
def made_by(kind: str) -> str:
    """Twelve hex digits that change with the code behind a kind of cell, or with torch; comments do not count."""
    return code_digest(*_CODE[kind])[:12] + f", torch {version('torch')}"


_LIBRARIES = ("torch", "torchvision", "monai", "numpy", "scikit-learn", "pydicom")


def versions() -> dict[str, str]:
    """What figures are made with: Python and the libraries that have a say in them."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
