"""The values that go into the ledger and come out of it, besides decisions and associations. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from dicomguard.ledger.kinds import ALARMS
from dicomguard.study import Uid, utc_now

RuledAction = Literal["release", "reject"]


class DeliveryState(StrEnum):
    """Where one instance stands on its way to one destination. Each change is a row of its own."""

    QUEUED = "queued"
    SENDING = "sending"
    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"
    REQUEUED = "requeued"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One step of one instance towards one destination.

    `attempt` counts the sends so far (from 1 with the first). `status` is the DIMSE status of the C-STORE response,
    None where there was none (PS3.4 annex B.2.3, PS3.7 annex C). `error` is for people and holds no patient data.
    """

    decision_id: str
    study_instance_uid: Uid
    sop_instance_uid: Uid
    sha256: str
    destination: str
    state: DeliveryState
    attempt: int = 0
    status: int | None = None
    error: str = ""
    next_attempt_at: datetime | None = None
    at: datetime = field(default_factory=utc_now)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON; times in ISO 8601, the status as `0xA700`."""
        return {
            **asdict(self),
            "state": self.state.value,
            "status": None if self.status is None else f"0x{self.status:04X}",
            "next_attempt_at": None if self.next_attempt_at is None else self.next_attempt_at.isoformat(),
            "at": self.at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class KnownInstance:
    """One data set that was accepted before. Two are the same when digest and transfer syntax are."""

    sha256: str
    transfer_syntax_uid: Uid
    decision_id: str
    file_name: str


@dataclass(frozen=True, slots=True)
class Review:
    """A person's ruling on one quarantine decision: who, what, why, when."""

    review_id: str
    decision_id: str
    study_instance_uid: Uid
    action: RuledAction
    actor: str
    reason: str
    at: datetime

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True)
class Event:
    """An alarm, a removal, a failure: anything about a subject that is no decision. `detail` is JSON-ready."""

    kind: str
    subject_uid: str
    detail: dict[str, Any]
    at: datetime
    writer: str

    @property
    def is_alarm(self) -> bool:
        """True when somebody must hear of it."""
        return self.kind in ALARMS

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        return {**asdict(self), "at": self.at.isoformat(), "alarm": self.is_alarm}


ProblemKind = Literal[
    "edited", "missing", "unlinked", "duplicate", "reordered", "truncated", "heads", "orphan", "schema", "corrupt"
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `verify` found wrong. `row` is the row's id in `table`; `seq` its place in `writer`'s chain."""

    kind: ProblemKind
    message: str
    table: str = ""
    row: int | None = None
    writer: str = ""
    seq: int | None = None

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.kind}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        return asdict(self)
