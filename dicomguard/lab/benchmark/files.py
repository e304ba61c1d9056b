"""Files of one victim as the benchmark keeps them: what was seen of each, and what is known of it.

A picture becomes a DICOM instance, the instance bytes, and the bytes an image, as a node would read it; nothing is
looked at that no file can hold, but for the adversarial floats that are shown beside what was left of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.progress import Advance
from dicomguard.lab.cases import Case, batches, truths
from dicomguard.lab.detectors.sight import Sight, joined, load, look
from dicomguard.lab.stored import read
from dicomguard.lab.whole import write_json
from dicomguard.pixels.image import Image
from dicomguard.scoring import head, noise
from dicomguard.scoring.consistency import Draw
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Scorer

_KEY = b"benchmark"  # stands in for a site key, so that a second run draws the same noise
BATCH = 16


@dataclass(frozen=True, slots=True)
class Opened:
    """One case as an instance, and as the image that a node reads from its bytes."""

    case: Case
    dataset: Dataset
    image: Image
    seeds: Seeds


def opened(case: Case, dataset: Dataset, fingerprint: str) -> Opened:
    """Through the bytes of a file; the noise is that of those bytes."""
    image, digest = read(dataset)
    return Opened(case, dataset, image, noise.seeds(_KEY, str(dataset.SOPInstanceUID), 0, digest, fingerprint))


@dataclass(frozen=True, slots=True)
class Files:
    """N files of one victim: `keys` and `groups` of their cases, `truth` (N,) the right class of the first question."""

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    truth: NDArray[np.int64]
    sight: Sight

    @classmethod
    def of(cls, cases: Sequence[Case], sight: Sight) -> Self:
        """What was seen of the files of cases, in their order."""
        return cls(tuple(case.key for case in cases), tuple(case.group for case in cases), truths(cases), sight)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All files of several parts, one after another. Raises ValueError where there are none."""
        return cls(
            tuple(key for one in parts for key in one.keys),
            tuple(group for one in parts for group in one.groups),
            np.concatenate([one.truth for one in parts]),
            joined([one.sight for one in parts]),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the victim's answer is right."""
        found: NDArray[np.bool_] = self.sight.answers[:, 0] == self.truth
        return found

    @property
    def margins(self) -> NDArray[np.float64]:
        """How far each answer is from another one, in log-odds."""
        return head.smallest_margins(self.sight.log_odds)

    def only(self, which: NDArray[np.bool_]) -> Files:
        """The files that `which` marks."""
        (places,) = np.nonzero(which)
        return Files(
            tuple(self.keys[i] for i in places),
            tuple(self.groups[i] for i in places),
            self.truth[places],
            self.sight.only(places),
        )

    def save(self, folder: Path, name: str) -> None:
        """Two files; the one that says what they are comes last, so that neither is there alone."""
        self.sight.save(folder / f"{name}.npz")
        facts = {"keys": self.keys, "groups": self.groups, "truth": self.truth.tolist()}
        write_json(folder / f"{name}.json", facts, indent=None)


def load_files(folder: Path, name: str) -> Files:
    """The inverse of `Files.save`.

    Raises:
        DicomguardError: they are not there, or cannot be read.

    """
    path = folder / f"{name}.json"
    try:
        facts = json.loads(path.read_text())
        keys, groups = tuple(facts["keys"]), tuple(facts["groups"])
        truth = np.array(facts["truth"], np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise DicomguardError(
            f"{path} cannot be read: {error!r}.", advice="Delete its folder; the next run makes it again."
        ) from error
    return Files(keys, groups, truth, load(folder / f"{name}.npz"))


def look_at(
    scorer: Scorer,
    cases: Sequence[Case],
    make: Callable[[Case], Dataset],
    advance: Advance,
    *,
    draws: Sequence[Draw] | None = None,
) -> Files:
    """Look at the files that `make` makes of cases, with the whole ladder of noise or these draws.

    Raises:
        DicomguardError: there are none.

    """
    if not cases:
        raise DicomguardError("there are no files to look at.", advice="Check the data set and its splits.")
    parts = []
    for group in batches(cases, BATCH):
        parts.append(looked(scorer, [opened(case, make(case), scorer.fingerprint) for case in group], draws))
        advance(len(group) / len(cases))
    return Files.joined(parts)


def looked(scorer: Scorer, files: Sequence[Opened], draws: Sequence[Draw] | None = None) -> Files:
    """Look at files that are open."""
    sight = look(scorer, [one.image for one in files], [one.seeds for one in files], batch=BATCH, draws=draws)
    return Files.of([one.case for one in files], sight)


def seed_of(key: str, *purpose: str) -> int:
    """A case's own seed, so that neighbours in a batch change nothing."""
    text = "/".join((key, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
