"""The tables as queries see them. The migrations create them; a test holds the two against each other.

Times are ISO 8601 texts in UTC with microseconds, so that they sort, and read the same in every database. Lists and
mappings are JSON texts. UIDs are looked up by `key_of(uid)`: a peer may send one of kilobytes, which no index takes.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION: Final = "0002"
VERSION_TABLE: Final = "ledger_version"

_UNSTORABLE = re.compile("[\\\\\x00\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")


class AnyText(TypeDecorator[str]):
    """Text from outside. NUL, lone surrogates and the backslash are escaped: databases refuse the first two."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escape on the way in."""
        del dialect
        if value is None:
            return None
        return _UNSTORABLE.sub(lambda m: "\\\\" if m[0] == "\\" else f"\\u{ord(m[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Give back exactly what came in."""
        del dialect
        if not isinstance(value, str):
            return value  # NULL; or what somebody else wrote, which the MAC then gives away
        return _ESCAPED.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), value)


def to_text(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII. What is stored in JSON columns and what MACs are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def to_stamp(at: datetime) -> str:
    """An aware time as stored. Raises ValueError for a naive one, which says nothing about when."""
    if at.tzinfo is None:
        raise ValueError("times in the ledger must be aware")
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def from_stamp(text: str) -> datetime:
    """The inverse of `to_stamp`."""
    return datetime.fromisoformat(text)


metadata = MetaData()
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _chained(name: str, *columns: Column[Any] | UniqueConstraint) -> Table:
    return Table(
        name,
        metadata,
        Column("id", _Id, primary_key=True, autoincrement=True),
        Column("writer", String(64), nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("prev_mac", String(64), nullable=False),
        Column("mac", String(64), nullable=False),
        *columns,
        UniqueConstraint("writer", "seq", name=f"uq_{name}_writer_seq"),
        sqlite_autoincrement=True,
    )


def _text(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, AnyText, nullable=nullable)


def _short(name: str, *, nullable: bool = False, index: bool = False) -> Column[Any]:
    return Column(name, String(64), nullable=nullable, index=index)


decisions = _chained(
    "decisions",
    Column("decision_id", String(64), nullable=False, unique=True),
    _short("claim_id", index=True),
    _short("study_key", index=True),
    _text("study_instance_uid"),
    Column("version", Integer, nullable=False),
    _short("disposition", index=True),
    _short("verdict"),
    Column("reasons", Text, nullable=False),
    _text("bundle", nullable=True),
    _text("fingerprint", nullable=True),
    _short("mode"),
    _text("peer"),
    _short("received_at"),
    _short("decided_at"),
    Column("destinations", Text, nullable=False),
    _text("patient_key", nullable=True),
    UniqueConstraint("study_key", "version", name="uq_decisions_study_version"),
)

# Not chained: the decision's MAC covers its instances.
decision_instances = Table(
    "decision_instances",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("decision_id", String(64), ForeignKey("decisions.decision_id"), nullable=False),
    Column("position", Integer, nullable=False),
    _short("sop_key", index=True),
    _text("sop_instance_uid"),
    _text("sop_class_uid"),
    _text("series_instance_uid"),
    _text("transfer_syntax_uid"),
    _short("sha256"),
    Column("size_bytes", BigInteger, nullable=False),
    _text("file_name"),
    _short("verdict"),
    Column("reasons", Text, nullable=False),
    _short("action"),
    _short("mode"),
    _text("bundle", nullable=True),
    _text("fingerprint", nullable=True),
    _text("detail"),
    Column("scores", Text, nullable=True),
    UniqueConstraint("decision_id", "position", name="uq_decision_instances_position"),
    sqlite_autoincrement=True,
)

deliveries = _chained(
    "deliveries",
    _short("decision_id", index=True),
    _short("study_key", index=True),
    _text("study_instance_uid"),
    _short("sop_key", index=True),
    _text("sop_instance_uid"),
    _short("sha256"),
    _text("destination"),
    _short("state"),
    Column("attempt", Integer, nullable=False),
    Column("status", Integer, nullable=True),
    _text("error"),
    _short("next_attempt_at", nullable=True),
    _short("at"),
)

reviews = _chained(
    "reviews",
    Column("review_id", String(64), nullable=False, unique=True),
    Column("decision_id", String(64), ForeignKey("decisions.decision_id"), nullable=False, unique=True),
    _text("study_instance_uid"),
    _short("action"),
    _text("actor"),
    _text("reason"),
    _short("at"),
)

associations = _chained(
    "associations",
    _short("source_key", index=True),
    _text("source"),
    Column("position", Integer, nullable=False),
    _short("at"),
    _short("kind"),
    _text("address"),
    _text("association_id"),
    _text("calling_ae"),
    _text("called_ae"),
    _text("detail"),
    _text("implementation_uid"),
    _text("implementation_version"),
    Column("contexts_proposed", Integer, nullable=False),
    Column("contexts_accepted", Integer, nullable=False),
    Column("instances", Integer, nullable=False),
    UniqueConstraint("source_key", "position", name="uq_associations_source_position"),
)

events = _chained(
    "events",
    _short("at"),
    _short("kind", index=True),
    _text("subject_uid"),
    Column("detail", Text, nullable=False),
)

draws = _chained(
    "draws",
    _short("decision_id"),
    _short("study_key", index=True),
    _text("study_instance_uid"),
    _text("bundle"),
    _short("enrolment"),
    _text("sender"),
    _text("patient_key", nullable=True),
    Column("p_value", Double, nullable=False),
    Column("images", Integer, nullable=False),
    Column("alpha", Double, nullable=False),
    _short("at"),
)

# One row: which ledger this is, and a check value that only its own chain key gives.
identity = Table(
    "ledger_identity",
    metadata,
    Column("ledger_id", String(64), primary_key=True),
    Column("key_check", String(64), nullable=False),
    Column("created_at", String(64), nullable=False),
)

CHAINED: Final = (decisions, deliveries, reviews, associations, events, draws)
APPEND_ONLY: Final = (*CHAINED, decision_instances, identity)
