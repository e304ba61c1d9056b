"""What the ledger holds about one decision, for somebody who judges it elsewhere. Reads only.

The MACs are keyed: without the site's chain key nobody can check them, and whoever has the key could have made them.
What an excerpt gives a third party is a commitment. The same rows, shown later or by somebody else, must carry the same
MACs; and with the site's key, in the hands of whoever may have it, each MAC can be computed again from `covered`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dicomguard.decision import Decision
from dicomguard.ledger import tables
from dicomguard.ledger.chain import ChainKey
from dicomguard.ledger.heads import Head
from dicomguard.ledger.kinds import EventKind
from dicomguard.ledger.records import Problem
from dicomguard.ledger.rows import to_decision
from dicomguard.ledger.verify import instance_rows


def of_decision(
    connection: Connection, key: ChainKey, heads: dict[str, Head] | Problem | None, decision_id: str
) -> dict[str, Any]:
    """The rows that are the decision, its deliveries and reviews, or events that name it. Plain values.

    Who else was given an excerpt is not in it: that is no one's business but the site's.

    Each with its place in the chain, the content that its MAC covers, and whether the MAC was right when this was
    read (`mac_is_right`). `heads`: the tips of the chains that these rows belong to, None where there is no heads file.
    """
    found = []
    for table in (tables.decisions, tables.deliveries, tables.reviews, tables.events):
        names_it = (
            sa.and_(table.c.detail.contains(decision_id, autoescape=True), table.c.kind != EventKind.EVIDENCE_EXPORTED)
            if table is tables.events
            else table.c.decision_id == decision_id
        )
        for mapping in connection.execute(sa.select(table).where(names_it).order_by(table.c.id)).mappings():
            row = dict(mapping)
            instances = instance_rows(connection, row) if table is tables.decisions else []
            expected = key.mac(table.name, row, instances)
            found.append(
                {
                    "table": table.name,
                    "writer": row["writer"],
                    "seq": row["seq"],
                    "prev_mac": row["prev_mac"],
                    "mac": row["mac"],
                    "mac_is_right": hmac.compare_digest(str(row["mac"]), expected),
                    "covered": key.covered(table.name, row, instances),
                }
            )
    writers = {row["writer"] for row in found}
    known = heads if isinstance(heads, dict) else {}
    return {
        "ledger_id": key.ledger_id,
        "rows": found,
        "heads": None
        if heads is None
        else {name: {"seq": head.seq, "mac": head.mac} for name, head in sorted(known.items()) if name in writers},
        "heads_problem": str(heads) if isinstance(heads, Problem) else "",
    }


def decision_in(excerpt: Mapping[str, Any], decision_id: str) -> Decision:
    """The decision that the rows of an excerpt are. What was taken out of a row, as its NULLs are, reads as None.

    Raises LedgerError where one cannot be read, KeyError, TypeError, ValueError or AttributeError on no excerpt at all.
    """
    rows = [row["covered"] for row in excerpt["rows"] if row["table"] == tables.decisions.name]
    (covered,) = (covered for covered in rows if covered["row"]["decision_id"] == decision_id)
    instances = [_with_nulls(tables.decision_instances, row) for row in covered["instances"]]
    return to_decision(_with_nulls(tables.decisions, covered["row"]), instances)


def _with_nulls(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict.fromkeys(table.c.keys()), **row}
