"""Pictures that show the same slice, so that a data set without patients can be split without handing copies over.

Public collections hold a slice several times: mirrored, sharpened, with another contrast, scaled anew, under other
names. Two pictures count as one where the perceptual hashes and the gray values of small copies agree, in one of the
four mirror positions. Groups are the connected components of that relation. What this does not do: find two slices of
one patient that look different, or a turned picture (measured on brain MRI: quarter turns do not occur there).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from dicomguard.lab.datasets import Example, load_gray

_SIDE = 32  # pixels of the small copy
_LOW = 8  # frequencies kept along each axis
_ROWS = 512  # rows of the pair table worked on at once
_MIRRORS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True, slots=True)
class Likeness:
    """When two pictures count as one: correlation of the small copies at least `alone`, or at least `together` while
    the hashes differ in at most `bits` of 63.

    The defaults are for brain MRI, chosen by looking at pairs. There they join no tumour picture to one without, and
    the largest group has 62 pictures, all of them one slice. Looser ones (10 bits, or correlation .94 alone) chain
    different patients into groups of hundreds.
    """

    bits: int = 6
    together: float = 0.90
    alone: float = 0.95


@dataclass(frozen=True, slots=True)
class Signatures:
    """Of N pictures: `copies` (N, 32, 32) gray values, `frequencies` (N, 8, 8) their lowest DCT-II coefficients."""

    copies: NDArray[np.float32]
    frequencies: NDArray[np.float32]


def signatures(pictures: Sequence[NDArray[np.uint8]]) -> Signatures:
    """Small copies (Lanczos) and low frequencies of gray pictures (H, W) of any size."""
    copies = np.stack([_small(picture) for picture in pictures])
    angles = np.pi * np.outer(np.arange(_LOW), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
    cosines = np.cos(angles).astype(np.float32)
    return Signatures(copies, (cosines @ copies @ cosines.T).astype(np.float32))


def _small(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    image = PIL.Image.fromarray(picture).resize((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32)


def likeness(one: Signatures, other: Signatures) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For each mirror position of `other`: differing hash bits (N, M) and correlation of the small copies (N, M)."""
    odd_negated = np.where(np.arange(_LOW) % 2, np.float32(-1), np.float32(1))
    plain = np.ones(_LOW, np.float32)
    found = []
    for vertical, horizontal in _MIRRORS:
        # A mirrored picture has the same DCT-II coefficients, with the odd ones negated.
        rows, columns = (odd_negated if step < 0 else plain for step in (vertical, horizontal))
        mirrored = other.frequencies * rows[:, None] * columns
        copies = other.copies[:, ::vertical, ::horizontal]
        differing = (np.float32(_LOW**2 - 1) - _hash(one.frequencies) @ _hash(mirrored).T) / np.float32(2)
        found.append((differing, _standard(one.copies) @ _standard(copies).T))
    return found


def _hash(frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zauner's pHash as +1 and -1, shape (N, 63): above the median or not, without the constant term."""
    flat = frequencies.reshape(len(frequencies), -1)[:, 1:]
    return np.where(flat > np.median(flat, axis=1, keepdims=True), np.float32(1), np.float32(-1))


def _standard(copies: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = copies.reshape(len(copies), -1)
    flat = flat - flat.mean(1, keepdims=True)
    # A picture of one gray has no direction: it correlates with nothing, and is joined to nothing.
    length = np.maximum(np.sqrt((flat**2).sum(1, keepdims=True)), np.float32(1e-6))
    standard: NDArray[np.float32] = flat / length
    return standard


def pairs(found: Signatures, rule: Likeness) -> NDArray[np.int64]:
    """Shape (P, 2): the index pairs i < j that count as one picture."""
    parts = [np.empty((0, 2), np.int64)]
    for start in range(0, len(found.copies), _ROWS):
        # Earlier columns were rows before; within the block every pair is seen from both sides, and one is kept.
        block = Signatures(found.copies[start : start + _ROWS], found.frequencies[start : start + _ROWS])
        rest = Signatures(found.copies[start:], found.frequencies[start:])
        same = np.zeros((len(block.copies), len(rest.copies)), bool)
        for differing, correlation in likeness(block, rest):
            same |= (correlation >= rule.alone) | ((differing <= rule.bits) & (correlation >= rule.together))
        i, j = same.nonzero()
        parts.append(np.stack([i[i < j], j[i < j]], 1) + start)
    return np.concatenate(parts)


def components(count: int, joined: NDArray[np.int64]) -> list[int]:
    """Union-find: for each of `count` items the smallest index it is connected to by the pairs (P, 2)."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in joined.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(item) for item in range(count)]


def regrouped(examples: Sequence[Example], rule: Likeness | None = None) -> list[Example]:
    """The examples with near-duplicates in one group, named after the first of its members in alphabetical order.

    Members of one group of the table stay together too. The order of the examples is kept and plays no part.
    """
    ordered = sorted(examples, key=lambda example: (example.group, example.path.name))
    alike = pairs(signatures([load_gray(example.path) for example in ordered]), rule or Likeness())
    names = {example.path: example for example in joined(ordered, alike)}
    return [names[example.path] for example in examples]


def joined(ordered: Sequence[Example], alike: NDArray[np.int64]) -> list[Example]:
    """The examples, which are sorted by group and name, with those that `alike` (P, 2) pairs up in one group."""
    known = [(i - 1, i) for i in range(1, len(ordered)) if ordered[i].group == ordered[i - 1].group]
    links = np.concatenate([alike, np.array(known, np.int64).reshape(-1, 2)])
    firsts = components(len(ordered), links)
    return [
        dataclasses.replace(example, group=ordered[first].group) for example, first in zip(ordered, firsts, strict=True)
    ]
