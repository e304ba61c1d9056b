"""A ledger that is evidence: read from a copy, so that looking at it changes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from dicomguard.errors import LedgerError
from dicomguard.ledger import tables


def snapshot(ledger: Path, folder: Path) -> Path:
    """Copy an SQLite ledger, its write-ahead log included, to a new file in `folder`; from read-only media, too.

    A node may be writing to it: the copy is what stood there at one moment.

    Raises:
        LedgerError: it cannot be read, or is no ledger.

    """
    copy = folder / "ledger.db"
    log = ledger.with_name(f"{ledger.name}-wal")
    # A database in WAL mode cannot be opened where its index cannot be written, unless it is said never to change. Then
    # its log is not read, which must not be passed over in silence.
    modes = ["mode=ro"] if log.exists() and log.stat().st_size else ["mode=ro", "mode=ro&immutable=1"]
    said = ""
    for mode in modes:
        try:
            with (
                closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?{mode}", uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
                named = {name for (name,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            said = str(error)
            if "unable to open" not in said:  # locked, it may change; damaged, reading on would not help
                break
            continue
        if tables.identity.name not in named:
            raise LedgerError(f"{ledger} is no ledger.", advice="Name the ledger.db of a node.")
        return copy
    raise LedgerError(
        f"The ledger {ledger} cannot be read: {said}.",
        advice=f"Copy it, with {log.name} where that is there, to a folder that you may write to, and name the copy.",
    )
