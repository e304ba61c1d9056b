"""What happened to the associations that peers asked for, accepted and refused alike. Pure: no files, no clock.

The receiver appends these to a journal, one JSON object a line; the screener ingests the journal into the ledger. That
way reception needs no database, and a port scan leaves a trace all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class AssociationKind(StrEnum):
    """What happened, in the words of PS3.8 section 9.3; `DROPPED` is a connection that ended without a word."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    RELEASED = "released"
    ABORTED = "aborted"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class AssociationEvent:
    """One event of one association. What the peer claims of itself is shown as it was sent and is worth no trust.

    `association_id` is the receiver's own name for the association, "" where none came about. `detail` says why, for
    people: the result, source and reason of a rejection (PS3.8 table 9-21), the limit that was hit. `contexts_proposed`
    and `contexts_accepted` count presentation contexts; `instances` those stored over the association's life.
    """

    at: datetime
    kind: AssociationKind
    address: str
    association_id: str = ""
    calling_ae: str = ""
    called_ae: str = ""
    detail: str = ""
    implementation_uid: str = ""
    implementation_version: str = ""
    contexts_proposed: int = 0
    contexts_accepted: int = 0
    instances: int = 0

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON; times in ISO 8601."""
        return {**asdict(self), "at": self.at.isoformat(), "kind": self.kind.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AssociationEvent:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        plain = {**data, "at": datetime.fromisoformat(data["at"]), "kind": AssociationKind(data["kind"])}
        return cls(**plain)
