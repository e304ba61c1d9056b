"""What the detectors of Joel et al. 2023 share: they learn from clean and attacked files, and say which is which."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.sight import Detector, Sight

_FILES = 8


class Supervised(Detector, Protocol):
    """A detector that is taught. Its own decision is `scores > 0`; a judge's threshold may be another.

    `reductions`: sentences that name what was reduced against the paper.
    """

    reductions: tuple[str, ...]

    def fit(
        self,
        calibration: Sight,
        attacked: Sight | None = None,
        *,
        seed: int = 0,
        selection: tuple[Sight, Sight] | None = None,
    ) -> None:
        """Learn from clean files (`calibration`) and attacked ones.

        `selection`: the clean and the attacked files on which the best epoch is chosen, where there are epochs. Without
        it a fifth of each is set aside at random, which may put one patient on both sides.

        Raises:
            DicomguardError: fewer than eight files of a class, or pixels that are not finite.

        """
        ...


def lessons(calibration: Sight, attacked: Sight | None, name: str) -> Sight:
    """The attacked files, once both classes are there and have pixels.

    Raises:
        DicomguardError: as `Supervised.fit`.

    """
    count = 0 if attacked is None else len(attacked)
    if len(calibration) < _FILES or attacked is None or count < _FILES:
        raise DicomguardError(
            f"{name} is taught, and needs {_FILES} clean and {_FILES} attacked files: there are {len(calibration)} and"
            f" {count}.",
            advice="Give attacked files of the training split, or leave this detector out.",
        )
    for what, one in (("a clean", calibration), ("an attacked", attacked)):
        if not bool(one.pixels.isfinite().all()):
            raise DicomguardError(
                f"{name} cannot be taught: {what} file has pixels that are NaN or infinite.",
                advice="Check the victim's transforms on the training files.",
            )
    return attacked


def set_aside(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """True for a fifth of `count` places, drawn at random."""
    found = np.zeros(count, bool)
    found[rng.permutation(count)[: max(count // 5, 1)]] = True
    return found
