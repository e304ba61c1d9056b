"""Who may look at which picture: groups to splits, copies and look-alikes out, and no way past the checks.

A split that leaks is an error and never a warning: whatever is measured across it says nothing.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.inventory import Inventory, some
from dicomguard.lab.data.listing import Entry, Listing
from dicomguard.lab.datasets import SHARES, Split, one_per_group, shuffled, split_by_group
from dicomguard.lab.duplicates import Signatures, joined, pairs

LEAST = 5
_SALTS = 200
# Where a picture resembles one of another split, the one further behind here is left out.
_PRIORITY = (Split.TEST, Split.CALIBRATION, Split.VALIDATION, Split.TRAIN)

Parts = dict[Split, list[Entry]]


@dataclass(frozen=True, slots=True)
class Division:
    """The splits, the salt of the hash that made them, and what does not take part, in words."""

    parts: Parts
    salt: str
    left_out: tuple[str, ...]


def divide(listing: Listing, inventory: Inventory, *, least: int = LEAST) -> Division:
    """Split by group and check what came out.

    Groups are dealt by a hash. A class of few groups may be dealt none in a split: then the hash is salted, and the
    first salt is taken with which every class has half of its share, and `least` pictures, everywhere (or else the best
    of two hundred).

    Raises:
        DicomguardError: a split leaks, or a class has fewer than `least` pictures in one.

    """
    told = list(listing.absent)
    if inventory.unreadable:
        told.append(f"{len(inventory.unreadable)} unreadable files: {some(inventory.unreadable)}")
    alike = _Alike(inventory, listing)
    if listing.strict:
        _refuse_leaks(_pinned(inventory.entries), alike, listing)
    entries, lost = _without_copies(inventory)
    told += lost
    if listing.joins and not listing.strict:
        entries = alike.joined(entries)
    best: tuple[tuple[bool, float], str, Parts, list[str]] | None = None
    for number in range(1 if listing.strict else _SALTS):
        salt = "" if number == 0 else str(number)
        parts, dropped = _dealt(entries, alike, listing, salt)
        rank = (_fewest(parts, listing) >= least, _balance(parts, entries, listing))
        if best is None or rank > best[0]:
            best = (rank, salt, parts, dropped)
        if rank >= (True, 0.5):
            break
    assert best is not None
    _, salt, parts, dropped = best
    _refuse_leaks(parts, alike, listing)
    _refuse_few(parts, listing, least)
    return Division(parts, salt, (*told, *dropped))


def _pinned(entries: Sequence[Entry]) -> Parts:
    parts: Parts = {split: [] for split in Split}
    for entry in entries:
        assert entry.pinned is not None
        parts[entry.pinned].append(entry)
    return parts


def _without_copies(inventory: Inventory) -> tuple[list[Entry], list[str]]:
    """One of each set of identical pictures, the source's test picture if there is one; none where labels differ."""
    same: dict[str, list[Entry]] = defaultdict(list)
    for entry, digest in zip(inventory.entries, inventory.digests, strict=True):
        same[digest].append(entry)
    kept: set[str] = set()
    copies, contradicting = [], []
    for members in same.values():
        if len({entry.example.label for entry in members}) > 1:
            contradicting += [str(entry.example.path) for entry in members]
            continue
        ordered = sorted(members, key=lambda entry: (entry.pinned is not Split.TEST, str(entry.example.path)))
        kept.add(str(ordered[0].example.path))
        copies += [str(entry.example.path) for entry in ordered[1:]]
    told = []
    if copies:
        told.append(f"{len(copies)} exact copies of other pictures: {some(copies)}")
    if contradicting:
        told.append(f"{len(contradicting)} identical pictures with different labels: {some(contradicting)}")
    return [entry for entry in inventory.entries if str(entry.example.path) in kept], told


class _Alike:
    """Which entries show the same picture, and which look the same: asked once, and the same answer everywhere."""

    def __init__(self, inventory: Inventory, listing: Listing) -> None:
        """Hashes of mirrored pictures are not quite symmetric, so the order is fixed: that of `regrouped`."""
        examples = [entry.example for entry in inventory.entries]
        order = sorted(range(len(examples)), key=lambda i: (examples[i].group, examples[i].path.name))
        self.digests = dict(zip((str(example.path) for example in examples), inventory.digests, strict=True))
        self.paths = [str(examples[i].path) for i in order]
        self.pairs: list[tuple[str, str]] = []
        if order:
            found = Signatures(inventory.found.copies[order], inventory.found.frequencies[order])
            self.pairs = [(self.paths[i], self.paths[j]) for i, j in pairs(found, listing.rule).tolist()]

    def joined(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries with those that look the same in one group."""
        by_path = {str(entry.example.path): entry for entry in entries}
        ordered = [by_path[path].example for path in self.paths if path in by_path]
        places = {str(example.path): place for place, example in enumerate(ordered)}
        alike = [(places[one], places[other]) for one, other in self.pairs if one in places and other in places]
        examples = {str(e.path): e for e in joined(ordered, np.array(alike, np.int64).reshape(-1, 2))}
        return [dataclasses.replace(entry, example=examples[path]) for path, entry in by_path.items()]

    def behind(self, splits: Mapping[str, Split]) -> set[str]:
        """Paths of what resembles a picture of a split whose figures count more."""
        left: set[str] = set()
        rank = {split: place for place, split in enumerate(_PRIORITY)}
        for one, other in self.pairs:
            if one in splits and other in splits and splits[one] is not splits[other]:
                left.add(max(one, other, key=lambda path: rank[splits[path]]))
        return left


def _dealt(entries: list[Entry], alike: _Alike, listing: Listing, salt: str) -> tuple[Parts, list[str]]:
    """One way to deal the groups, and what it leaves out."""
    by_path = {str(entry.example.path): entry for entry in entries}
    told: list[str] = []
    if listing.strict:
        dealt = {split: [entry.example for entry in part] for split, part in _pinned(entries).items()}
    else:
        tested = {entry.example.group for entry in entries if entry.pinned is Split.TEST}
        held = [entry.example for entry in entries if entry.pinned is Split.TEST]
        free = [entry.example for entry in entries if entry.pinned is not Split.TEST]
        crossing = [example for example in free if example.group in tested]
        if crossing:
            told.append(
                f"{len(crossing)} pictures of the training side whose patient or look-alike is in the official test "
                f"set: {some([str(example.path) for example in crossing])}"
            )
        rest = 1 - SHARES[Split.TEST]
        shares: Mapping[Split, float] = SHARES
        if held:
            shares = {split: share / rest for split, share in SHARES.items() if split is not Split.TEST}
        free = [example for example in free if example.group not in tested]
        dealt = split_by_group(free, held_out=listing.held, salt=salt, shares=shares)
        dealt[Split.TEST] = dealt[Split.TEST] + held
    if not listing.strict:
        behind = alike.behind({str(e.path): split for split, part in dealt.items() for e in part})
        if behind:
            told.append(f"{len(behind)} pictures that look like one of a later split: {some(sorted(behind))}")
        dealt = {split: [e for e in part if str(e.path) not in behind] for split, part in dealt.items()}
    parts: Parts = {}
    for split, part in dealt.items():
        chosen = part if split is Split.TRAIN or not listing.one_each else one_per_group(part)
        ordered = [by_path[str(example.path)] for example in shuffled(chosen)]
        parts[split] = _taking_turns(ordered) if split is Split.VALIDATION else ordered
    return parts, told


def _taking_turns(entries: list[Entry]) -> list[Entry]:
    """The labels one after the other for as long as each lasts."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for entry in entries:
        turns.append((seen[entry.example.label], entry.example.label, entry))
        seen[entry.example.label] += 1
    return [entry for _, _, entry in sorted(turns, key=lambda turn: turn[:2])]


def _balance(parts: Parts, entries: Sequence[Entry], listing: Listing) -> float:
    """The least, over splits and classes, of what a class has in a split against its fair share."""
    ratios = []
    for label in listing.labels:
        mine = [entry for entry in entries if entry.example.label == label]
        groups = len({entry.example.group for entry in mine})
        for split, part in parts.items():
            have = sum(entry.example.label == label for entry in part)
            fair = SHARES[split] * (groups if listing.one_each and split is not Split.TRAIN else len(mine))
            ratios.append(have / max(fair, 1e-9))
    return min(ratios)


def _fewest(parts: Parts, listing: Listing) -> int:
    """The least pictures that a class has in a split."""
    return min(
        sum(entry.example.label == label for entry in part) for part in parts.values() for label in listing.labels
    )


def _refuse_leaks(parts: Parts, alike: _Alike, listing: Listing) -> None:
    """Raises DicomguardError where a group, a picture or a look-alike stands in two splits."""
    groups: dict[str, Split] = {}
    pictures: dict[str, tuple[Split, Entry]] = {}
    splits: dict[str, Split] = {}
    advice = "Take one of them out, or leave the splits to us: drop the split column."
    for split, part in parts.items():
        for entry in part:
            path, group = entry.example.path, entry.example.group
            if groups.setdefault(group, split) is not split:
                raise DicomguardError(
                    f"{listing.name}: group {group} stands in {groups[group]} and in {split} ({path.name}).",
                    advice=advice,
                )
            splits[str(path)] = split
            other = pictures.setdefault(alike.digests[str(path)], (split, entry))
            if other[0] is not split:
                raise DicomguardError(
                    f"{listing.name}: {path.name} in {split} is the same picture as {other[1].example.path.name} in "
                    f"{other[0]}.",
                    advice=advice,
                )
    for one, same in alike.pairs:
        if one in splits and same in splits and splits[one] is not splits[same]:
            raise DicomguardError(
                f"{listing.name}: {Path(one).name} in {splits[one]} looks the same as {Path(same).name} in "
                f"{splits[same]}.",
                advice=advice,
            )


def _refuse_few(parts: Parts, listing: Listing, least: int) -> None:
    for label in listing.labels:
        for split in Split:
            count = sum(entry.example.label == label for entry in parts[split])
            if count < least:
                total = sum(entry.example.label == label for entry in listing.entries)
                raise DicomguardError(
                    f"{listing.name}: the {split} split has {count} pictures of class {label} ({total} in all); at "
                    f"least {least} are needed.",
                    advice="Add pictures or groups of this class, or merge it with another one.",
                )
