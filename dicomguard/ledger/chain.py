"""The keyed chain: each row's MAC covers its content, its place and the row before it (per writer).

mac = HMAC-SHA256(row key, canonical JSON of {ledger, table, row}), where `row` holds every column but `id` and `mac`,
columns that are NULL left out (so a column added later does not break old rows). `prev_mac` is the MAC of the same
writer's previous row, whatever table that is in. The first row's is `GENESIS`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dicomguard.ledger import tables
from dicomguard.ledger.heads import Head

GENESIS: Final = "0" * 64
_UNCOVERED: Final = frozenset({"id", "mac"})
# An instance's place in its decision is its place in the list, its decision the one that lists it.
_UNCOVERED_IN_INSTANCE: Final = frozenset({"id", "decision_id"})

Row = Mapping[str, Any]


class ChainKey:
    """What MACs are made with: subkeys of the site's chain key, bound to one ledger."""

    def __init__(self, chain_key: bytes, ledger_id: str) -> None:
        self.ledger_id = ledger_id
        self._row_key = subkey(chain_key, "row")

    def mac(self, table: str, row: Row, instances: Sequence[Row] = ()) -> str:
        """The MAC of one row as 64 hexadecimal digits."""
        content = self.covered(table, row, instances)
        return hmac.digest(self._row_key, tables.to_text(content).encode(), "sha256").hex()

    def covered(self, table: str, row: Row, instances: Sequence[Row] = ()) -> dict[str, Any]:
        """What the MAC of one row is taken over, as canonical JSON."""
        content: dict[str, Any] = {
            "ledger": self.ledger_id,
            "table": table,
            "row": {name: value for name, value in row.items() if name not in _UNCOVERED and value is not None},
        }
        if table == tables.decisions.name:
            content["instances"] = [
                {name: value for name, value in i.items() if name not in _UNCOVERED_IN_INSTANCE and value is not None}
                for i in instances
            ]
        return content


def subkey(chain_key: bytes, purpose: str) -> bytes:
    """A key for one purpose, so that a MAC of one kind never passes for one of another."""
    return hmac.digest(chain_key, b"dicomguard ledger " + purpose.encode(), "sha256")


def key_check(chain_key: bytes, ledger_id: str) -> str:
    """What the ledger's identity row holds to tell whether a key is its own."""
    return hmac.digest(subkey(chain_key, "check"), ledger_id.encode(), "sha256").hex()


class Extension:
    """One writer's chain while one transaction extends it. Build it only under the write lock."""

    def __init__(self, connection: Connection, key: ChainKey, writer: str, head: Head | None) -> None:
        self.writer = writer
        self._connection = connection
        self._key = key
        tip = tip_of(connection, writer)
        # A head beyond the tip means that rows were cut off. Going on from the head leaves the gap in sight for ever.
        self.is_cut = head is not None and head.seq > tip[0]
        self.seq, self.mac = (head.seq, head.mac) if head is not None and self.is_cut else tip
        self.first_seq = self.seq + 1

    def append(self, table: sa.Table, values: Mapping[str, Any], instances: Sequence[Mapping[str, Any]] = ()) -> None:
        """Insert one row, and with a decision its instances, as the next link."""
        row = {**values, "writer": self.writer, "seq": self.seq + 1, "prev_mac": self.mac}
        mac = self._key.mac(table.name, row, instances)
        self._connection.execute(sa.insert(table), {**row, "mac": mac})
        if instances:
            self._connection.execute(sa.insert(tables.decision_instances), list(instances))
        self.seq, self.mac = self.seq + 1, mac


def tip_of(connection: Connection, writer: str) -> tuple[int, str]:
    """Sequence number and MAC of the writer's last row in any table; (0, GENESIS) where there is none."""
    last = [
        sa.select(table.c.seq, table.c.mac).where(table.c.writer == writer).order_by(table.c.seq.desc()).limit(1)
        for table in tables.CHAINED
    ]
    found = [row for query in last if (row := connection.execute(query).first()) is not None]
    return max(((int(row.seq), str(row.mac)) for row in found), default=(0, GENESIS))
