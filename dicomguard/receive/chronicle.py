"""What the receiver tells the journal and the log. Neither can be flooded by a peer, nor stop reception."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.spool.journal import JournalWriter

_LOG = logging.getLogger(__name__)

# What anybody can cause without being permitted: a burst of this many is kept in full, then this many a second.
_BURST = 200.0
_PER_SECOND = 20.0
_UNBOUNDED = frozenset({AssociationKind.ACCEPTED, AssociationKind.RELEASED})


class Bucket:
    """A token bucket on a monotonic clock. Thread-safe."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._tokens = burst
        self._at = clock()
        self._left_out = 0
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """None: keep quiet. Otherwise how many were kept quiet since the last time."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
            self._at = now
            if self._tokens < 1:
                self._left_out += 1
                return None
            self._tokens -= 1
            left_out, self._left_out = self._left_out, 0
            return left_out


class Chronicle:
    """Takes association events from all threads of one acceptor."""

    def __init__(self, journal: JournalWriter, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._bucket = Bucket(_BURST, _PER_SECOND, clock)

    def tell(self, event: AssociationEvent) -> None:
        """Journal and log one event. What strangers cause is thinned out, and the number left out is told."""
        if event.kind not in _UNBOUNDED:
            left_out = self._bucket.take()
            if left_out is None:
                return
            if left_out:
                event = replace(event, detail=f"{event.detail} ({left_out} earlier event(s) not shown)".strip())
        # Peers choose these strings: repr() keeps them on one line and out of the terminal's control sequences.
        _LOG.info(
            "Association %s: %s, calling %r, called %r%s",
            event.kind.value,
            event.address,
            event.calling_ae,
            event.called_ae,
            f", {event.detail}" if event.detail else "",
        )
        self._guarded(lambda: self._journal.append(event.to_json()))

    def rotate(self) -> None:
        """Hand over to the screener what has been written."""
        self._guarded(self._journal.rotate)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            # A full disk must not end the association that would be told 0xA700.
            _LOG.error("The journal cannot be written: %s; association events are lost until it can.", error.strerror)


class FloodFilter(logging.Filter):
    """Thins out a log below a rate that no honest traffic reaches. Attach to the receiver's handler or logger."""

    def __init__(self) -> None:
        super().__init__()
        self._bucket = Bucket(_BURST, _PER_SECOND)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass while the rate is bearable; the next one that passes says how many did not."""
        left_out = self._bucket.take()
        if left_out:
            record.msg = f"{record.msg} ({left_out} earlier line(s) left out)"
        return left_out is not None
