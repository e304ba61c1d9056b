"""What must be true of a spool after anything: what was acknowledged is there, and nothing partial has a final name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dicomguard.errors import EnvelopeError
from dicomguard.spool import envelope

_NOT_INSTANCES = ("receiving", "journal", "locks")


@dataclass(frozen=True)
class Found:
    """Instances in the spool as (SOP Instance UID, SHA-256), and files that are not what their names promise."""

    instances: frozenset[tuple[str, str]]
    damaged: tuple[Path, ...]


def look_through(spool_root: Path) -> Found:
    """Read every file of the spool that has a final name, and check its digest."""
    instances = set()
    damaged = []
    for path in spool_root.rglob("*"):
        if not path.is_file() or path.relative_to(spool_root).parts[0] in _NOT_INSTANCES:
            continue
        try:
            instance = envelope.read(path)
        except EnvelopeError:
            if path.exists():  # a running screener may have moved it
                damaged.append(path)
            continue
        digest = hashlib.sha256(path.read_bytes()[instance.data_offset :]).hexdigest()
        if digest == instance.receipt.sha256:
            instances.add((str(instance.sop_instance_uid), digest))
        else:
            damaged.append(path)
    return Found(frozenset(instances), tuple(damaged))


def read_acks(logs: Iterable[Path]) -> frozenset[tuple[str, str]]:
    """What senders were told is safe. A torn last line is no acknowledgement that anybody saw."""
    lines = [line for log in logs for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return frozenset((uid, sha) for uid, sha in (line.split() for line in lines))
