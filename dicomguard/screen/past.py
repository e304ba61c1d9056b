"""What a decision owes to what came before it: a study that is held stays held, one UID has one data set.

None of that can be found by looking at the instances again, so it is held against the ledger, and told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dicomguard.decision import ALWAYS_HELD, REFUSED, Decision, Disposition, Reason
from dicomguard.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Past:
    """What the ledger says came before a decision.

    `held_for`: why the study was in quarantine then. `others`: SOP Instance UIDs under which another data set is known.
    """

    held_for: frozenset[Reason] = frozenset()
    others: frozenset[str] = frozenset()


def past_of(ledger: Ledger, decision: Decision) -> Past:
    """Earlier versions that nobody had released by then, and other data sets under the same UIDs."""
    uid = decision.study_instance_uid
    held_for: frozenset[Reason] = frozenset()
    for earlier in ledger.decisions(study_uid=uid, disposition=Disposition.QUARANTINE) if uid else ():
        is_before = earlier.version < decision.version and earlier.claim_id != decision.claim_id
        if not is_before or set(earlier.reasons) <= REFUSED:
            continue
        reviews = ledger.reviews(earlier.decision_id)
        if not any(review.action == "release" and review.at <= decision.decided_at for review in reviews):
            held_for |= frozenset(earlier.reasons)
    others = frozenset(
        str(instance.sop_instance_uid)
        for instance in decision.instances
        if Reason.UID_CONFLICT in instance.reasons
        for known in ledger.known_instances(instance.sop_instance_uid)
        if (known.sha256, known.transfer_syntax_uid) != (instance.sha256, instance.transfer_syntax_uid)
    )
    return Past(held_for, others)


def notes_on(decision: Decision, past: Past | None) -> Iterator[str]:
    """What a person should know of a hold that follows from earlier versions. `past` None: nobody knows it."""
    is_sticky = Reason.STUDY_QUARANTINED in decision.reasons
    if past is None:
        if is_sticky:
            yield "that the study was in quarantine already (study_quarantined) is taken as recorded"
        return
    held_for = past.held_for if decision.mode == "enforce" else past.held_for & ALWAYS_HELD
    # What was refused, or contradicts another data set, is decided on its own, whatever became of its study.
    is_apart = any(not (REFUSED | {Reason.UID_CONFLICT}).isdisjoint(i.reasons) for i in decision.instances)
    if is_sticky and not held_for:
        yield "history: recorded as study_quarantined, but by the ledger the study was not held then"
    elif is_sticky:
        yield "history: the study was in quarantine already, as recorded"
    elif held_for and not is_apart:
        yield "history: by the ledger the study was held then, and that is not recorded"
