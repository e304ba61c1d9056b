"""The append-only tables and the triggers that keep them so.

A migration is history: it repeats the columns in its own words and is never edited once released.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _short(*names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.String(64), nullable=nullable) for name in names]


def _text(*names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=nullable) for name in names]


def _whole(*names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Integer, nullable=nullable) for name in names]


def _table(name: str, *items: Any) -> None:
    op.create_table(name, sa.Column("id", _ID, primary_key=True, autoincrement=True), *items, sqlite_autoincrement=True)


def _chained(name: str, *items: Any) -> None:
    _table(
        name,
        *_short("writer"),
        sa.Column("seq", sa.BigInteger, nullable=False),
        *_short("prev_mac", "mac"),
        *items,
        sa.UniqueConstraint("writer", "seq", name=f"uq_{name}_writer_seq"),
    )


def _index(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def upgrade() -> None:
    """Create everything. On databases other than SQLite and PostgreSQL the chain alone guards the rows."""
    op.create_table("ledger_identity", sa.Column("ledger_id", sa.String(64), primary_key=True),
                    *_short("key_check", "created_at"))  # fmt: skip
    _chained(
        "decisions",
        sa.Column("decision_id", sa.String(64), nullable=False, unique=True),
        *_short("claim_id", "study_key"),
        *_text("study_instance_uid"),
        *_whole("version"),
        *_short("disposition", "verdict"),
        *_text("reasons"),
        *_text("bundle", "fingerprint", nullable=True),
        *_short("mode"),
        *_text("peer"),
        *_short("received_at", "decided_at"),
        *_text("destinations"),
        *_text("patient_key", nullable=True),
        sa.UniqueConstraint("study_key", "version", name="uq_decisions_study_version"),
    )
    _index("decisions", "claim_id", "study_key", "disposition")
    _table(
        "decision_instances",
        sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.decision_id"), nullable=False),
        *_whole("position"),
        *_short("sop_key"),
        *_text("sop_instance_uid", "sop_class_uid", "series_instance_uid", "transfer_syntax_uid"),
        *_short("sha256"),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        *_text("file_name"),
        *_short("verdict"),
        *_text("reasons"),
        *_short("action", "mode"),
        *_text("bundle", "fingerprint", nullable=True),
        *_text("detail"),
        *_text("scores", nullable=True),
        sa.UniqueConstraint("decision_id", "position", name="uq_decision_instances_position"),
    )
    _index("decision_instances", "sop_key")
    _chained(
        "deliveries",
        *_short("decision_id", "study_key"),
        *_text("study_instance_uid"),
        *_short("sop_key"),
        *_text("sop_instance_uid"),
        *_short("sha256"),
        *_text("destination"),
        *_short("state"),
        *_whole("attempt"),
        *_whole("status", nullable=True),
        *_text("error"),
        *_short("next_attempt_at", nullable=True),
        *_short("at"),
    )
    _index("deliveries", "decision_id", "study_key", "sop_key")
    _chained(
        "reviews",
        sa.Column("review_id", sa.String(64), nullable=False, unique=True),
        sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.decision_id"), nullable=False, unique=True),
        *_text("study_instance_uid"),
        *_short("action"),
        *_text("actor", "reason"),
        *_short("at"),
    )
    _chained(
        "associations",
        *_short("source_key"),
        *_text("source"),
        *_whole("position"),
        *_short("at", "kind"),
        *_text("address", "association_id", "calling_ae", "called_ae", "detail"),
        *_text("implementation_uid", "implementation_version"),
        *_whole("contexts_proposed", "contexts_accepted", "instances"),
        sa.UniqueConstraint("source_key", "position", name="uq_associations_source_position"),
    )
    _index("associations", "source_key")
    _chained("events", *_short("at", "kind"), *_text("subject_uid", "detail"))
    _index("events", "kind")
    _forbid_changes()


def _forbid_changes() -> None:
    tables = (
        "decisions", "decision_instances", "deliveries", "reviews", "associations", "events", "ledger_identity",
    )  # fmt: skip
    dialect = op.get_bind().dialect.name
    if dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION dicomguard_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"
        )
    for table in tables:
        if dialect == "sqlite":
            for verb in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
                )
        elif dialect == "postgresql":
            op.execute(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION dicomguard_append_only()"
            )


def downgrade() -> None:
    """Refused: going back would drop the record."""
    raise NotImplementedError("the ledger is append-only; keep it, and install the version that wrote it")
