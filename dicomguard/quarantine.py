"""What people do with held studies: look, release, reject, mark, purge. Each has an actor and a reason, recorded first.

Released means released for that version of the study: a late image makes a new version and is screened again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicomguard.decision import Decision, Disposition, Verdict
from dicomguard.errors import NotFoundError, ReviewError, SpoolError
from dicomguard.ledger import EventKind, Ledger, Review, RuledAction
from dicomguard.spool.store import Spool

_RULED: Final = {"release": "released", "reject": "rejected"}
# What people type must be enough to name one decision today and next year.
_MIN_PREFIX: Final = 8
# The screener carries out rulings too: where both do it at once, the second look finds it done.
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Held:
    """One quarantined version of a study. `files` counts what lies in the quarantine folder now."""

    decision: Decision
    review: Review | None
    files: int
    evidence: Path | None
    is_purged: bool = False

    @property
    def is_unfinished(self) -> bool:
        """True when it was ruled on and its files have not moved yet."""
        return self.review is not None and self.files > 0

    @property
    def state(self) -> str:
        """`held`, `released` or `rejected`."""
        return "held" if self.review is None else _RULED[self.review.action]

    @property
    def state_in_words(self) -> str:
        """The state as people read it."""
        if self.is_unfinished:
            return f"{self.state}, files not moved yet"
        return f"{self.state}, files removed" if self.is_purged else self.state

    def to_json(self) -> dict[str, Any]:
        """The decision with what became of it."""
        return {
            **self.decision.to_json(),
            "state": self.state,
            "review": None if self.review is None else self.review.to_json(),
            "files": self.files,
            "purged": self.is_purged,
            "evidence": None if self.evidence is None else sorted(str(path) for path in self.evidence.iterdir()),
        }


class Quarantine:
    """Needs the spool and the ledger, and the names of the destinations that are configured now."""

    def __init__(self, spool: Spool, ledger: Ledger, destinations: Sequence[str]) -> None:
        self._spool = spool
        self._ledger = ledger
        self._destinations = tuple(destinations)

    def held(self, *, include_ruled: bool = False) -> list[Held]:
        """What waits for a ruling or for its files to move, oldest first; with `include_ruled` all that ever did."""
        reviews = {review.decision_id: review for review in self._ledger.reviews()}
        purged = self._purged()
        found = [
            self._describe(decision, reviews.get(decision.decision_id), is_purged=decision.decision_id in purged)
            for decision in self._ledger.decisions(disposition=Disposition.QUARANTINE)
        ]
        return [held for held in found if include_ruled or held.review is None or held.is_unfinished]

    def find(self, name: str) -> list[Held]:
        """By decision id, by the beginning of one (8 characters or more), or by Study Instance UID.

        Raises NotFoundError.
        """
        decisions = list(self._ledger.decisions(study_uid=name, disposition=Disposition.QUARANTINE))
        if not decisions:
            if len(name) < _MIN_PREFIX:
                raise NotFoundError(
                    f"No held study has the UID {name!r}, and the beginning of a decision id has {_MIN_PREFIX} or more"
                    " characters.",
                    advice="'dicomguard quarantine list --all' shows both.",
                )
            decision = self._ledger.decision(name)
            if decision.disposition is not Disposition.QUARANTINE:
                raise NotFoundError(f"Decision {decision.decision_id} did not quarantine its study.")
            decisions = [decision]
        purged = self._purged()
        found = []
        for decision in decisions:
            reviews = self._ledger.reviews(decision.decision_id)
            is_purged = decision.decision_id in purged
            found.append(self._describe(decision, reviews[-1] if reviews else None, is_purged=is_purged))
        return found

    def release(
        self, name: str, *, actor: str, reason: str, all_versions: bool = False, false_hold: bool = False
    ) -> list[Held]:
        """Send what is held to its destinations. Said again, it finishes what was interrupted.

        With `false_hold` it is marked as one, too; see `mark_false`.

        To the destinations that were recorded when it was held and are still configured; where none was recorded, to
        those that are configured now. Raises ReviewError, NotFoundError.
        """
        waiting = self._waiting(name, "release", all_versions=all_versions)
        if false_hold and not any(_held_by(held.decision) for held in waiting):
            raise _no_models_hold(waiting[-1].decision)
        targets = {held.decision.decision_id: self._targets(held.decision) for held in waiting if held.review is None}
        for held in waiting:
            decision_id = held.decision.decision_id
            if held.review is None:
                self._ledger.record_review(decision_id, "release", actor, reason, targets[decision_id])
            self._carry_out(decision_id, "release")
            if false_hold:
                self._mark(held.decision, actor.strip(), reason.strip())
        return [self.find(held.decision.decision_id)[0] for held in waiting]

    def reject(self, name: str, *, actor: str, reason: str, all_versions: bool = False) -> list[Held]:
        """Keep what is held for good, without sending it. Said again, it finishes what was interrupted.

        Raises ReviewError, NotFoundError.
        """
        waiting = self._waiting(name, "reject", all_versions=all_versions)
        for held in waiting:
            if held.review is None:
                self._ledger.record_review(held.decision.decision_id, "reject", actor, reason)
            self._carry_out(held.decision.decision_id, "reject")
        return [self.find(held.decision.decision_id)[0] for held in waiting]

    def mark_false(self, name: str, *, actor: str, reason: str) -> list[Held]:
        """Record that what was released should never have been held: the images are clean. Said again, nothing happens.

        It counts against the budget of the bundle that held it, and changes nothing else.

        Raises:
            ReviewError: no actor or reason, nothing of it was released, or no protected model had held it.
            NotFoundError: there is no such decision or study.

        """
        actor, reason = actor.strip(), reason.strip()
        if not actor or not reason:
            raise ReviewError("A mark needs an actor and a reason.", advice="Give both; they are recorded.")
        found = self.find(name)
        released = [held for held in found if held.state == "released"]
        if not released:
            raise ReviewError(
                f"Decision {found[-1].decision.decision_id} is {found[-1].state}; only what was released can have been"
                " a false hold.",
                advice="Release it with 'quarantine release ... --false-hold'.",
            )
        marked = [held for held in released if _held_by(held.decision)]
        if not marked:
            raise _no_models_hold(released[-1].decision)
        for held in marked:
            self._mark(held.decision, actor, reason)
        return marked

    def _mark(self, decision: Decision, actor: str, reason: str) -> None:
        bundles = _held_by(decision)
        known = {event.detail["decision_id"] for event in self._ledger.events(EventKind.FALSE_HOLD)}
        if bundles and decision.decision_id not in known:
            detail = {"decision_id": decision.decision_id, "bundles": bundles, "actor": actor, "reason": reason}
            self._ledger.record_event(EventKind.FALSE_HOLD, decision.study_instance_uid, detail)

    def purge(self, name: str, *, actor: str, reason: str) -> tuple[Held, int]:
        """Remove the files of a rejected decision, for good; the ledger keeps the decision. And how many went.

        Raises ReviewError, NotFoundError, SpoolError.
        """
        actor, reason = actor.strip(), reason.strip()
        if not actor or not reason:
            raise ReviewError("A removal needs an actor and a reason.", advice="Give both; they are recorded.")
        found = self.find(name)
        rejected = [held for held in found if held.state == "rejected"]
        if not rejected:
            raise ReviewError(
                f"Decision {found[-1].decision.decision_id} is {found[-1].state}; only rejected ones are removed.",
                advice="Reject it first. What is released goes with the retention period.",
            )
        there = [held for held in rejected if held.is_unfinished or not held.is_purged]
        if len(there) > 1:
            raise _too_many("rejected", there, "Name one of them.")
        if not there:
            # Recorded, and perhaps interrupted: what is left of it goes now.
            left = sum(self._spool.purge_rejected(held.decision.decision_id) for held in rejected)
            return rejected[-1], left
        held = there[0]
        decision = held.decision
        if held.is_unfinished:
            self._carry_out(decision.decision_id, "reject")
        detail = {
            "decision_id": decision.decision_id,
            "actor": actor,
            "reason": reason,
            "instances": [{"sop_instance_uid": i.sop_instance_uid, "sha256": i.sha256} for i in decision.instances],
        }
        self._ledger.record_event(EventKind.REJECTED_PURGED, decision.study_instance_uid, detail)
        count = self._spool.purge_rejected(decision.decision_id)
        return self.find(decision.decision_id)[0], count

    def _targets(self, decision: Decision) -> tuple[str, ...]:
        targets = tuple(n for n in decision.destinations or self._destinations if n in self._destinations)
        if not targets:
            what = "None of the destinations" if decision.destinations else "No destination"
            raise ReviewError(
                f"{what} of decision {decision.decision_id} is configured.",
                advice="Add one under 'destinations'; the names that were recorded stand in 'quarantine show'.",
            )
        return targets

    def _carry_out(self, decision_id: str, action: RuledAction) -> None:
        for _ in range(_TRIES):
            try:
                if action == "reject":
                    self._spool.reject(decision_id)
                else:
                    queued = {d.destination for d in self._ledger.deliveries(decision_id=decision_id)}
                    self._spool.release(decision_id, sorted(queued))
            except FileNotFoundError:
                continue
            return
        raise SpoolError(
            f"The files of decision {decision_id} keep moving while they are {_RULED[action]}.",
            advice="The ruling is recorded; say the same again in a moment.",
        )

    def _waiting(self, name: str, action: RuledAction, *, all_versions: bool) -> list[Held]:
        found = self.find(name)
        waiting = [h for h in found if h.review is None or (h.is_unfinished and h.review.action == action)]
        if not waiting:
            last = found[-1]
            assert last.review is not None
            raise ReviewError(
                f"Decision {last.decision.decision_id} was ruled on already:"
                f" {last.review.action} by {last.review.actor}."
            )
        if len(waiting) > 1 and not all_versions:
            raise _too_many("waiting", waiting, "Look at each and name one of them, or say --all-versions.")
        return waiting

    def _purged(self) -> set[str]:
        return {event.detail["decision_id"] for event in self._ledger.events(EventKind.REJECTED_PURGED)}

    def _describe(self, decision: Decision, review: Review | None, *, is_purged: bool) -> Held:
        files = self._spool.left_in_quarantine(decision.decision_id)
        return Held(decision, review, files, self._spool.evidence(decision.decision_id), is_purged)


def _held_by(decision: Decision) -> list[str]:
    """The bundles whose opinion of an image, or of the whole study, held it; none where a fault of a transfer did."""
    holders = sorted({i.bundle for i in decision.instances if i.bundle is not None and i.holds})
    if holders or decision.bundle is None or decision.verdict not in {Verdict.SUSPECT, Verdict.INCONCLUSIVE}:
        return holders
    return [decision.bundle]


def _no_models_hold(decision: Decision) -> ReviewError:
    return ReviewError(
        f"Decision {decision.decision_id} was not held by a protected model ({', '.join(decision.reasons)}), so it is"
        " no false hold of one.",
        advice="Release it without --false-hold.",
    )


def _too_many(what: str, found: Sequence[Held], advice: str) -> ReviewError:
    ids = ", ".join(f"{held.decision.decision_id} (version {held.decision.version})" for held in found)
    return ReviewError(f"{len(found)} versions of the study are {what}: {ids}.", advice=advice)
