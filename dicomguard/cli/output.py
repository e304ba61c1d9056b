"""How results are shown: tables for people, one JSON object a line for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from dicomguard.plain_json import finite

# A pipe or a log has no width of its own: then tables get what they need rather than 80 columns.
_WIDE = 150
console = Console(width=None if sys.stdout.isatty() else _WIDE)
_COLOURS = {
    "CLEAN": "green",
    "UNSCORABLE": "cyan",
    "INCONCLUSIVE": "yellow",
    "SUSPECT": "bold red",
    "forward": "green",
    "quarantine": "bold red",
}


# Columns whose words are looked for: long UIDs give way first.
_WHOLE = frozenset({"v", "verdict", "disposition", "state", "decision", "status", "right"})


def print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line, flushed, so that a reader at the other end of a pipe sees each as it comes.

    Where a number is none stands "nan" or "inf" in words.
    """
    for row in rows:
        sys.stdout.write(json.dumps(finite(row), separators=(",", ":"), default=str, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; what is a verdict or a disposition gets its colour. Peers' words are never read as markup."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    count = 0
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
        count += 1
    if count:
        console.print(table)
    else:
        console.print(f"{title}: none.", markup=False)


def _cell(value: object) -> Any:
    from rich.text import Text

    text = "" if value is None else plain(str(value))
    return Text(text, style=_COLOURS.get(text, ""))


def plain(text: str) -> str:
    """The text with whatever a terminal would obey as an escape: peers and handed-over files may hold any words."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(uid: str, keep: int = 28) -> str:
    """The end of a long UID, which is what tells two apart."""
    return uid if len(uid) <= keep else "…" + uid[-keep:]


class Bars:
    """Progress bars by name; silent where machines read."""

    def __init__(self, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), disable=quiet
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Show how far the work of that name is."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def stop(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()


def number(value: object) -> str:
    """A figure for a table's cell; nothing where there is none."""
    return f"{value:.2f}" if isinstance(value, float) else ""
