"""What arrives: peers, receipts, instances, and the question when a study has settled. Pure: no files, no clock.

C-STORE has no "all sent" message (PS3.4 Annex B): a study counts as settled when nothing new came for a while.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NewType

Uid = NewType("Uid", str)
AeTitle = NewType("AeTitle", str)
StudyKey = NewType("StudyKey", str)

UNIDENTIFIED = StudyKey("unidentified")


def utc_now() -> datetime:
    """The present moment as an aware UTC time."""
    return datetime.now(UTC)


def key_of(uid: str) -> str:
    """A name for a UID that is safe on disk: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def study_key(study_instance_uid: str) -> StudyKey:
    """The folder name of a study; instances without a readable Study Instance UID share `UNIDENTIFIED`."""
    return StudyKey(key_of(study_instance_uid)) if study_instance_uid else UNIDENTIFIED


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM application entity: AE title, address and port (PS3.8 section 9)."""

    ae_title: AeTitle
    host: str
    port: int = 0

    def __str__(self) -> str:
        """`AE@host` or `AE@host:port`."""
        return f"{self.ae_title}@{self.host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Receipt:
    """Who sent an instance, when, and the digest of what was received. Written with the instance, in one step.

    `sha256` and `size_bytes` are those of the encoded data set, exactly as it came over the wire (without preamble and
    file meta information). UIDs are those of the C-STORE command; study and series come from the data set's head and
    are "" where they could not be read. `fault` is "" or the reason why this instance must not pass as whole.
    """

    received_at: datetime
    calling_ae: str
    called_ae: str
    address: str
    association_id: str
    sop_class_uid: Uid
    sop_instance_uid: Uid
    transfer_syntax_uid: Uid
    study_instance_uid: Uid
    series_instance_uid: Uid
    sha256: str
    size_bytes: int
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON; times in ISO 8601."""
        return {**asdict(self), "received_at": self.received_at.isoformat()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Receipt:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(**{**data, "received_at": datetime.fromisoformat(data["received_at"])})


@dataclass(frozen=True, slots=True)
class Instance:
    """One received SOP instance: its file in the spool, where its data set starts in that file, and its receipt."""

    path: Path
    data_offset: int
    receipt: Receipt

    @property
    def sop_instance_uid(self) -> Uid:
        """The SOP Instance UID (0008,0018)."""
        return self.receipt.sop_instance_uid

    @property
    def study_instance_uid(self) -> Uid:
        """The Study Instance UID (0020,000D), "" where it could not be read."""
        return self.receipt.study_instance_uid

    @property
    def name(self) -> str:
        """The file name, the same in every folder of the spool."""
        return self.path.name

    def at(self, path: Path) -> Instance:
        """The same instance, moved to `path`."""
        return replace(self, path=path)


@dataclass(frozen=True, slots=True)
class Study:
    """All instances of one claim that share a Study Instance UID."""

    study_instance_uid: Uid
    instances: tuple[Instance, ...]


def group_by_study(instances: Iterable[Instance]) -> list[Study]:
    """Partition instances by Study Instance UID, in order of first arrival."""
    groups: dict[Uid, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.study_instance_uid, []).append(instance)
    return [Study(uid, tuple(members)) for uid, members in groups.items()]


@dataclass(frozen=True, slots=True)
class Quiet:
    """What was last seen of a study's folder, since when it has not changed and since when it waits (monotonic s)."""

    names: frozenset[str]
    since_s: float
    first_s: float


def observe(before: Quiet | None, names: frozenset[str], now_s: float) -> Quiet:
    """Restart the quiet timer when the folder's listing differs from the last one."""
    if before is None:
        return Quiet(names, now_s, now_s)
    return before if before.names == names else Quiet(names, now_s, before.first_s)


def is_settled(quiet: Quiet, now_s: float, quiet_s: float) -> bool:
    """True when there is something and nothing has changed for `quiet_s` seconds (monotonic clock)."""
    return bool(quiet.names) and now_s - quiet.since_s >= quiet_s


def is_overdue(quiet: Quiet, now_s: float, deadline_s: float) -> bool:
    """True when the first of what is there has waited for longer than `deadline_s` (monotonic clock)."""
    return bool(quiet.names) and now_s - quiet.first_s > deadline_s
