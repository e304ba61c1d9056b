"""Finds the instances of a recorded decision wherever they lie now, and says what became of those that do not.

An instance is known by what the ledger recorded of it, above all its SHA-256: a file is never taken for it by its name
alone, and a file under its name with other bytes is reported, not passed over. Reads only. Safe beside a node at work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from dicomguard.decision import Decision, InstanceDecision, Reason
from dicomguard.errors import EnvelopeError
from dicomguard.ledger import Ledger
from dicomguard.spool import envelope
from dicomguard.spool.store import EVIDENCE, Spool
from dicomguard.study import Instance, study_key

# Files move while we look, each along one way: what is not found is looked for again from the start.
_LOOKS: Final = 3
# In the order in which an instance passes through them.
_OF_CLAIMS: Final = ("claimed", "failed")
_OF_DECISIONS: Final = ("quarantine", "rejected", "store")
_QUEUES: Final = ("outbound", "undeliverable")
# Of receipt and record alike.
_UIDS: Final = ("sop_instance_uid", "sop_class_uid", "series_instance_uid", "transfer_syntax_uid")


@dataclass(frozen=True, slots=True)
class Removal:
    """A recorded removal of an instance: the kind of the event, such as `retention_removed`, and when."""

    kind: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Lost:
    """An instance that is nowhere. `removal` is None where nothing on record accounts for that."""

    recorded: InstanceDecision
    removal: Removal | None


@dataclass(frozen=True, slots=True)
class Altered:
    """A file that stands where an instance should be and is not it. `why` names no value of the data set."""

    recorded: InstanceDecision
    place: str
    why: str


@dataclass(frozen=True, slots=True)
class Located:
    """An instance as it was recorded, and where it lies."""

    recorded: InstanceDecision
    instance: Instance


Whereabouts = Located | Altered | Lost

# (id of the decision, or of the claim that failed; SOP Instance UID; SHA-256)
Removals = Mapping[tuple[str, str, str], Removal]


class Locator:
    """Looks into the spool. `removals` comes from whoever knows which events mean one."""

    def __init__(self, spool: Spool, ledger: Ledger, removals: Removals) -> None:
        self._root = spool.root
        self._ledger = ledger
        self._removals = removals

    def locate(self, decision: Decision) -> list[Whereabouts]:
        """One answer for each instance of the decision, in its order."""
        return [self._find(decision, recorded) for recorded in decision.instances]

    def _find(self, decision: Decision, recorded: InstanceDecision) -> Whereabouts:
        for _ in range(_LOOKS):
            for path in self._candidates(decision, recorded):
                found = check(path, decision, recorded, place=str(path.parent.relative_to(self._root)))
                if found is not None:
                    return found
        uid, digest = str(recorded.sop_instance_uid), recorded.sha256
        ids = (decision.decision_id, decision.claim_id)
        return Lost(recorded, next((r for i in ids if (r := self._removals.get((i, uid, digest)))), None))

    def _candidates(self, decision: Decision, recorded: InstanceDecision) -> Iterator[Path]:
        """By its name, where this decision's files lie; then by its digest there; then under other decisions."""
        folders = [*self._folders(decision)]
        yield from (folder / recorded.file_name for folder in folders)
        yield from (path for folder in folders for path in _with_digest(folder, recorded.sha256))
        # Screened again, by a person's command: the same bytes stand in a later decision, or wait to.
        for known in self._ledger.known_instances(recorded.sop_instance_uid):
            if known.sha256 == recorded.sha256 and known.decision_id != decision.decision_id:
                yield from (self._root / place / known.decision_id / known.file_name for place in _OF_DECISIONS)
        yield self._root / "incoming" / study_key(decision.study_instance_uid) / recorded.file_name

    def _folders(self, decision: Decision) -> Iterator[Path]:
        for place in _OF_CLAIMS:
            yield from sorted((self._root / place).glob(f"*.{decision.claim_id}*"))
        yield from (self._root / place / decision.decision_id for place in _OF_DECISIONS)
        for place in _QUEUES:
            yield from sorted((self._root / place).glob(f"*/{decision.decision_id}"))


def check(path: Path, decision: Decision, recorded: InstanceDecision, *, place: str) -> Located | Altered | None:
    """Whether a file is the instance that a decision recorded, down to its last byte. None: there is no such file."""
    try:
        instance = envelope.read(path)
        receipt = instance.receipt
        if receipt.sha256 != recorded.sha256:
            return Altered(recorded, place, "its receipt is that of another data set")
        is_same = all(getattr(receipt, name) == getattr(recorded, name) for name in _UIDS)
        if not is_same or receipt.study_instance_uid != decision.study_instance_uid:
            return Altered(recorded, place, "its receipt was changed: it names other UIDs than were recorded")
        # What was altered before it was screened was recorded as that, and is still to be judged the same.
        if Reason.ALTERED_IN_SPOOL not in recorded.reasons and _digest(instance) != recorded.sha256:
            return Altered(recorded, place, "the SHA-256 of its data set is not the recorded one")
    except FileNotFoundError:
        return None  # moved on since
    except EnvelopeError as error:
        return Altered(recorded, place, error.message) if path.is_symlink() or path.exists() else None
    except OSError as error:
        return Altered(recorded, place, f"it cannot be read: {error.strerror}")
    return Located(recorded, instance)


def _with_digest(folder: Path, sha256: str) -> Iterator[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name != EVIDENCE)
    except OSError:
        return
    for path in entries:
        try:
            instance = envelope.read(path)
        except EnvelopeError:
            continue
        if instance.receipt.sha256 == sha256:
            yield path


def _digest(instance: Instance) -> str:
    """SHA-256 of the data set as it lies in the file, without preamble and file meta information."""
    with instance.path.open("rb") as file:
        file.seek(instance.data_offset)
        return hashlib.file_digest(file, "sha256").hexdigest()
