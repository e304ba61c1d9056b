"""The last link of every writer's chain, kept in a keyed file outside the database.

A chain cannot show that its own tail was cut off. So after each commit the tip is written here, and `verify` holds the
two against each other. It cannot see: that database *and* heads were both put back to an older state together (send the
heads to another host for that), rows cut in the moment between commit and the write here, or forgery by someone who has
the chain key.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomguard.ledger.tables import to_text

_log = logging.getLogger(__name__)


class HeadsError(Exception):
    """The file is there but was not written with this key, or is damaged."""


@dataclass(frozen=True, slots=True)
class Head:
    """The tip of one writer's chain. `first_seq` is where this file began to follow it; over 1 means started over."""

    seq: int
    mac: str
    first_seq: int


class Heads:
    """Reads and advances the file. Several processes may; a lock file beside it puts them in line."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key

    def read(self) -> dict[str, Head]:
        """The heads by writer, empty where there is no file. Raises HeadsError when it cannot be trusted."""
        try:
            document = json.loads(self.path.read_bytes())
            writers = document["writers"]
            if not hmac.compare_digest(str(document["mac"]), self._mac(writers)):
                raise HeadsError("its keyed checksum is wrong")
            return {str(name): Head(int(h["seq"]), str(h["mac"]), int(h["first_seq"])) for name, h in writers.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HeadsError("it is damaged") from error

    def trusted(self) -> dict[str, Head]:
        """The heads, or none where the file cannot be trusted: recording goes on, and `verify` will show the gap."""
        try:
            return self.read()
        except (HeadsError, OSError) as error:
            _log.error("The ledger's heads file %s cannot be used: %s.", self.path, error)
            return {}

    def advance(self, writer: str, first_seq: int, seq: int, mac: str) -> None:
        """Move `writer`'s head forward, never back. `first_seq` counts only where the writer is new to the file.

        Raises OSError where the file cannot be read or written just now: the other writers' heads stay in it.
        """
        with self._locked():
            try:
                heads = self.read()
            except HeadsError as error:
                _log.error("The ledger's heads file %s is started over: %s.", self.path, error)
                heads = {}
            before = heads.get(writer)
            if before is not None and before.seq >= seq:
                return
            heads[writer] = Head(seq, mac, first_seq if before is None else before.first_seq)
            self._replace(heads)

    def _mac(self, writers: dict[str, Any]) -> str:
        return hmac.digest(self._key, to_text(writers).encode(), "sha256").hex()

    def _replace(self, heads: dict[str, Head]) -> None:
        writers = {name: {"seq": h.seq, "mac": h.mac, "first_seq": h.first_seq} for name, h in heads.items()}
        temporary = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(to_text({"writers": writers, "mac": self._mac(writers)}).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.path.with_name(self.path.name + ".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
