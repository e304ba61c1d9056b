"""What the receiver tells the journal and the log. Neither can be flooded by a peer, nor stop reception."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dicomguard.association import AssociationEvent
from dicomguard.receive.thinning import Bucket, Thinning
from dicomguard.spool.journal import JournalWriter

_LOG = logging.getLogger(__name__)

# Lines of the log: more than honest traffic causes. A log is rotated, and may hold more than the ledger.
_BURST = 200.0
_PER_SECOND = 20.0


class Chronicle:
    """Takes association events from all threads of one acceptor.

    What no permission is needed for, everything but the life of an established association, is thinned out. Addresses
    of the allow list are counted apart: a flood from elsewhere leaves the troubles of permitted peers in sight.
    """

    def __init__(
        self,
        journal: JournalWriter,
        *,
        knows: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._knows = knows
        self._thinnings = {True: Thinning(clock), False: Thinning(clock)}

    def tell(self, event: AssociationEvent) -> None:
        """Journal and log one event, or count it for the row that sums up its address and minute."""
        if event.association_id or self._thinnings[self._knows(event.address)].passes(event):
            self._write(event)

    def rotate(self, *, is_last: bool = False) -> None:
        """Hand over to the screener what has been written, and what has been summed up, in the end all of it."""
        for thinning in self._thinnings.values():
            for event in thinning.summaries(is_last=is_last):
                self._write(event)
        self._guarded(self._journal.rotate)

    def _write(self, event: AssociationEvent) -> None:
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
