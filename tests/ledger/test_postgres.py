"""The same ledger on PostgreSQL: a server started here, or DICOMGUARD_TEST_POSTGRES, a database that may be wiped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.decision import Disposition
from dicomguard.errors import LedgerError
from dicomguard.ledger import Delivery, DeliveryState, EventKind, Ledger, store, tables
from dicomguard.study import Uid, utc_now

KEY = bytes(range(32))

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL given, or that of a server of our own on a free port, gone after the tests."""
    pytest.importorskip("psycopg", reason="the psycopg driver is not installed: pip install 'dicomguard[postgres]'")
    if where := os.environ.get("DICOMGUARD_TEST_POSTGRES"):
        yield where
        return
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL: apt-get install postgresql, or set DICOMGUARD_TEST_POSTGRES to a URL")
    # PostgreSQL refuses to run as root; Debian's package makes a user for it.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="dicomguard-pg-") as name, socket.create_server(("127.0.0.1", 0)) as probe:
        folder, port = Path(name), probe.getsockname()[1]
        probe.close()
        if user:
            shutil.chown(folder, "postgres", "postgres")
        initdb, pg_ctl = programs[-1], programs[-1].with_name("pg_ctl")
        quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, "timeout": 60, **user}
        subprocess.run([initdb, "-D", folder / "db", "-A", "trust", "-U", "postgres", "--no-sync"], check=True, **quiet)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        start = ["-o", options, "-l", folder / "log", "-w", "start"]
        subprocess.run([pg_ctl, "-D", folder / "db", *start], check=True, **quiet)
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([pg_ctl, "-D", folder / "db", "-m", "immediate", "-w", "stop"], check=True, **quiet)


@pytest.fixture
def url(server):
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return server


@pytest.fixture
def postgres(url, heads):
    with Ledger.open(url, KEY, "screen", heads=heads) as ledger:
        yield ledger


def test_everything_is_recorded_and_comes_back(postgres, make_decision):
    hostile = "\udc80\x00\\u0000" + "1." * 5000
    held = make_decision(hostile, disposition=Disposition.QUARANTINE, destinations=("ai",))
    passed = make_decision("2", destinations=("ai",))
    delivery = Delivery("d", Uid(hostile), Uid("2"), "a" * 64, "ai", DeliveryState.RETRY, 1, 0xA700, "x", utc_now())
    events = [AssociationEvent(utc_now(), AssociationKind.REJECTED, "::1", calling_ae="\x00")]
    assert postgres.record_decisions([held, passed]) == [held, passed]
    assert postgres.record_decisions([held]) == [held]
    assert (postgres.is_held(hostile), postgres.next_version(hostile)) == (True, 2)
    postgres.record_delivery(delivery)
    review = postgres.record_review(held.decision_id, "release", "a", "b")
    postgres.record_associations("j", events)
    postgres.record_associations("j", events)
    postgres.record_event(EventKind.OVERDUE, "", {"a": [1.5]})
    last = postgres.last_event([EventKind.OVERDUE, EventKind.REQUEUED], "")
    assert last is not None
    assert [last] == postgres.events(EventKind.OVERDUE)
    assert (last.kind, last.is_alarm) == ("overdue", True)
    assert list(postgres.decisions(limit=1)) == [passed]
    assert postgres.deliveries(DeliveryState.RETRY) == [delivery]
    assert postgres.reviews() == [review]
    assert postgres.associations() == events
    assert postgres.verify() == []


def test_writers_in_parallel_extend_one_chain(postgres, url, heads):
    opened = [postgres, *(Ledger.open(url, KEY, "screen", heads=heads) for _ in range(2))]

    def write(one: Ledger) -> None:
        for number in range(10):
            one.record_event("test", str(number), {})

    threads = [threading.Thread(target=write, args=(one,)) for one in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(postgres.events()) == 30
    assert postgres.verify() == []
    for one in opened[1:]:
        one.close()


@pytest.mark.parametrize("statement", ["UPDATE {} SET mac = ''", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
@pytest.mark.parametrize("table", [table.name for table in tables.CHAINED])
def test_rows_cannot_be_changed_by_sql(postgres, table, statement):
    with pytest.raises(DBAPIError, match="append-only"), store.writing(postgres._engine) as connection:
        connection.exec_driver_sql(statement.format(table))


def test_a_change_behind_the_triggers_is_found(postgres):
    postgres.record_event("alarm", "", {})
    with store.writing(postgres._engine) as connection:
        connection.exec_driver_sql("ALTER TABLE events DISABLE TRIGGER events_append_only")
        connection.exec_driver_sql("UPDATE events SET kind = 'calm'")
    assert [(p.kind, p.table) for p in postgres.verify()] == [("schema", "events"), ("edited", "events")]


def test_a_server_that_is_down_says_so_without_the_password(heads):
    pytest.importorskip("psycopg")
    with pytest.raises(LedgerError, match=r"failed: .*Check that the database server runs") as caught:
        Ledger.open("postgresql+psycopg://u:secret@127.0.0.1:9/db", KEY, "screen", heads=heads)
    assert "secret" not in str(caught.value)
