"""What the screener tells people of, beside its decisions: each trouble once, however often it is met.

Every method raises LedgerError while the ledger is away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dicomguard.ledger import EventKind, Ledger
from dicomguard.spool.store import Claim

_log = logging.getLogger(__name__)
_HOST_EVERY_S = 3600.0


class Alarms:
    """One per screener."""

    def __init__(self, ledger: Ledger, monotonic: Callable[[], float]) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._reported: set[tuple[EventKind, str]] = set()
        self._next_host_s = 0.0

    def sound(self, kind: EventKind, uid: str, detail: dict[str, Any], about: str = "decision_id") -> None:
        """Record an alarm once: what was interrupted after recording it comes by here again.

        `about`: the entry of `detail` that says what it is about.
        """
        if not self._is_recorded(kind, detail[about], about):
            self._ledger.record_event(kind, uid, detail)

    def report(self, error: Exception, kind: EventKind, uid: str, detail: dict[str, Any], about: str) -> None:
        """Tell of something that is tried again and again: in the log once a run, as an alarm once."""
        if (kind, detail[about]) not in self._reported:
            _log.error("%s for %s %s.", kind, about, detail[about], exc_info=error)
            self.sound(kind, uid, {**detail, "error": type(error).__name__}, about)
            self._reported.add((kind, detail[about]))

    def sound_claim(self, kind: EventKind, claim: Claim) -> None:
        """One for each study in the claim, recorded once, however often the claim comes by here."""
        if not self._is_recorded(kind, claim.claim_id, "claim_id"):
            for uid in sorted({instance.study_instance_uid for instance in claim.instances}):
                self._ledger.record_event(kind, uid, {"claim_id": claim.claim_id})

    def blame_host(self, error: Exception) -> None:
        """The machine does not do its part: when it is first seen, and every hour that it goes on."""
        if self._monotonic() < self._next_host_s:
            return
        said = (error.strerror or "") if isinstance(error, OSError) else str(error)
        self._ledger.record_event(EventKind.HOST_FAILING, "", {"error": type(error).__name__, "detail": said})
        self._next_host_s = self._monotonic() + _HOST_EVERY_S

    def _is_recorded(self, kind: EventKind, name: str, about: str) -> bool:
        return any(event.detail.get(about) == name for event in self._ledger.events(kind))
