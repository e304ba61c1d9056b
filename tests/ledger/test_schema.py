from __future__ import annotations

import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from dicomguard.ledger import ledger as ledger_module
from dicomguard.ledger import store, tables
from tests.ledger.test_draws import scored


def test_the_migrations_make_exactly_the_tables_that_queries_use(ledger):
    with store.reading(ledger._engine) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": tables.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, tables.metadata) == []
        assert len(tables.metadata.tables) == 8


def test_the_newest_migration_is_the_one_that_the_code_expects():
    config = Config()
    folder = ledger_module.__file__.replace("ledger.py", "migrations")
    config.set_main_option("script_location", folder)
    assert ScriptDirectory.from_config(config).get_heads() == [tables.SCHEMA_VERSION]


@pytest.mark.parametrize("table", [table.name for table in tables.APPEND_ONLY])
@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = '1'", "DELETE FROM {}"], ids=["update", "delete"])
def test_rows_cannot_be_changed_by_sql(ledger, database, make_decision, table, statement):
    from dicomguard.association import AssociationEvent, AssociationKind
    from dicomguard.decision import Disposition
    from dicomguard.ledger import Delivery, DeliveryState
    from dicomguard.study import Uid, utc_now

    held = make_decision(disposition=Disposition.QUARANTINE)
    ledger.record_decisions([held])
    ledger.record_review(held.decision_id, "reject", "a", "b")
    ledger.record_delivery(Delivery("d", Uid("1"), Uid("2"), "a" * 64, "ai", DeliveryState.QUEUED))
    ledger.record_associations("j", [AssociationEvent(utc_now(), AssociationKind.DROPPED, "::1")])
    ledger.record_event("alarm", "", {})
    ledger.record_decisions([scored(make_decision("1.2.4"), p=[0.5])])
    with sqlite3.connect(database) as raw:
        column = raw.execute(f"PRAGMA table_info({table})").fetchall()[-1][1]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement.format(table, column))
    raw.close()


def test_a_ledger_of_the_version_before_is_brought_up_to_date(ledger, database, url, heads, make_decision):
    from dicomguard.ledger import Ledger
    from tests.ledger.conftest import KEY

    ledger.record_decisions([make_decision()])
    ledger.close()
    with sqlite3.connect(database) as raw:
        raw.execute("DROP TABLE draws")
        raw.execute(f"UPDATE {tables.VERSION_TABLE} SET version_num = '0001'")
    raw.close()
    with Ledger.open(url, KEY, "screen", heads=heads) as opened:
        opened.record_decisions([scored(make_decision("1.2.4"), p=[0.5])])
        assert [draw.p_value for draw in opened.draws()] == [0.5]
        assert opened.verify() == []
