from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.decision import Disposition
from dicomguard.ledger import Delivery, DeliveryState, Ledger, tables
from dicomguard.study import Uid, utc_now

KEY = bytes(range(32))


@pytest.fixture(scope="session")
def full_template(tmp_path_factory, make_decision):
    """screen: 1, 2 decisions, 3 association, 4 event, 5 delivery, 6 review, 7 event."""
    folder = tmp_path_factory.mktemp("full")
    held = make_decision("1", disposition=Disposition.QUARANTINE)
    with Ledger.open(f"sqlite:///{folder}/l.sqlite", KEY, "screen", heads=folder / "heads") as ledger:
        ledger.record_decisions([held])
        ledger.record_decisions([make_decision("2")])
        ledger.record_associations("j", [AssociationEvent(utc_now(), AssociationKind.DROPPED, "::1")])
        ledger.record_event("alarm", "", {"n": 1})
        ledger.record_delivery(Delivery("d", Uid("1"), Uid("2"), "a" * 64, "ai", DeliveryState.QUEUED))
        ledger.record_review(held.decision_id, "reject", "a", "b")
        ledger.record_event("alarm", "", {"n": 2})
    return folder


@pytest.fixture
def full(full_template, database, url, heads):
    shutil.copyfile(full_template / "l.sqlite", database)
    heads.parent.mkdir()
    shutil.copyfile(full_template / "heads", heads)
    with Ledger.open(url, KEY, "screen", heads=heads) as ledger:
        assert ledger.verify() == []
        yield ledger


@pytest.fixture
def tamper(database):
    """Runs SQL as someone with the file in hand and no key: triggers off, foreign keys off."""

    def run(*statements: str) -> None:
        with closing(sqlite3.connect(database)) as raw, raw:
            triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                raw.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                assert raw.execute(statement).rowcount != 0, f"touched nothing: {statement}"
            for _, sql in triggers:
                raw.execute(sql)

    return run


def found(ledger):
    return [(p.kind, p.table, p.seq) for p in ledger.verify()]


COLUMNS = [
    (table.name, column.name)
    for table in (*tables.CHAINED, tables.decision_instances)
    for column in table.columns
    if table is not tables.draws  # test_draws.py has its own
    and column.name not in {"id", "decision_id", "writer", "seq"}
]


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[f"{t}.{c}" for t, c in COLUMNS])
def test_an_edit_of_any_column_is_found_and_named(full, tamper, table, column):
    tamper(f"UPDATE {table} SET {column} = COALESCE({column}, '') || '7' WHERE id = 1")
    problems = full.verify()
    assert problems
    chained = "decisions" if table == "decision_instances" else table
    assert (problems[0].table, problems[0].row, problems[0].writer) == (chained, 1, "screen")
    assert {p.kind for p in problems} <= {"edited", "unlinked"}
    assert chained in str(problems[0])


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[f"{t}.{c}" for t, c in COLUMNS])
def test_bytes_that_are_no_text_are_found_and_named(full, tamper, table, column):
    tamper(f"UPDATE {table} SET {column} = CAST(x'ff' AS TEXT) WHERE id = 1")
    problems = full.verify()
    chained = "decisions" if table == "decision_instances" else table
    assert (problems[0].table, problems[0].row, problems[0].writer) == (chained, 1, "screen")


@pytest.mark.parametrize("column", ["decision_id", "writer", "seq"])
def test_bytes_that_are_no_text_where_rows_are_joined_are_found(full, tamper, column):
    tamper(f"UPDATE decisions SET {column} = CAST(x'ff' AS TEXT) WHERE id = 1")
    assert full.verify()


def test_the_first_and_every_further_break_are_named(full, tamper):
    tamper(
        "UPDATE associations SET address = '10.0.0.1'",
        "UPDATE reviews SET action = 'release', actor = 'nobody'",
    )
    assert found(full) == [("edited", "associations", 3), ("edited", "reviews", 6)]


def test_a_removed_row_is_found(full, tamper):
    tamper("DELETE FROM associations", "DELETE FROM events WHERE seq = 4")
    assert found(full) == [("missing", "deliveries", 5)]
    assert "seq 3 to 4 are missing" in str(full.verify()[0])


def test_an_instance_removed_or_slipped_in_is_found(full, tamper):
    tamper("DELETE FROM decision_instances WHERE id = 1")
    assert found(full) == [("edited", "decisions", 1)]
    tamper("UPDATE decision_instances SET decision_id = 'nobody' WHERE id = 3")
    assert found(full) == [
        ("edited", "decisions", 1),
        ("edited", "decisions", 2),
        ("orphan", "decision_instances", None),
    ]


def test_a_forged_row_cannot_take_a_place_or_follow(full, tamper):
    copied = "mac, at, kind, subject_uid, detail FROM events"
    insert = "INSERT INTO events (writer, seq, prev_mac, mac, at, kind, subject_uid, detail) SELECT writer,"
    tamper(f"{insert} 8, mac, {copied} WHERE seq = 7")
    assert found(full) == [("edited", "events", 8)]
    tamper(f"{insert} 3, prev_mac, {copied} WHERE seq = 4")
    assert ("duplicate", "events", 3) in found(full)


def test_swapped_rows_are_found(full, tamper):
    tamper(
        "UPDATE events SET seq = 100 WHERE seq = 4",
        "UPDATE events SET seq = 4 WHERE seq = 7",
        "UPDATE events SET seq = 7 WHERE seq = 100",
    )
    assert {kind for kind, _, _ in found(full)} >= {"edited", "unlinked"}


def test_a_row_that_is_put_behind_later_ones_is_found(full, tamper):
    tamper("UPDATE events SET id = 100 WHERE seq = 4")
    assert found(full) == [("reordered", "events", 7)]


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_cut_off_end_is_found(full, tamper, cut):
    last = 7 - cut
    statements = [f"DELETE FROM {table.name} WHERE seq > {last}" for table in tables.CHAINED if has(full, table, last)]
    tamper(*statements, *(["DELETE FROM decision_instances"] if cut == 7 else []))
    assert found(full) == [("truncated", "", 8 - cut)]
    # Rows that are written later do not hide the cut: the chain goes on from where it had been.
    full.record_event("later", "", {})
    assert [kind for kind, _, _ in found(full)] == ["missing"]
    assert [event.kind for event in full.events()][-2:] == ["ledger_truncated", "later"]


def has(ledger, table, after):
    import sqlalchemy as sa

    from dicomguard.ledger import store

    with store.reading(ledger._engine) as connection:
        return bool(connection.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.seq > after)))


def test_a_ledger_that_was_replaced_by_an_empty_one_is_found(full, database, url, heads):
    full.close()
    for path in database.parent.glob("ledger.sqlite*"):
        path.unlink()
    with Ledger.open(url, KEY, "screen", heads=heads) as fresh:
        assert found(fresh) == [("truncated", "", 1)]
        fresh.record_event("later", "", {})
        assert found(fresh) == [("missing", "events", 8)]


def test_a_lost_or_forged_heads_file_is_found_for_good(full, heads):
    document = json.loads(heads.read_bytes())
    document["writers"]["screen"]["seq"] = 2
    heads.write_text(json.dumps(document))
    assert [p.kind for p in full.verify()] == ["heads"]
    heads.unlink()
    assert [p.kind for p in full.verify()] == ["heads"]
    full.record_event("later", "", {})
    (problem,) = full.verify()
    assert "started over at seq 8" in str(problem)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_a_heads_file_that_cannot_be_read_just_now_is_not_started_over(full, heads, monkeypatch, code):
    before = heads.read_bytes()

    def trouble(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(type(heads), "read_bytes", trouble)
        full.record_event("later", "", {})
    assert heads.read_bytes() == before
    assert full.verify() == []
    full.record_event("later", "", {})
    assert full.verify() == []


def test_a_head_that_is_behind_is_no_break(full, heads):
    before = heads.read_bytes()
    full.record_event("later", "", {})
    heads.write_bytes(before)  # as after a crash between commit and head
    assert full.verify() == []
    full.record_event("later", "", {})
    assert full.verify() == []


def test_a_dropped_trigger_is_found(full, database):
    with closing(sqlite3.connect(database)) as raw, raw:
        raw.execute("DROP TRIGGER reviews_no_update")
    assert found(full) == [("schema", "reviews", None)]


def test_rows_of_another_ledger_with_the_same_key_do_not_pass(full, tmp_path, tamper):
    other = tmp_path / "other.sqlite"
    with Ledger.open(f"sqlite:///{other}", KEY, "screen", heads=None) as twin:
        for number in range(7):
            twin.record_event("alarm", "", {"n": number})
        assert twin.verify() == []
    with closing(sqlite3.connect(other)) as raw:
        row = raw.execute("SELECT prev_mac, mac, at, kind, subject_uid, detail FROM events WHERE seq = 7").fetchone()
    columns = ("prev_mac", "mac", "at", "kind", "subject_uid", "detail")
    assignments = ", ".join(f"{name} = '{value}'" for name, value in zip(columns, row, strict=True))
    tamper(f"UPDATE events SET {assignments} WHERE seq = 7")
    assert ("edited", "events", 7) in found(full)


@settings(max_examples=25, deadline=None)
@given(gone=st.sets(st.integers(1, 7), min_size=1))
def test_removing_any_rows_is_always_found(full_template, tmp_path_factory, gone):
    folder = tmp_path_factory.mktemp("cut")
    shutil.copytree(full_template, folder, dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "l.sqlite")) as raw, raw:
        for table in tables.CHAINED:
            raw.execute(f"DROP TRIGGER {table.name}_no_delete")
            raw.execute(f"DELETE FROM {table.name} WHERE seq IN ({','.join(map(str, gone))})")
    with Ledger.open(f"sqlite:///{folder}/l.sqlite", KEY, "screen", heads=folder / "heads") as ledger:
        problems = {problem.kind for problem in ledger.verify()} - {"schema", "orphan"}
    assert problems
    assert problems <= {"missing", "truncated"}


def test_a_writer_that_begins_while_one_looks_is_no_break(full, url, heads, monkeypatch):
    """It commits its first row after the heads were read, and reaches the heads file a moment later."""
    real, looked = Ledger._verify_once, []

    def begin_in_between(ledger):
        if not looked:
            kept = heads.read_bytes()
            with Ledger.open(url, KEY, "review", heads=heads) as other:
                other.record_event("x", "", {})
            now = heads.read_bytes()
            heads.write_bytes(kept)
            looked.append(real(ledger))
            heads.write_bytes(now)
            return looked[0]
        return real(ledger)

    monkeypatch.setattr(Ledger, "_verify_once", begin_in_between)
    monkeypatch.setattr("dicomguard.ledger.ledger._FIRST_HEAD_S", 0)
    assert full.verify() == []
    assert [problem.writer for problem in looked[0]] == ["review"]
