"""What may leave: only what the ledger says was forwarded or released, exactly as it was decided."""

from __future__ import annotations

from dataclasses import dataclass

from dicomguard.decision import Decision, Disposition, InstanceDecision
from dicomguard.errors import NotFoundError
from dicomguard.ledger import Ledger
from dicomguard.study import Instance


@dataclass(frozen=True, slots=True)
class Permit:
    """One decision's leave to send. `refusal` is "" or why nothing of it may be sent."""

    refusal: str
    instances: dict[str, InstanceDecision]

    def objection(self, instance: Instance) -> str:
        """Why this instance must not be sent, "" where it may. Its bytes are held against the receipt elsewhere."""
        if self.refusal:
            return self.refusal
        decided = self.instances.get(instance.name)
        if decided is None:
            return "the decision does not name this file"
        receipt = instance.receipt
        is_same = (decided.sha256, decided.sop_instance_uid, decided.sop_class_uid, decided.transfer_syntax_uid) == (
            receipt.sha256,
            receipt.sop_instance_uid,
            receipt.sop_class_uid,
            receipt.transfer_syntax_uid,
        )
        return "" if is_same else "the decision was about another data set than the receipt names"


def permit(ledger: Ledger, decision_id: str) -> Permit:
    """What the ledger says of a folder in `outbound/`. Raises LedgerError."""
    try:
        decision = ledger.decision(decision_id)
    except NotFoundError:
        return Permit("the ledger knows no such decision", {})
    if decision.decision_id != decision_id:  # it takes beginnings too
        return Permit("the ledger knows no such decision", {})
    if not is_permitted(ledger, decision):
        return Permit("the decision is a quarantine that nobody released", {})
    return Permit("", {instance.file_name: instance for instance in decision.instances})


def is_permitted(ledger: Ledger, decision: Decision) -> bool:
    """True when the decision forwards its study, or a person released it."""
    if decision.disposition is Disposition.FORWARD:
        return True
    return any(review.action == "release" for review in ledger.reviews(decision.decision_id))
