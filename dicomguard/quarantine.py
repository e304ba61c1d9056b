"""What people do with held studies: look, release, reject. Each ruling has an actor and a reason and is recorded first.

Released means released for that version of the study: a late image makes a new version and is screened again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomguard.decision import Decision, Disposition
from dicomguard.errors import NotFoundError, ReviewError
from dicomguard.ledger import Ledger
from dicomguard.ledger.records import Review
from dicomguard.spool.store import Spool

_RULED = {"release": "released", "reject": "rejected"}


@dataclass(frozen=True, slots=True)
class Held:
    """One quarantined version of a study. `files` counts what lies in the quarantine folder now."""

    decision: Decision
    review: Review | None
    files: int
    evidence: Path | None

    def to_json(self) -> dict[str, Any]:
        """The decision with what became of it."""
        return {
            **self.decision.to_json(),
            "state": "held" if self.review is None else _RULED[self.review.action],
            "review": None if self.review is None else self.review.to_json(),
            "files": self.files,
            "evidence": None if self.evidence is None else sorted(str(path) for path in self.evidence.iterdir()),
        }


class Quarantine:
    """Needs the spool and the ledger, and the names of the destinations that are configured now."""

    def __init__(self, spool: Spool, ledger: Ledger, destinations: Sequence[str]) -> None:
        self._spool = spool
        self._ledger = ledger
        self._destinations = tuple(destinations)

    def held(self, *, include_ruled: bool = False) -> list[Held]:
        """What waits for a ruling, oldest first; with `include_ruled` also what has had one."""
        reviews = {review.decision_id: review for review in self._ledger.reviews()}
        decisions = self._ledger.decisions(disposition=Disposition.QUARANTINE)
        return [
            self._describe(decision, reviews.get(decision.decision_id))
            for decision in decisions
            if include_ruled or decision.decision_id not in reviews
        ]

    def find(self, name: str) -> list[Held]:
        """By decision id, by the beginning of one, or by Study Instance UID. Raises NotFoundError."""
        by_study = [held for held in self.held(include_ruled=True) if held.decision.study_instance_uid == name]
        if by_study:
            return by_study
        decision = self._ledger.decision(name)
        if decision.disposition is not Disposition.QUARANTINE:
            raise NotFoundError(f"Decision {decision.decision_id} did not quarantine its study.")
        reviews = self._ledger.reviews(decision.decision_id)
        return [self._describe(decision, reviews[-1] if reviews else None)]

    def release(self, name: str, *, actor: str, reason: str) -> list[Held]:
        """Send what is held to its destinations. Raises ReviewError, NotFoundError."""
        waiting = self._waiting(name)
        for held in waiting:
            if not set(held.decision.destinations) & set(self._destinations):
                raise ReviewError(
                    f"None of the destinations of decision {held.decision.decision_id} is configured any more.",
                    advice="Add one under 'destinations' with the same name; its name stands in 'quarantine show'.",
                )
            self._ledger.record_review(held.decision.decision_id, "release", actor, reason)
            self._spool.release(held.decision.decision_id, held.decision.destinations)
        return [self.find(held.decision.decision_id)[0] for held in waiting]

    def reject(self, name: str, *, actor: str, reason: str) -> list[Held]:
        """Keep what is held for good, without sending it. Raises ReviewError, NotFoundError."""
        waiting = self._waiting(name)
        for held in waiting:
            self._ledger.record_review(held.decision.decision_id, "reject", actor, reason)
            self._spool.reject(held.decision.decision_id)
        return [self.find(held.decision.decision_id)[0] for held in waiting]

    def _waiting(self, name: str) -> list[Held]:
        found = self.find(name)
        waiting = [held for held in found if held.review is None]
        if not waiting:
            last = found[-1]
            assert last.review is not None
            raise ReviewError(
                f"Decision {last.decision.decision_id} was ruled on already:"
                f" {last.review.action} by {last.review.actor}."
            )
        return waiting

    def _describe(self, decision: Decision, review: Review | None) -> Held:
        files = len(self._spool.quarantined(decision.decision_id))
        return Held(decision, review, files, self._spool.evidence(decision.decision_id))
