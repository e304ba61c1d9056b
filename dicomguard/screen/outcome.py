"""What comes of making a decision again, as values. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dicomguard.screen.compare import Difference


class Outcome(StrEnum):
    """What came of one decision, gravest last. `MISSING`, `DIFFERS` and `ALTERED` are wrong; the others explain why."""

    AGREES = "agrees"
    GONE = "gone"
    OTHER_MODEL = "other model"
    NOT_DISCLOSED = "not disclosed"
    MISSING = "missing"
    DIFFERS = "differs"
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """One decision made again. `recomputed` of `instances` were there and looked at with the recorded model.

    `problems` is for people, one line each. `largest_distance`: of any two numbers of the scores that belong together,
    None where no score was recomputed. `notes`: what was taken as recorded, and what changed without being wrong.
    """

    decision_id: str
    outcome: Outcome
    instances: int
    recomputed: int
    differences: tuple[Difference, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    largest_distance: float | None = None

    def with_alarms(self, alarms: Iterable[str]) -> Reproduction:
        """The same, but altered where there is any alarm, which is said first."""
        said = (*alarms,)
        return replace(self, outcome=Outcome.ALTERED, problems=(*said, *self.problems)) if said else self

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        return {
            "decision_id": self.decision_id,
            "outcome": self.outcome.value,
            "instances": self.instances,
            "recomputed": self.recomputed,
            "differences": [difference.to_json() for difference in self.differences],
            "problems": list(self.problems),
            "notes": list(self.notes),
            "altered": list(self.altered),
            "largest_distance": self.largest_distance,
        }


@dataclass(slots=True)
class Findings:
    """What is gathered on the way to one `Reproduction`. `problems`: text -> what it makes of the decision."""

    differences: list[Difference] = field(default_factory=list)
    problems: dict[str, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome, problem: str) -> None:
        """Once for each text."""
        self.problems.setdefault(problem, outcome)

    def note(self, text: str) -> None:
        """Once for each text."""
        if text not in self.notes:
            self.notes.append(text)

    def result(self, decision_id: str, instances: int, recomputed: int) -> Reproduction:
        """The gravest of what was found is the outcome."""
        outcomes = [*self.problems.values(), *([Outcome.DIFFERS] if self.differences else [])]
        return Reproduction(
            decision_id,
            max(outcomes, key=list(Outcome).index, default=Outcome.AGREES),
            instances,
            recomputed,
            tuple(self.differences),
            tuple(self.problems),
            tuple(self.notes),
            tuple(self.altered),
            max(self.distances, default=None),
        )
