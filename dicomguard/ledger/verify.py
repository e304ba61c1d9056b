"""Re-checks everything that the ledger says of itself. Reads only; never repairs."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dicomguard.ledger import tables
from dicomguard.ledger.chain import GENESIS, ChainKey, Row
from dicomguard.ledger.heads import Head, Heads, HeadsError
from dicomguard.ledger.records import Problem


@dataclass(frozen=True, slots=True, order=True)
class _Link:
    seq: int
    table: str
    row: int
    prev_mac: str
    mac: str
    expected_mac: str


def verify(connection: Connection, key: ChainKey, heads: dict[str, Head] | Problem | None) -> Iterator[Problem]:
    """Every break, in order: the database's own check, the triggers, each writer's chain, the heads, strays."""
    yield from _check_database(connection)
    yield from _check_triggers(connection)
    if isinstance(heads, Problem):
        yield heads
    known = heads if isinstance(heads, dict) else {}
    for writer in sorted({*_writers(connection), *known}):
        yield from _check_chain(connection, key, writer, known.get(writer), follow=isinstance(heads, dict))
    yield from _check_strays(connection)


def _writers(connection: Connection) -> set[str]:
    return {str(name) for table in tables.CHAINED for name in connection.scalars(sa.select(table.c.writer).distinct())}


def read_heads(heads: Heads) -> dict[str, Head] | Problem:
    """The heads by writer, or why they cannot be trusted. To be read before the rows that they are held against."""
    try:
        return heads.read()
    except (HeadsError, OSError) as error:
        return Problem(
            "heads", f"The heads file {heads.path} cannot be used ({error}): rows cut off at the end would go unseen."
        )


def _check_chain(
    connection: Connection, key: ChainKey, writer: str, head: Head | None, *, follow: bool
) -> Iterator[Problem]:
    seq, mac, at_head = 0, GENESIS, ""
    last_row: dict[str, int] = {}
    for link in heapq.merge(*(_links(connection, key, writer, table) for table in tables.CHAINED)):
        where = f"{link.table} row {link.row} (writer {writer}, seq {link.seq})"
        place: dict[str, Any] = {"table": link.table, "row": link.row, "writer": writer, "seq": link.seq}
        if link.seq <= seq:
            yield Problem("duplicate", f"{where} takes a place in the chain that is taken already.", **place)
        elif link.seq > seq + 1:
            gap = f"{seq + 1}" if link.seq == seq + 2 else f"{seq + 1} to {link.seq - 1}"
            yield Problem("missing", f"Before {where}, the rows with seq {gap} are missing.", **place)
        elif link.prev_mac != mac:
            yield Problem("unlinked", f"{where} does not continue the row before it, which was replaced.", **place)
        # The chain does not cover the id, by which the last state of a delivery or a study is found.
        if link.row <= last_row.get(link.table, 0):
            message = f"{where} was written after row {last_row[link.table]}, which now stands behind it."
            yield Problem("reordered", message, **place)
        last_row[link.table] = link.row
        if link.mac != link.expected_mac:
            yield Problem("edited", f"{where} is not as it was written.", **place)
        # Going on from what stands there: one altered row is one problem, not a problem of all that follow.
        seq, mac = max(seq, link.seq), link.mac
        if head is not None and link.seq == head.seq:
            at_head = link.mac
    yield from _check_head(writer, head, seq, at_head, follow=follow)


def _check_head(writer: str, head: Head | None, last_seq: int, at_head: str, *, follow: bool) -> Iterator[Problem]:
    if head is None:
        if follow:
            message = f"The heads file does not know writer {writer}: rows cut off at its end would go unseen."
            yield Problem("heads", message, writer=writer, seq=last_seq)
        return
    if head.first_seq > 1:
        message = f"The heads file was started over at seq {head.first_seq} of {writer}; earlier cuts went unseen."
        yield Problem("heads", message, writer=writer, seq=head.first_seq)
    if head.seq > last_seq:
        gap = f"{last_seq + 1}" if head.seq == last_seq + 1 else f"{last_seq + 1} to {head.seq}"
        message = f"The end of writer {writer}'s chain was cut off: the rows with seq {gap} are missing."
        yield Problem("truncated", message, writer=writer, seq=last_seq + 1)
    elif at_head and at_head != head.mac:
        message = f"Writer {writer}'s row with seq {head.seq} is another one than was recorded."
        yield Problem("unlinked", message, writer=writer, seq=head.seq)


def _links(connection: Connection, key: ChainKey, writer: str, table: sa.Table) -> Iterator[_Link]:
    query = sa.select(table).where(table.c.writer == writer).order_by(table.c.seq)
    for found in connection.execute(query.execution_options(yield_per=500)).mappings():
        row = dict(found)
        instances = instance_rows(connection, row) if table is tables.decisions else []
        # SQLite stores anything in any column. What nobody here can have written is out of place and has no MAC.
        seq = row["seq"] if isinstance(row["seq"], int) else 0
        try:
            expected = key.mac(table.name, row, instances)
        except (TypeError, ValueError):
            expected = ""
        yield _Link(seq, table.name, row["id"], row["prev_mac"], row["mac"], expected)


def instance_rows(connection: Connection, row: Row) -> list[Row]:
    """The rows of a decision's instances in their order, as its MAC covers them."""
    table = tables.decision_instances
    query = sa.select(table).where(table.c.decision_id == row["decision_id"]).order_by(table.c.position)
    return [dict(found) for found in connection.execute(query).mappings()]


def _check_strays(connection: Connection) -> Iterator[Problem]:
    table = tables.decision_instances
    known = sa.select(tables.decisions.c.decision_id)
    query = sa.select(table.c.id, table.c.decision_id).where(table.c.decision_id.not_in(known)).order_by(table.c.id)
    for row, decision_id in connection.execute(query):
        message = f"{table.name} row {row} belongs to a decision that is not there ({decision_id})."
        yield Problem("orphan", message, table.name, row)


def _check_database(connection: Connection) -> Iterator[Problem]:
    if connection.dialect.name != "sqlite":
        return
    for line in itertools.islice(connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars(), 20):
        if line != "ok":
            yield Problem("corrupt", f"SQLite's integrity check says: {line}")


def _check_triggers(connection: Connection) -> Iterator[Problem]:
    match connection.dialect.name:
        case "sqlite":
            query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            wanted = {(t.name, f"{t.name}_no_{verb}") for t in tables.APPEND_ONLY for verb in ("update", "delete")}
        case "postgresql":
            query = "SELECT tgname FROM pg_trigger WHERE tgenabled <> 'D'"
            wanted = {(t.name, f"{t.name}_append_only") for t in tables.APPEND_ONLY}
        case _:
            return
    present = set(connection.exec_driver_sql(query).scalars())
    for table, trigger in sorted(wanted):
        if trigger not in present:
            yield Problem("schema", f"The trigger {trigger} that keeps {table} append-only is gone.", table)
