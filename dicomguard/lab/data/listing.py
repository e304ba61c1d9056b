"""What a source says it holds, before anything was read or divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomguard.lab.datasets import Example, Split
from dicomguard.lab.duplicates import Likeness

Picture = NDArray[np.uint8]
Maker = Callable[..., Dataset]
"""`maker(picture, bits=..., name=...)`: see `lab.instances`."""

# For pictures of which nothing is known. Only what is all but the same counts as one, so that two patients in the same
# position do not; brain MRI and breast ultrasound, looked at pair by pair, take the looser rule that was made for them.
STRICT = Likeness(bits=2, together=0.98, alone=0.99)


@dataclass(frozen=True, slots=True)
class Entry:
    """One labelled picture. `example.path` is unique, and need not be a file's.

    `key` names the instance that is made of it, and so decides its UIDs. `read` gives (H, W) or (H, W, 3). `pinned`:
    the split that the source puts it in, None where it is ours to divide. `stamp`: changes when the picture may have.
    """

    example: Example
    key: str
    read: Callable[[], Picture]
    stamp: str
    pinned: Split | None = None
    dataset: Callable[[], Dataset] | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries with what `Collection` says about them, and how they are to be divided.

    `maker` makes the instances of pictures; entries with a `dataset` are instances already. `rule`: when two pictures
    count as one. `joins`: such pictures form a group; else one that resembles a picture of a split whose figures count
    more is left out, which chains nothing together. `strict`: every entry is pinned, and a leak is an error.
    `one_each`: outside of training one picture of each group is taken, so that they are exchangeable draws. `held`:
    groups that are always tested on. `absent`: what was not listed, in words.
    """

    name: str
    labels: tuple[str, ...]
    entries: list[Entry]
    source: str
    maker: Maker | None
    bits: int
    planes: int = 1
    stands_in_for: str | None = None
    limits: tuple[str, ...] = ()
    rule: Likeness = field(default=STRICT)
    joins: bool = False
    strict: bool = False
    one_each: bool = True
    held: frozenset[str] = frozenset()
    absent: tuple[str, ...] = ()
