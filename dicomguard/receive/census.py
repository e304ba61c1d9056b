"""How many associations there are, over all acceptor processes, in a few words of shared memory.

Every acceptor writes its own row only, so that no lock is held across processes and one that is killed leaves none
behind; its row is cleared by the parent. Two that admit in the same microsecond may exceed the cap by one each: caps
are there to bound memory, not to count heads.
"""

from __future__ import annotations

import mmap
import os
import threading
import zlib

from dicomguard.receive.admission import TOO_MANY, TOO_MANY_FROM_ADDRESS, Refusal

_BUCKETS = 1024
_ROW = 2 + _BUCKETS
_CONNECTIONS, _ASSOCIATIONS, _ADDRESSES = 0, 1, 2
_WORD_BYTES = 4


class Census:
    """The counters of acceptor `row` of `rows`. Thread-safe. Addresses share a counter when their hashes collide."""

    def __init__(self, rows: int = 1, row: int = 0, descriptor: int = -1) -> None:
        """`descriptor` is the memory shared by the acceptors (see `shared_memory`); -1 keeps it to this process."""
        self._rows = rows
        self._row = row
        self._memory = mmap.mmap(descriptor, _size(rows))
        self._words = memoryview(self._memory).cast("I")
        self._lock = threading.Lock()

    def connected(self) -> None:
        """A connection was accepted."""
        self._add(_CONNECTIONS, 1)

    def disconnected(self) -> None:
        """A connection has ended."""
        self._add(_CONNECTIONS, -1)

    def admit(self, address: str, *, limit: int, limit_per_address: int) -> Refusal | None:
        """Count one more association, or say why not."""
        bucket = _ADDRESSES + zlib.crc32(address.encode()) % _BUCKETS
        with self._lock:
            if self._total(_ASSOCIATIONS) >= limit:
                return TOO_MANY
            if self._total(bucket) >= limit_per_address:
                return TOO_MANY_FROM_ADDRESS
            self._words[self._row * _ROW + _ASSOCIATIONS] += 1
            self._words[self._row * _ROW + bucket] += 1
        return None

    def dismiss(self, address: str) -> None:
        """An admitted association has ended."""
        self._add(_ASSOCIATIONS, -1)
        self._add(_ADDRESSES + zlib.crc32(address.encode()) % _BUCKETS, -1)

    @property
    def associations(self) -> int:
        """Established associations of all acceptors."""
        return self._total(_ASSOCIATIONS)

    def is_busier_than_others(self) -> bool:
        """True when another acceptor has fewer connections: let it have the next one."""
        counts = [self._words[row * _ROW + _CONNECTIONS] for row in range(self._rows)]
        return counts[self._row] > min(counts)

    def clear(self, row: int) -> None:
        """Forget what an acceptor that died had counted. For the parent."""
        start = row * _ROW
        self._words[start : start + _ROW] = memoryview(bytes(_ROW * _WORD_BYTES)).cast("I")

    def _add(self, column: int, change: int) -> None:
        with self._lock:
            self._words[self._row * _ROW + column] += change

    def _total(self, column: int) -> int:
        return sum(self._words[row * _ROW + column] for row in range(self._rows))


def shared_memory(rows: int) -> int:
    """A file descriptor of memory for the counters of `rows` acceptors; hand it down to them."""
    descriptor = os.memfd_create("dicomguard-census")
    os.ftruncate(descriptor, _size(rows))
    return descriptor


def _size(rows: int) -> int:
    return rows * _ROW * _WORD_BYTES
