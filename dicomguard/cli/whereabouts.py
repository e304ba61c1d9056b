"""Whether everything that the ledger speaks of is where the ledger says: the part of `verify` that misses files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from dicomguard.decision import Decision, Disposition, InstanceDecision
from dicomguard.errors import LedgerError
from dicomguard.ledger import Delivery, DeliveryState, EventKind, Ledger
from dicomguard.spool.store import Spool

_LOOKS: Final = 3
_HAS_FAILED: Final = ". It lies in failed/: what was decided was not carried out; see 'dicomguard failed list'"
_QUEUES: Final = ("outbound", "undeliverable", "outbound")

_Content = tuple[str, str]


class Whereabouts:
    """Holds decisions and deliveries against the folders. Safe beside a node at work."""

    def __init__(self, spool: Spool, ledger: Ledger) -> None:
        self._root = spool.root
        self._ledger = ledger
        self._rulings: dict[str, str] = {}
        self._removed: set[tuple[str, str, str]] = set()
        self._purged: set[str] = set()
        self._requeued: set[str] = set()
        self._thrown_away: set[tuple[str, str, str]] = set()
        self._last: Decision | None = None
        self._refresh()

    def problems(self) -> Iterator[dict[str, Any]]:
        """Every instance that should be somewhere and is not, and every decision that does not say where."""
        unreadable: list[LedgerError] = []
        suspects = [
            (decision, instance)
            for decision in self._ledger.decisions(skip=unreadable.append)
            for instance in decision.instances
            if self._missing_from(decision, instance)
        ]
        for error in unreadable:
            yield {"what": "ledger", "message": f"{error} Where its instances are was not checked."}
        for _ in range(_LOOKS if suspects else 0):
            self._refresh()
            suspects = [
                (decision, instance) for decision, instance in suspects if self._missing_from(decision, instance)
            ]
        for decision, instance in suspects:
            was_removed = (decision.claim_id, *_content(instance)) in self._thrown_away
            if was_removed or self._was_screened_anew(decision, instance):
                continue  # its claim failed before it got there; a person had it removed, or screened again
            has_failed = self._claims("failed", decision, instance)
            yield _finding(decision, instance, self._expected_place(decision), _HAS_FAILED if has_failed else "")
        for state in DeliveryState:
            if state not in {DeliveryState.DELIVERED, DeliveryState.REMOVED}:
                for delivery in self._ledger.deliveries(state):
                    yield from self._undelivered(delivery)

    # Kept instances ----------------------------------------------------------------------------------------------

    def _missing_from(self, decision: Decision, instance: InstanceDecision) -> str:
        """Where the instance should be and is not; "" when all is well. Looks along its way, so that it cannot slip by.

        On the way to where its decision says, it lies in `claimed/`, and with a ruling in `quarantine/`.
        """
        expected = self._expected_place(decision)
        if self._has_arrived(expected, decision, instance):
            return ""
        is_held = decision.disposition is Disposition.QUARANTINE
        if self._claims("claimed", decision, instance) or (is_held and self._is_in("quarantine", decision, instance)):
            return ""
        return "" if self._has_arrived(expected, decision, instance) else expected

    def _expected_place(self, decision: Decision) -> str:
        if decision.disposition is Disposition.FORWARD:
            return "store"
        return {"release": "store", "reject": "rejected"}.get(self._rulings.get(decision.decision_id, ""), "quarantine")

    def _has_arrived(self, place: str, decision: Decision, instance: InstanceDecision) -> bool:
        if place == "rejected" and decision.decision_id in self._purged:
            return True
        if place == "store" and (decision.decision_id, *_content(instance)) in self._removed:
            return True
        return self._is_in(place, decision, instance)

    def _was_screened_anew(self, decision: Decision, instance: InstanceDecision) -> bool:
        """A person had its claim screened again: it stands in a later decision, or waits to."""
        if decision.claim_id not in self._requeued:
            return False
        known = self._ledger.known_instances(instance.sop_instance_uid)
        later = any(k.sha256 == instance.sha256 and k.decision_id != decision.decision_id for k in known)
        return later or any((self._root / "incoming").glob(f"*/{instance.file_name}"))

    # Deliveries --------------------------------------------------------------------------------------------------

    def _undelivered(self, delivery: Delivery) -> Iterator[dict[str, Any]]:
        decision = self._decision(delivery)
        if decision is None or self._expected_place(decision) != "store":
            return  # a file of somebody else's that was not sent; named where it lies
        content = (delivery.sop_instance_uid, delivery.sha256)
        instance = next((i for i in decision.instances if _content(i) == content), None)
        if instance is None:
            return
        for _ in range(_LOOKS):
            if self._is_on_its_way(decision, instance, delivery.destination):
                return
        place = f"outbound/{delivery.destination}"
        yield _finding(decision, instance, place, f". The ledger says {delivery.state.value}")

    def _is_on_its_way(self, decision: Decision, instance: InstanceDecision, destination: str) -> bool:
        if self._claims("claimed", decision, instance) or self._is_in("quarantine", decision, instance):
            return True
        # A person may move it back from undeliverable to outbound: so that one is looked into twice.
        if any(self._is_in(f"{place}/{destination}", decision, instance) for place in _QUEUES):
            return True
        # Recorded before it is taken off the queue.
        now = self._ledger.deliveries(decision_id=decision.decision_id, destination=destination)
        states = {d.state for d in now if (d.sop_instance_uid, d.sha256) == _content(instance)}
        if states == {DeliveryState.DELIVERED}:
            return True
        # Said to have been missed in the store already, or failed and removed: one message is enough.
        return bool(self._missing_from(decision, instance))

    # Looking -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        self._rulings = {review.decision_id: review.action for review in self._ledger.reviews()}
        self._removed = {
            (event.detail["decision_id"], *content)
            for event in self._ledger.events(EventKind.RETENTION_REMOVED)
            for content in _contents(event.detail["instances"])
        }
        self._requeued = {event.detail["claim_id"] for event in self._ledger.events(EventKind.REQUEUED)}
        self._purged = {event.detail["decision_id"] for event in self._ledger.events(EventKind.REJECTED_PURGED)}
        self._thrown_away = {
            (event.detail["claim_id"], *content)
            for event in self._ledger.events(EventKind.FAILED_PURGED)
            for content in _contents(event.detail["instances"])
        }

    def _decision(self, delivery: Delivery) -> Decision | None:
        if self._last is None or self._last.decision_id != delivery.decision_id:
            found = self._ledger.decisions(study_uid=delivery.study_instance_uid)
            self._last = next((decision for decision in found if decision.decision_id == delivery.decision_id), None)
        return self._last

    def _is_in(self, place: str, decision: Decision, instance: InstanceDecision) -> bool:
        return (self._root / place / decision.decision_id / instance.file_name).exists()

    def _claims(self, place: str, decision: Decision, instance: InstanceDecision) -> bool:
        folders: Iterable[Path] = (self._root / place).glob(f"*.{decision.claim_id}*")
        return any((folder / instance.file_name).exists() for folder in folders)


def _content(instance: InstanceDecision) -> _Content:
    return str(instance.sop_instance_uid), instance.sha256


def _contents(listed: Iterable[dict[str, str]]) -> Iterator[_Content]:
    for entry in listed:
        yield entry["sop_instance_uid"], entry["sha256"]


def _finding(decision: Decision, instance: InstanceDecision, place: str, more: str = "") -> dict[str, Any]:
    why = {
        "quarantine": "and nobody ruled on it",
        "rejected": "and nobody removed it by 'quarantine purge'",
        "store": "and no retention period ended",
    }.get(place, "nor in undeliverable/")
    uid = instance.sop_instance_uid
    message = f"{uid} of decision {decision.decision_id} is not in {place}, {why}{more}."
    return {
        "what": "instance",
        "place": place,
        "decision_id": decision.decision_id,
        "sop_instance_uid": uid,
        "message": message,
    }
