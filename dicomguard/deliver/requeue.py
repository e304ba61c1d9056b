"""A person brings back what was refused for good."""

from __future__ import annotations

from dicomguard.ledger import Delivery, DeliveryState, Ledger
from dicomguard.spool.store import Spool


def retry(
    spool: Spool,
    ledger: Ledger,
    *,
    destination: str | None = None,
    study_uid: str | None = None,
    decision_id: str | None = None,
) -> int:
    """Queue undeliverable instances again: all, or those of one destination, study or decision. Returns how many.

    Recorded first, then moved: the courier believes the ledger, and would take an instance that is dead off its queue.
    """
    count = 0
    for item in list(spool.undeliverable()):
        receipt = item.instance.receipt
        if (
            destination not in {None, item.destination}
            or study_uid not in {None, receipt.study_instance_uid}
            or decision_id not in {None, item.decision_id}
        ):
            continue
        ledger.record_delivery(
            Delivery(
                item.decision_id,
                receipt.study_instance_uid,
                receipt.sop_instance_uid,
                receipt.sha256,
                item.destination,
                DeliveryState.REQUEUED,
            )
        )
        spool.send_again(item)
        count += 1
    return count
