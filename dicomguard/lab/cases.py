"""One picture of a data set as whatever looks at it wants it: named, answered, and ready to be made a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicomguard.pixels.image import Image
from dicomguard.pixels.reader import images


@dataclass(frozen=True, slots=True)
class Case:
    """One picture: `make(bits)` gives its DICOM instance, `truth` is the place of its label among the labels.

    `group` is the patient or what stands in for one.
    """

    key: str
    truth: int
    group: str
    make: Callable[[int], Dataset]

    def image(self, bits: int) -> Image:
        """The instance's only frame, read as the node reads it."""
        return images(self.make(bits))[0]


def batches(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    """Consecutive slices of at most `size`."""
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def truths(cases: Sequence[Case]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The labels as an array (N,)."""
    return np.array([case.truth for case in cases], np.int64)
