"""One drawn p-value for each study and protected model, which the drift watch reads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the table and the triggers that keep it append-only. What was decided before is not drawn from."""
    op.create_table(
        "draws",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("writer", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("prev_mac", sa.String(64), nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
        sa.Column("decision_id", sa.String(64), nullable=False),
        sa.Column("study_key", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.Text, nullable=False),
        sa.Column("bundle", sa.Text, nullable=False),
        sa.Column("enrolment", sa.String(64), nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("patient_key", sa.Text, nullable=True),
        sa.Column("p_value", sa.Double, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("alpha", sa.Double, nullable=False),
        sa.Column("at", sa.String(64), nullable=False),
        sa.UniqueConstraint("writer", "seq", name="uq_draws_writer_seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_draws_study_key", "draws", ["study_key"])
    dialect = op.get_bind().dialect.name
    if dialect == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER draws_no_{verb} BEFORE {verb.upper()} ON draws "
                "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
            )
    elif dialect == "postgresql":
        op.execute(
            "CREATE TRIGGER draws_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON draws "
            "FOR EACH STATEMENT EXECUTE FUNCTION dicomguard_append_only()"
        )


def downgrade() -> None:
    """Refused: going back would drop the record."""
    raise NotImplementedError("the ledger is append-only; keep it, and install the version that wrote it")
