"""The clean images of a site: divided by patient, prepared once, and named by a hash that an auditor can check."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray

from dicomguard.pixels.image import Image
from dicomguard.scoring.guard import BLANK, Kind, Range, Veil, View, is_covered, veils, view_of
from dicomguard.scoring.head import Answer
from dicomguard.scoring.scorer import Batch, Scorer


class Part(StrEnum):
    """Who may look at an image: the guard's training, the self-test, the reference, or the thresholds."""

    DISTILLED = "distilled"
    VALIDATION = "validation"
    REFERENCE = "reference"
    HELD_BACK = "held_back"


# Shares of the patients. The guard needs most; the held-back part is what every promise rests on.
SHARES = {Part.DISTILLED: 0.50, Part.VALIDATION: 0.06, Part.REFERENCE: 0.14, Part.HELD_BACK: 0.30}


# A header that blanks a picture multiplies the gain; a new clean one exceeds the highest by a hair.
_GAIN_SLACK, _HIDDEN_SLACK = 1.05, 0.01

_KEPT = 64  # native images that are kept for the self-test, one of each patient


@dataclass(frozen=True, slots=True)
class Clean:
    """One clean frame as the node would read it. `patient` and `study` are what repeats together.

    `sha256`: of its data set. `truth`: the right answer, where known. `part`: where the caller divides.
    """

    image: Image
    patient: str
    study: str
    sha256: str
    truth: Answer | None = None
    part: Part | None = None

    @property
    def key(self) -> str:
        """Stands for this frame wherever order must not depend on file names."""
        return hashlib.sha256(f"{self.sha256}\0{self.image.frame}".encode()).hexdigest()


def part_of(patient: str) -> Part:
    """A patient's part, by a hash of the name alone, so that adding images moves none that were there."""
    position = int.from_bytes(hashlib.sha256(f"enrolment part\0{patient}".encode()).digest()[:8], "big") / 2**64
    for part, share in SHARES.items():
        if position < share:
            return part
        position -= share
    return Part.HELD_BACK


def is_reference(patient: str) -> bool:
    """True for one third of the patients: where images that are all for calibration are divided, by hash."""
    return int.from_bytes(hashlib.sha256(f"reference\0{patient}".encode()).digest()[:4], "big") < 2**32 // 3


def _rank(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(slots=True)
class CleanSet:
    """Prepared pictures of one part: pixels as 16-bit integers, planes for the guard, and by what they are enrolled."""

    items: list[Clean] = field(default_factory=list)  # images are dropped but for the first few; see `Gathered`
    pixels: list[NDArray[np.uint16]] = field(default_factory=list)
    planes: list[NDArray[np.float32]] = field(default_factory=list)
    kinds: list[tuple[Kind, Veil] | None] = field(default_factory=list)  # None: nothing for a guard to see

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, places: Sequence[int]) -> Batch:
        """The pictures at `places` as the scorer takes them."""
        pixels = torch.from_numpy(np.stack([self.pixels[i] for i in places]).astype(np.float32) / np.float32(65535))
        return Batch(pixels, torch.from_numpy(np.stack([self.planes[i] for i in places])))

    def one_per_patient(self) -> list[int]:
        """Places of one frame of each patient, picked by hash: frames of one patient are not independent draws."""
        best: dict[str, int] = {}
        for place, item in enumerate(self.items):
            known = best.get(item.patient)
            if known is None or item.key < self.items[known].key:
                best[item.patient] = place
        return sorted(best.values())

    def with_pixels(self) -> list[int]:
        """Places of the frames whose native pixels were kept: one of each patient, of the first that came."""
        return [place for place, item in enumerate(self.items) if item.image.pixels.size]

    def one_study_per_patient(self) -> list[list[int]]:
        """Places of the frames of one study of each patient, picked by hash: follow-ups are no independent draws."""
        studies: dict[str, dict[str, list[int]]] = {}
        for place, item in enumerate(self.items):
            studies.setdefault(item.patient, {}).setdefault(item.study, []).append(place)
        return [found[min(found, key=_rank)] for found in studies.values()]


class Gathered:
    """All clean images, by part. `window`: the guard's fixed range in modality units, None for that of Bits Stored.

    `left_out`: keys of the frames that no guard could look at (`scoring.guard.range_of`); none where none is wanted.
    `unreadable`: files that the caller could not read, for the statement.
    """

    def __init__(self, scorer: Scorer, window: tuple[float, float] | None, *, wants_guard: bool = True) -> None:
        self._scorer = scorer
        self._window = window
        self._wants_guard = wants_guard
        self.parts = {part: CleanSet() for part in Part}
        self.digests: set[str] = set()
        self.patients: set[str] = set()
        self.left_out: set[str] = set()
        self.unreadable = 0
        self._seen: set[str] = set()
        self._kept: set[str] = set()  # patients with an image whose native pixels are there

    def add_all(self, images: Iterable[Clean]) -> None:
        """Take in clean frames; of a frame that comes twice, in this call or another one, the first one counts."""
        for clean in images:
            if clean.key in self._seen:
                continue
            view = view_of(clean.image, self._window)
            if self._wants_guard and view is None:
                self.left_out.add(clean.key)
                continue
            self._seen.add(clean.key)
            self._add(clean, view)

    def add(self, clean: Clean) -> None:
        """Prepare one frame."""
        self._add(clean, view_of(clean.image, self._window))

    def _add(self, clean: Clean, view: View | None) -> None:
        part = clean.part or part_of(clean.patient)
        target = self.parts[part]
        with torch.inference_mode():
            pixels = self._scorer.preprocess.images([clean.image])[0].numpy()
        target.pixels.append(np.rint(pixels * 65535).astype(np.uint16))
        target.planes.append(BLANK if view is None else view.plane)
        target.kinds.append(None if view is None else (view.kind, view.veil))
        # Native pixels are attacked in the self-test only; all of them would not fit into memory.
        is_kept = part is Part.VALIDATION and clean.patient not in self._kept and len(self._kept) < _KEPT
        target.items.append(clean if is_kept else _without_pixels(clean))
        if is_kept:
            self._kept.add(clean.patient)
        self.digests.add(clean.sha256)
        self.patients.add(clean.patient)

    @property
    def images(self) -> int:
        """How many frames there are."""
        return sum(len(part) for part in self.parts.values())

    def ranges(self) -> tuple[Range, ...]:
        """What the guard takes for enrolled: each (kind, low, high) with its thickest veil, sorted.

        The held-back images have no say, because what new images will meet must not depend on those that stand for
        new images.
        """
        thickest: dict[Kind, Veil] = {}
        for part in set(Part) - {Part.HELD_BACK}:
            for kind, veil in filter(None, self.parts[part].kinds):
                known = thickest.get(kind, veil)
                if math.isfinite(veil[0]):  # else the guard is shown nothing of what the model is
                    thickest[kind] = max(veil[0], known[0]), max(veil[1], known[1])
        return tuple(
            sorted((*kind, gain * _GAIN_SLACK, hidden + _HIDDEN_SLACK) for kind, (gain, hidden) in thickest.items())
        )

    def hide(self, ranges: Sequence[Range]) -> None:
        """Blank the planes of what `ranges` do not cover, as a guard would (`Guard.planes`)."""
        thickest = veils(ranges)
        for part in self.parts.values():
            for place, found in enumerate(part.kinds):
                if found is None or not is_covered(*found, thickest):
                    part.planes[place] = BLANK

    def sha256(self) -> str:
        """The name of the clean set: SHA-256 over the sorted digests of its data sets, one a line."""
        return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(self.digests)).encode()).hexdigest()


def _without_pixels(clean: Clean) -> Clean:
    image = clean.image
    empty = Image(
        np.empty((0, 0, 0), np.float32), image.frame, image.bits_stored, image.photometric_interpretation, "", None
    )
    return Clean(empty, clean.patient, clean.study, clean.sha256, clean.truth, clean.part)
