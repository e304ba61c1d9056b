"""Values to rows and back: decisions, deliveries, reviews, associations, events. Pure."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.decision import Decision, Disposition, InstanceDecision, Reason, Verdict
from dicomguard.errors import LedgerError
from dicomguard.ledger.chain import Row
from dicomguard.ledger.draws import Draw
from dicomguard.ledger.records import Delivery, DeliveryState, Event, Review
from dicomguard.ledger.tables import from_stamp, to_stamp, to_text
from dicomguard.study import Uid, key_of

_Read = TypeVar("_Read", bound=Callable[..., Any])


def _of_table(name: str) -> Callable[[_Read], _Read]:
    """Reading a row that nobody here can have written raises a LedgerError that names it."""

    def plain(read: _Read) -> _Read:
        @functools.wraps(read)
        def wrapped(row: Row, *rest: Any) -> Any:
            try:
                return read(row, *rest)
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                about = f", decision {row['decision_id']}," if "decision_id" in row else ""
                raise LedgerError(
                    f"{name} row {row.get('id')}{about} cannot be read: it is not as it was written.",
                    advice="'dicomguard verify' says what else was changed; compare with a backup of the ledger.",
                ) from error

        return cast("_Read", wrapped)

    return plain


def from_decision(decision: Decision) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The decision's row, and the rows of its instances in their order."""
    row = {
        "decision_id": decision.decision_id,
        "claim_id": decision.claim_id,
        "study_key": key_of(decision.study_instance_uid),
        "study_instance_uid": decision.study_instance_uid,
        "version": decision.version,
        "disposition": decision.disposition.value,
        "verdict": decision.verdict.value,
        "reasons": to_text([reason.value for reason in decision.reasons]),
        "bundle": decision.bundle,
        "fingerprint": decision.fingerprint,
        "mode": decision.mode,
        "peer": decision.peer,
        "received_at": to_stamp(decision.received_at),
        "decided_at": to_stamp(decision.decided_at),
        "destinations": to_text(list(decision.destinations)),
        "patient_key": decision.patient_key,
    }
    instances = [
        {
            "decision_id": decision.decision_id,
            "position": position,
            "sop_key": key_of(instance.sop_instance_uid),
            "sop_instance_uid": instance.sop_instance_uid,
            "sop_class_uid": instance.sop_class_uid,
            "series_instance_uid": instance.series_instance_uid,
            "transfer_syntax_uid": instance.transfer_syntax_uid,
            "sha256": instance.sha256,
            "size_bytes": instance.size_bytes,
            "file_name": instance.file_name,
            "verdict": instance.verdict.value,
            "reasons": to_text([reason.value for reason in instance.reasons]),
            "action": instance.action,
            "mode": instance.mode,
            "bundle": instance.bundle,
            "fingerprint": instance.fingerprint,
            "detail": instance.detail,
            "scores": None if instance.scores is None else to_text(instance.scores),
        }
        for position, instance in enumerate(decision.instances)
    ]
    return row, instances


@_of_table("decisions")
def to_decision(row: Row, instances: Sequence[Row]) -> Decision:
    """The inverse of `from_decision`."""
    return Decision(
        decision_id=row["decision_id"],
        claim_id=row["claim_id"],
        version=row["version"],
        study_instance_uid=Uid(row["study_instance_uid"]),
        disposition=Disposition(row["disposition"]),
        verdict=Verdict(row["verdict"]),
        reasons=_reasons(row["reasons"]),
        bundle=row["bundle"],
        fingerprint=row["fingerprint"],
        mode=row["mode"],
        peer=row["peer"],
        received_at=from_stamp(row["received_at"]),
        decided_at=from_stamp(row["decided_at"]),
        destinations=tuple(json.loads(row["destinations"])),
        instances=tuple(_to_instance(instance) for instance in instances),
        patient_key=row["patient_key"],
    )


def _to_instance(row: Row) -> InstanceDecision:
    return InstanceDecision(
        sop_instance_uid=Uid(row["sop_instance_uid"]),
        sop_class_uid=Uid(row["sop_class_uid"]),
        series_instance_uid=Uid(row["series_instance_uid"]),
        transfer_syntax_uid=Uid(row["transfer_syntax_uid"]),
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        file_name=row["file_name"],
        verdict=Verdict(row["verdict"]),
        reasons=_reasons(row["reasons"]),
        action=row["action"],
        mode=row["mode"],
        bundle=row["bundle"],
        fingerprint=row["fingerprint"],
        detail=row["detail"],
        scores=None if row["scores"] is None else json.loads(row["scores"]),
    )


def _reasons(text: str) -> tuple[Reason, ...]:
    return tuple(Reason(word) for word in json.loads(text))


def from_delivery(delivery: Delivery) -> dict[str, Any]:
    """A delivery's row."""
    return {
        "decision_id": delivery.decision_id,
        "study_key": key_of(delivery.study_instance_uid),
        "study_instance_uid": delivery.study_instance_uid,
        "sop_key": key_of(delivery.sop_instance_uid),
        "sop_instance_uid": delivery.sop_instance_uid,
        "sha256": delivery.sha256,
        "destination": delivery.destination,
        "state": delivery.state.value,
        "attempt": delivery.attempt,
        "status": delivery.status,
        "error": delivery.error,
        "next_attempt_at": None if delivery.next_attempt_at is None else to_stamp(delivery.next_attempt_at),
        "at": to_stamp(delivery.at),
    }


@_of_table("deliveries")
def to_delivery(row: Row) -> Delivery:
    """The inverse of `from_delivery`."""
    return Delivery(
        decision_id=row["decision_id"],
        study_instance_uid=Uid(row["study_instance_uid"]),
        sop_instance_uid=Uid(row["sop_instance_uid"]),
        sha256=row["sha256"],
        destination=row["destination"],
        state=DeliveryState(row["state"]),
        attempt=row["attempt"],
        status=row["status"],
        error=row["error"],
        next_attempt_at=None if row["next_attempt_at"] is None else from_stamp(row["next_attempt_at"]),
        at=from_stamp(row["at"]),
    )


def from_review(review: Review) -> dict[str, Any]:
    """A review's row."""
    return {
        "review_id": review.review_id,
        "decision_id": review.decision_id,
        "study_instance_uid": review.study_instance_uid,
        "action": review.action,
        "actor": review.actor,
        "reason": review.reason,
        "at": to_stamp(review.at),
    }


@_of_table("reviews")
def to_review(row: Row) -> Review:
    """The inverse of `from_review`."""
    return Review(
        review_id=row["review_id"],
        decision_id=row["decision_id"],
        study_instance_uid=Uid(row["study_instance_uid"]),
        action=row["action"],
        actor=row["actor"],
        reason=row["reason"],
        at=from_stamp(row["at"]),
    )


def from_association(source: str, position: int, happened: AssociationEvent) -> dict[str, Any]:
    """The row of line `position` of the journal file `source`."""
    return {
        **happened.to_json(),
        "at": to_stamp(happened.at),
        "source_key": key_of(source),
        "source": source,
        "position": position,
    }


@_of_table("associations")
def to_association(row: Row) -> AssociationEvent:
    """The event of a row; source and position are left behind."""
    return AssociationEvent(
        at=from_stamp(row["at"]),
        kind=AssociationKind(row["kind"]),
        address=row["address"],
        association_id=row["association_id"],
        calling_ae=row["calling_ae"],
        called_ae=row["called_ae"],
        detail=row["detail"],
        implementation_uid=row["implementation_uid"],
        implementation_version=row["implementation_version"],
        contexts_proposed=row["contexts_proposed"],
        contexts_accepted=row["contexts_accepted"],
        instances=row["instances"],
    )


@_of_table("events")
def to_event(row: Row) -> Event:
    """The event of a row."""
    return Event(row["kind"], row["subject_uid"], json.loads(row["detail"]), from_stamp(row["at"]), row["writer"])


def from_draw(draw: Draw) -> dict[str, Any]:
    """A draw's row."""
    return {
        "decision_id": draw.decision_id,
        "study_key": key_of(draw.study_instance_uid),
        "study_instance_uid": draw.study_instance_uid,
        "bundle": draw.bundle,
        "enrolment": draw.enrolment,
        "sender": draw.sender,
        "patient_key": draw.patient_key,
        "p_value": draw.p_value,
        "images": draw.images,
        "alpha": draw.alpha,
        "at": to_stamp(draw.at),
    }


@_of_table("draws")
def to_draw(row: Row) -> Draw:
    """The inverse of `from_draw`, with the row's own number."""
    return Draw(
        decision_id=row["decision_id"],
        study_instance_uid=Uid(row["study_instance_uid"]),
        bundle=row["bundle"],
        enrolment=row["enrolment"],
        sender=row["sender"],
        patient_key=row["patient_key"],
        p_value=row["p_value"],
        images=row["images"],
        alpha=row["alpha"],
        at=from_stamp(row["at"]),
        number=row["id"],
    )
