"""What a cell's result rests on beside its settings: the code behind it and the libraries that compute."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from typing import Final

from dicomguard.lab.measure import code_digest, imports_of

_NO_SAY: Final = frozenset(
    {
        # Which cells there are and who computes them.
        "lab/benchmark/cell.py",
        "lab/benchmark/progress.py",
        "lab/benchmark/provenance.py",
        "lab/benchmark/runner.py",
        # How a file comes to its place, and what a person reads.
        "lab/whole.py",
        "lab/command.py",
        "errors.py",
    }
)
"""Parts of dicomguard that a cell's function imports, but that have no say in what it finds."""

_MODULES: Final = {
    "victim": "victims",
    "shift": "clean",
    "foreign": "clean",
    "judge": "judged",
    "noise": "looks",
    "pictures": "looks",
    "lessons": "certified",
    "pairs": "joel",
    "taught": "joel",
}
"""The module of `kinds` behind a kind of cell, where it has another name."""

_LIBRARIES: Final = ("torch", "torchvision", "monai", "numpy", "scipy", "scikit-learn", "pydicom", "pillow")


@cache
def made_by(kind: str) -> str:
    """Twelve hex digits for the code behind a kind of cell, and the libraries' versions; comments do not count.

    The code is the kind's module and all that it imports, and so on. A change of anything else leaves results valid.
    """
    module = f"lab/benchmark/kinds/{_MODULES.get(kind, kind)}.py"
    libraries = ", ".join(f"{name} {found}" for name, found in versions().items())
    return f"{code_digest(*imports_of(module, without=_NO_SAY))[:12]}, {libraries}"


def versions() -> dict[str, str]:
    """What figures are made with: Python and the libraries that have a say in them."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
