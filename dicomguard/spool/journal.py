"""What the receiver saw on the wire, as JSON lines in files, for the screener to carry into the ledger.

The receiver must never wait for a database. It appends to a file that it holds a lock on; the screener takes over files
that are closed, and files whose writer died, which it knows by the lock that is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

_NEW = ".new"
_OPEN = ".open"
_CLOSED = ".jsonl"
_ROTATE_LINES = 500


class JournalWriter:
    """Appends events. Thread-safe. One per process."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "journal"
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self._path = self._folder
        self._lines = 0

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event as one line; visible to the screener after the next rotation."""
        with self._lock:
            file = self._file or self._open()
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
            file.flush()
            self._lines += 1
            if self._lines >= _ROTATE_LINES:
                self._close()

    def rotate(self) -> None:
        """Hand over what has been written so far. Called now and then, and at the end."""
        with self._lock:
            self._close()

    def _open(self) -> TextIO:
        # Held open for as long as the receiver writes to it; closed by _close.
        # Locked before it has the name that the screener looks for: else it could be adopted in between.
        path = self._folder / f"{uuid.uuid4().hex}{_NEW}"
        file = path.open("x", encoding="ascii")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._path = path.rename(path.with_suffix(_OPEN))
        self._file = file
        self._lines = 0
        return file

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                os.fsync(file.fileno())
                self._path.rename(self._path.with_suffix(_CLOSED))
            finally:
                file.close()


def finished(root: Path) -> Iterator[tuple[str, list[dict[str, Any]] | OSError]]:
    """Journal files that nobody writes to any more: name and events, oldest first. A torn last line is left out.

    In place of the events the error where a file cannot be read: the files after it still come.
    """
    folder = root / "journal"
    for path in folder.glob(f"*{_OPEN}"):
        try:
            _adopt(path)
        except OSError as error:
            yield path.name, error
    for path in sorted(folder.glob(f"*{_CLOSED}"), key=_age):
        try:
            events = list(_events(path))
        except OSError as error:
            yield path.name, error
        else:
            yield path.name, events


def discard(root: Path, name: str) -> None:
    """Remove a journal file whose events are in the ledger."""
    (root / "journal" / name).unlink(missing_ok=True)


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _adopt(path: Path) -> None:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.rename(path.with_suffix(_CLOSED))
    except (BlockingIOError, FileNotFoundError):
        return  # its writer lives, or has just closed it


def _events(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("ascii", "replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event
