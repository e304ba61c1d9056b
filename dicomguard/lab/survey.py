"""From which clean test files the soundness test sets out: chosen by votes alone, never by what an attack reached."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicomguard.lab.cases import Case
from dicomguard.lab.figures import share
from dicomguard.lab.measure import Journal
from dicomguard.lab.soundness import Kind

KINDS: Final[tuple[Kind, ...]] = ("agreeing", "disagreeing")

FILTER = (
    "Test files, one of each group, in the order of a hash of their names; right and wrong answers alike. Of either"
    " kind the first whose quick vote says so, the node's own, until so many are confirmed by the long vote. Where too"
    " few disagree, the other test files of the groups follow, one at most of a group."
)


@dataclass(frozen=True, slots=True)
class Quick:
    """What a quick vote says of a clean file: agreeing, disagreeing or unenrolled; and whether the model is right."""

    kind: str
    right: bool


class Survey:
    """Quick votes on clean files, in an order of its own that says nothing about them. Resumable."""

    def __init__(
        self, vote: Callable[[Case], Quick], path: Path, fingerprint: str, tick: Callable[[], None] = lambda: None
    ) -> None:
        """`fingerprint`: of all that `vote` is made of; votes under another one are not reused."""
        self._vote = vote
        self._votes = Journal(path, fingerprint)
        self._tick = tick
        self._seen: dict[str, None] = {}

    def __call__(self, case: Case) -> Quick:
        """The vote on one file, from the journal where it is known."""
        if case.key not in self._votes:
            found = self._vote(case)
            self._votes.put(case.key, {"kind": found.kind, "right": found.right})
        if case.key not in self._seen:
            self._seen[case.key] = None
            self._tick()
        row = self._votes[case.key]
        return Quick(row["kind"], row["right"])

    def of_kind(self, kind: Kind, cases: Sequence[Case], spares: Sequence[Case] = ()) -> Iterator[Case]:
        """Files of that kind; then, and only as far as asked for, spares of groups of which none was found yet."""
        groups = set()
        for case in (*ordered(cases), *ordered(spares)):
            if case.group not in groups and self(case).kind == kind:
                groups.add(case.group)
                yield case

    def counted(self, cases: Sequence[Case]) -> dict[str, Any]:
        """How many of these were looked at, of which kind they are, and how often the model is right on each kind."""
        found = [self(case) for case in cases if case.key in self._seen]
        return {
            "files": len(found),
            "kinds": dict(Counter(one.kind for one in found)),
            "disagreeing": share([one.kind == "disagreeing" for one in found if one.kind != "unenrolled"]),
            "right": {kind: share([one.right for one in found if one.kind == kind]) for kind in KINDS},
        }


def ordered(cases: Sequence[Case]) -> list[Case]:
    """In the order of a hash of their keys: a recipe may list class after class, and any prefix be one class only."""
    return sorted(cases, key=lambda case: hashlib.sha256(f"bases/{case.key}".encode()).digest())
