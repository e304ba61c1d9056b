"""What the screener does between studies: take in the journal, finish people's rulings, look for drift.

None of it may stop screening: what fails is told of and tried again. Only a ledger that is away is somebody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from dicomguard.association import AssociationEvent
from dicomguard.errors import LedgerError, SpoolError
from dicomguard.ledger import EventKind, Ledger, Review
from dicomguard.screen.alarms import Alarms
from dicomguard.screen.watch import Watch
from dicomguard.spool import journal
from dicomguard.spool.store import Spool
from dicomguard.study import study_key

_log = logging.getLogger(__name__)

_REVIEWS_EVERY_S = 30.0
_WATCH_EVERY_S = 60.0


class Chores:
    """One per screener. Every method raises LedgerError while the ledger is away."""

    def __init__(
        self, spool: Spool, ledger: Ledger, alarms: Alarms, watch: Watch | None, monotonic: Callable[[], float]
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._alarms = alarms
        self._watch = watch
        self._monotonic = monotonic
        self._next_reviews_s = 0.0
        self._next_watch_s = 0.0

    def step(self) -> bool:
        """Whatever is due. True when the journal had something."""
        did = self._ingest_journal()
        if self._monotonic() >= self._next_reviews_s:
            self._next_reviews_s = self._monotonic() + _REVIEWS_EVERY_S
            self.finish_reviews()
        if self._monotonic() >= self._next_watch_s:
            self._next_watch_s = self._monotonic() + _WATCH_EVERY_S
            self._look_for_drift()
        return did

    def _ingest_journal(self) -> bool:
        did = False
        for name, lines in journal.finished(self._spool.root):
            if isinstance(lines, OSError):
                self._alarms.report(lines, EventKind.JOURNAL_UNREADABLE, "", {"journal": name}, "journal")
                continue
            try:
                self._ledger.record_associations(name, _association_events(name, lines))
                journal.discard(self._spool.root, name)
            except LedgerError:
                raise
            except Exception as error:  # noqa: BLE001  # one file must not stop the others, and screening even less
                self._alarms.report(error, EventKind.JOURNAL_UNREADABLE, "", {"journal": name}, "journal")
            else:
                did = True
        return did

    def finish_reviews(self) -> None:
        """Carry out rulings whose files have not moved: the command was interrupted, or quicker than our own `hold`.

        One that cannot be carried out is tried again the next time, and stops neither the others nor screening.
        """
        for review in self._ledger.reviews():
            try:
                self._finish_review(review)
            except LedgerError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever is wrong with one decision's files
                detail = {"decision_id": review.decision_id, "action": review.action}
                self._alarms.report(
                    error, EventKind.REVIEW_UNFINISHED, review.study_instance_uid, detail, "decision_id"
                )

    def _finish_review(self, review: Review) -> None:
        if not self._spool.left_in_quarantine(review.decision_id):
            return
        if review.action == "release":
            queued = {d.destination for d in self._ledger.deliveries(decision_id=review.decision_id)}
            self._spool.release(review.decision_id, sorted(queued))
            damaged = self._spool.set_aside_released(review.decision_id, study_key(review.study_instance_uid))
            if damaged:
                detail = {"claim_id": review.decision_id, "n": damaged}
                self._ledger.record_event(EventKind.STRANGER_IN_SPOOL, review.study_instance_uid, detail)
            if left := self._spool.left_in_quarantine(review.decision_id):
                raise SpoolError(f"{left} file(s) of decision {review.decision_id} cannot be read just now.")
        else:
            self._spool.reject(review.decision_id)

    def _look_for_drift(self) -> None:
        if self._watch is None:
            return
        try:
            self._watch.step()
        except LedgerError:
            raise
        except Exception:  # noqa: BLE001  # whatever is wrong with the statistics, screening goes on
            _log.exception("The drift watch failed; studies are screened as before.")


def _association_events(name: str, lines: Sequence[dict[str, Any]]) -> list[AssociationEvent]:
    """The lines that are events; the others are left out."""
    events = []
    for line in lines:
        try:
            events.append(AssociationEvent.from_json(line))
        except (KeyError, TypeError, ValueError):
            _log.warning("A line of the association journal %s cannot be read; left out.", name)
    return events
