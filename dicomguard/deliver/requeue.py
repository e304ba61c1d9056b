"""A person brings back what was refused for good, or has a study sent once more.

Recorded first, then moved: the courier believes the ledger, and would take an instance that is dead, or delivered, off
its queue.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dicomguard.decision import Decision, Disposition
from dicomguard.errors import DeliveryError, NotFoundError
from dicomguard.ledger import Delivery, DeliveryState, Ledger
from dicomguard.spool.store import Spool
from dicomguard.study import Instance


def retry(
    spool: Spool,
    ledger: Ledger,
    *,
    destination: str | None = None,
    study_uid: str | None = None,
) -> int:
    """Queue undeliverable instances again: all, or those of one destination or study. Returns how many."""
    count = 0
    for item in list(spool.undeliverable()):
        receipt = item.instance.receipt
        if destination not in {None, item.destination} or study_uid not in {None, receipt.study_instance_uid}:
            continue
        ledger.record_delivery(_requeued(item.decision_id, item.instance, item.destination))
        while item.instance.path.exists():
            # The courier removes a queue that it has emptied, and may do so just before this instance gets there.
            spool.send_again(item)
        count += 1
    return count


def resend(
    spool: Spool, ledger: Ledger, study_uid: str, *, configured: Sequence[str], destination: str | None = None
) -> int:
    """Queue what was forwarded of a study once more, for a destination that lost it. Returns how many instances.

    To `destination`, or to those that it was decided for and that are still configured; where none was, to those that
    are. What waits there already, or was refused there, is left alone.

    Raises:
        NotFoundError: no decision forwarded the study, or nothing of it is in the store any longer.
        DeliveryError: there is no destination to send it to.

    """
    released = {review.decision_id for review in ledger.reviews() if review.action == "release"}
    sent = {
        decision.decision_id: decision
        for decision in ledger.decisions(study_uid=study_uid)
        if decision.disposition is Disposition.FORWARD or decision.decision_id in released
    }
    if not sent:
        raise NotFoundError(
            f"No decision forwarded study {study_uid}.", advice="'dicomguard decisions --study' says what was decided."
        )
    stored = [(decision_id, instance) for decision_id, instance in spool.stored() if decision_id in sent]
    if not stored:
        raise NotFoundError(
            f"Nothing of study {study_uid} is in the store: its retention is over, or it has not got there yet.",
            advice="'dicomguard deliveries list --study' shows where it stands; its sender may have it still.",
        )
    count = 0
    for decision_id, group in itertools.groupby(stored, key=lambda pair: pair[0]):
        instances = [instance for _, instance in group]
        for target in _targets(sent[decision_id], configured, destination):
            lacking = [i for i in instances if not _waits(spool, target, decision_id, i)]
            ledger.record_deliveries([_requeued(decision_id, instance, target) for instance in lacking])
            count += spool.send_stored(decision_id, [instance.name for instance in lacking], target)
    return count


def _targets(decision: Decision, configured: Sequence[str], destination: str | None) -> list[str]:
    if destination is not None:
        return [destination]
    targets = [name for name in decision.destinations or configured if name in configured]
    if not targets:
        raise DeliveryError(
            f"None of the destinations of decision {decision.decision_id} is configured.",
            advice="Add one under 'destinations', or name another with --destination.",
        )
    return targets


def _waits(spool: Spool, destination: str, decision_id: str, instance: Instance) -> bool:
    places = (spool.root / place / destination / decision_id for place in ("outbound", "undeliverable"))
    return any((folder / instance.name).exists() for folder in places)


def _requeued(decision_id: str, instance: Instance, destination: str) -> Delivery:
    receipt = instance.receipt
    return Delivery(
        decision_id,
        receipt.study_instance_uid,
        receipt.sop_instance_uid,
        receipt.sha256,
        destination,
        DeliveryState.REQUEUED,
    )
