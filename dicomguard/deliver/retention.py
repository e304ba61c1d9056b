"""Ends retention periods: removes what every destination has got and nobody needs here any longer, and records that.

What is in quarantine, waits for a destination, was refused by one, or was decided while there was no destination is
never removed, however old and however full the volume is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from dicomguard.decision import Disposition
from dicomguard.errors import NotFoundError
from dicomguard.ledger import Delivery, DeliveryState, EventKind, Ledger
from dicomguard.spool.store import Spool
from dicomguard.study import Instance, utc_now

_log = logging.getLogger(__name__)


class Retention:
    """Looks after `store/`. `step` is one pass over it."""

    def __init__(
        self, spool: Spool, ledger: Ledger, *, retention_days: float, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._keep = timedelta(days=retention_days)
        self._now = now

    def step(self) -> bool:
        """Remove what may go now. Returns whether anything went."""
        removed = 0
        for decision_id, group in itertools.groupby(self._spool.stored(), key=lambda stored: stored[0]):
            removed += self._end(decision_id, [instance for _, instance in group])
        return removed > 0

    def _end(self, decision_id: str, instances: Iterable[Instance]) -> int:
        horizon = self._now() - self._keep
        old = [i for i in instances if i.receipt.received_at < horizon]
        if not old:
            return 0  # cheap: nothing that came after the horizon can have been delivered before it
        try:
            decision = self._ledger.decision(decision_id)
        except NotFoundError:
            return 0  # not ours to judge; 'dicomguard verify' names it
        # A release goes to what it was queued for, which may be less than was recorded when the study was held.
        wanted = decision.destinations if decision.disposition is Disposition.FORWARD else ()
        last: dict[tuple[str, str], list[Delivery]] = {}
        for delivery in self._ledger.deliveries(decision_id=decision_id):
            last.setdefault((delivery.sop_instance_uid, delivery.sha256), []).append(delivery)
        gone = [
            instance
            for instance in old
            if not self._spool.waits_for_delivery(decision_id, instance.name)
            and _is_over(last.get((instance.sop_instance_uid, instance.receipt.sha256), []), wanted, horizon)
        ]
        if not gone:
            return 0
        # Recorded first: a crash in between leaves a record of a removal that the next pass makes true.
        detail = {
            "decision_id": decision_id,
            "instances": [{"sop_instance_uid": i.sop_instance_uid, "sha256": i.receipt.sha256} for i in gone],
        }
        self._ledger.record_event(EventKind.RETENTION_REMOVED, decision.study_instance_uid, detail)
        for instance in gone:
            self._spool.remove_stored(decision_id, instance)
        _log.info("Removed %d delivered instance(s) of decision %s: their retention is over.", len(gone), decision_id)
        return len(gone)


def _is_over(deliveries: Iterable[Delivery], wanted: Iterable[str], horizon: datetime) -> bool:
    """True when every destination got it, the last one before the horizon. What went nowhere is kept."""
    done = {}
    for delivery in deliveries:
        if delivery.state is not DeliveryState.DELIVERED:
            return False
        done[delivery.destination] = delivery.at
    return bool(done) and set(wanted) <= set(done) and max(done.values()) < horizon
