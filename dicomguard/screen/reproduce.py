"""The flight recorder: makes a recorded decision again, from the stored instances, and says whether it is the same one.

The same examiner and the same verdicts as in the screener's loop, nothing beside them. What a decision rested on that
is neither an instance nor a model is taken as recorded and named: the mode, the passing of a deadline, a study's past.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, assert_never

from dicomguard.decision import Decision, Disposition, Fault, InstanceDecision, Policy, Reason
from dicomguard.screen.compare import (
    Difference,
    Tolerance,
    largest_distance,
    provenance,
    same_provenance,
    score_differences,
)
from dicomguard.screen.examine import Examined, Examiner
from dicomguard.screen.locate import Altered, Located, Lost, Whereabouts
from dicomguard.screen.past import Past, notes_on
from dicomguard.screen.protected import Protected
from dicomguard.screen.verdicts import Rules, Standing, decide_claim, instance_decision

# Found by the screener from what came before or how long it took, not by looking at the instance.
_OF_THE_PAST: Final = frozenset({Reason.UID_CONFLICT, Reason.OVERDUE})
# Whatever a site may have written under `policy`, its actions lie between these two.
_LENIENT: Final = Policy("forward", "forward", "forward", "forward", "forward")
_STRICT: Final = Policy("quarantine", "quarantine", "quarantine", "quarantine", "quarantine")


class Outcome(StrEnum):
    """What came of one decision. `ALTERED`, `DIFFERS` and `MISSING` are wrong; the others explain themselves."""

    AGREES = "agrees"
    GONE = "gone"
    OTHER_MODEL = "other model"
    MISSING = "missing"
    DIFFERS = "differs"
    ALTERED = "altered"

    @property
    def is_wrong(self) -> bool:
        """True when somebody must look."""
        return self in {Outcome.MISSING, Outcome.DIFFERS, Outcome.ALTERED}


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
class _Findings:
    """What is gathered on the way to one `Reproduction`."""

    examined: list[Examined] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    problems: dict[str, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome, problem: str) -> None:
        self.problems.setdefault(problem, outcome)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class Reproducer:
    """Makes decisions again with the models that are loaded. `examiner_of` gives an examiner for some of them.

    `rules` are the site's of today; each decision's own mode and destinations are put in their place.
    """

    def __init__(
        self,
        models: Sequence[Protected],
        examiner_of: Callable[[Sequence[Protected]], Examiner],
        rules: Rules,
        tolerance: Tolerance,
    ) -> None:
        # Each model by itself and for every image: which one was to look is on record, and `match` may have changed.
        self._models = [replace(model, match={}) for model in models]
        self._examiners = [examiner_of([model]) for model in self._models]
        self._nobody = examiner_of([])
        self._rules = rules
        self._tolerance = tolerance
        self._other_enrolments: list[tuple[str, dict[str, Any]]] = []

    def reproduce(self, decision: Decision, found: Sequence[Whereabouts], past: Past | None) -> Reproduction:
        """Make one decision again from `found`, one entry for each of its instances; `past` None: nobody knows it."""
        findings = _Findings()
        there = [one for one in found if isinstance(one, Located) and not self._lacks_model(one.recorded, findings)]
        for one in found:
            _explain(one, findings)
        rules = self._rules_of(decision)
        remade = 0
        for one, examined in zip(there, self._examine(there, past, findings), strict=True):
            made = instance_decision(examined, rules)
            if self._compare_instance(one.recorded, made, examined, rules, findings):
                remade += 1
                findings.examined.append(examined)
        if remade == len(decision.instances):
            self._compare_study(decision, findings.examined, rules, findings)
        elif remade:
            findings.note(f"{remade} of {len(decision.instances)} instances were compared, the study as a whole not")
        for note in notes_on(decision, past):
            findings.note(note)
        outcomes = [*findings.problems.values(), *([Outcome.DIFFERS] if findings.differences else [])]
        order = list(Outcome)
        return Reproduction(
            decision.decision_id,
            max(outcomes, key=order.index, default=Outcome.AGREES),
            len(decision.instances),
            remade,
            tuple(findings.differences),
            tuple(findings.problems),
            tuple(findings.notes),
            tuple(findings.altered),
            max(findings.distances, default=None),
        )

    # Which model looked ----------------------------------------------------------------------------------------------

    def _model_of(self, recorded: InstanceDecision) -> int | None:
        """The loaded model of the recorded fingerprint, and of the recorded thresholds where several have it."""
        found = [n for n, model in enumerate(self._models) if model.scorer.fingerprint == recorded.fingerprint]
        before = provenance(recorded.scores).get("thresholds")
        for number in found:
            thresholds = self._models[number].scorer.thresholds
            if before is not None and thresholds is not None and same_provenance(before, asdict(thresholds)):
                return number
        return found[-1] if found else None

    def _lacks_model(self, recorded: InstanceDecision, findings: _Findings) -> bool:
        problem = self._model_problem(recorded)
        if problem:
            findings.add(Outcome.OTHER_MODEL, problem)
        return bool(problem)

    def _model_problem(self, recorded: InstanceDecision) -> str:
        if recorded.fingerprint is None:
            return ""
        if self._model_of(recorded) is None:
            loaded = ", ".join(f"{m.scorer.name} {m.scorer.fingerprint[:16]}" for m in self._models) or "none"
            return (
                f"decided with bundle {recorded.bundle}, fingerprint {recorded.fingerprint[:16]}; loaded: {loaded}."
                " Name the folder of the one that decided with --bundle"
            )
        for fingerprint, other in self._other_enrolments:
            if fingerprint == recorded.fingerprint and provenance(recorded.scores) == other:
                return _enrolment_problem(recorded, None)
        return ""

    # Looking again ---------------------------------------------------------------------------------------------------

    def _rules_of(self, decision: Decision) -> Rules:
        unmatched = next((i.mode for i in decision.instances if i.fingerprint is None), decision.mode)
        return replace(self._rules, mode=unmatched, destinations=decision.destinations)

    def _examine(self, there: Sequence[Located], past: Past | None, findings: _Findings) -> list[Examined]:
        done: dict[int, Examined] = {}
        groups: dict[int | None, list[int]] = {}
        for index, one in enumerate(there):
            of_the_past = next((r for r in one.recorded.reasons if r in _OF_THE_PAST), None)
            if of_the_past is None or one.recorded.scores is not None:
                groups.setdefault(self._model_of(one.recorded), []).append(index)
                continue
            done[index] = Examined(one.instance, Fault(of_the_past, one.recorded.detail))
            self._check_past_fault(one.recorded, of_the_past, past, findings)
        for number, indexes in groups.items():
            examiner = self._nobody if number is None else self._examiners[number]
            examined = examiner.examine([there[index].instance for index in indexes])
            for index, item in zip(indexes, examined, strict=True):
                model = None if item.model is None else replace(item.model, mode=there[index].recorded.mode)
                done[index] = replace(item, model=model)
        return [done[index] for index in range(len(there))]

    def _check_past_fault(
        self, recorded: InstanceDecision, reason: Reason, past: Past | None, findings: _Findings
    ) -> None:
        if reason is Reason.OVERDUE:
            findings.note("that it came too late (overdue) is taken as recorded")
        elif past is None:
            findings.note("that another data set had come under its UID (uid_conflict) is taken as recorded")
        elif recorded.sop_instance_uid not in past.others:
            other = "the ledger knows no other data set under this UID"
            findings.differences.append(Difference(f"{recorded.sop_instance_uid}: uid_conflict", reason.value, other))

    # Comparing -------------------------------------------------------------------------------------------------------

    def _compare_instance(
        self, recorded: InstanceDecision, made: InstanceDecision, examined: Examined, rules: Rules, findings: _Findings
    ) -> bool:
        """False when it was not the recorded model that looked, after all."""
        scores = None if made.scores is None else json.loads(json.dumps(made.scores))
        before = provenance(recorded.scores)
        if scores is not None and before and not same_provenance(before, scores):
            assert recorded.fingerprint is not None
            self._other_enrolments.append((recorded.fingerprint, before))
            findings.add(Outcome.OTHER_MODEL, _enrolment_problem(recorded, scores))
            return False
        uid = recorded.sop_instance_uid
        found = findings.differences
        if made.verdict is not recorded.verdict:
            found.append(Difference(f"{uid}: verdict", recorded.verdict.value, made.verdict.value))
        if made.reasons != recorded.reasons:
            found.append(Difference(f"{uid}: reasons", _words(recorded.reasons), _words(made.reasons)))
        if made.fingerprint != recorded.fingerprint:
            found.append(Difference(f"{uid}: fingerprint", recorded.fingerprint, made.fingerprint))
        if made.action != recorded.action:
            others = {instance_decision(examined, replace(rules, policy=p)).action for p in (_LENIENT, _STRICT)}
            if recorded.action in others:
                findings.note(f"policy: today the action for {_words(recorded.reasons)} is {made.action}")
            else:
                found.append(Difference(f"{uid}: action", recorded.action, made.action))
        found.extend(score_differences(recorded.scores, scores, self._tolerance, f"{uid}: scores"))
        if scores is not None and recorded.scores is not None:
            findings.distances.append(largest_distance(recorded.scores, scores))
        return True

    def _compare_study(
        self, decision: Decision, examined: Sequence[Examined], rules: Rules, findings: _Findings
    ) -> None:
        made = self._decide(decision, examined, rules)
        if len(made) != 1:
            findings.differences.append(Difference("decisions", 1, len(made), abs(len(made) - 1)))
            return
        again = made[0]
        found = findings.differences
        if again.verdict is not decision.verdict:
            found.append(Difference("study: verdict", decision.verdict.value, again.verdict.value))
        reasons = tuple(reason for reason in decision.reasons if reason is not Reason.STUDY_QUARANTINED)
        if again.reasons != reasons:
            found.append(Difference("study: reasons", _words(reasons), _words(again.reasons)))
        is_sticky = Reason.STUDY_QUARANTINED in decision.reasons
        disposition = Disposition.QUARANTINE if is_sticky else again.disposition
        if disposition is not decision.disposition:
            others = {
                other.disposition
                for policy in (_LENIENT, _STRICT)
                for other in self._decide(decision, examined, replace(rules, policy=policy))
            }
            if decision.disposition in others:
                findings.note(f"policy: today the disposition would be {disposition.value}")
            else:
                found.append(Difference("study: disposition", decision.disposition.value, disposition.value))

    def _decide(self, decision: Decision, examined: Sequence[Examined], rules: Rules) -> list[Decision]:
        """What the screener would decide of these instances if the study had no past."""
        standing = Standing(decision.version, frozenset())
        is_overdue = Reason.OVERDUE in decision.reasons
        return decide_claim(
            decision.claim_id, examined, standing, rules, is_overdue=is_overdue, now=decision.decided_at
        )


def _explain(one: Whereabouts, findings: _Findings) -> None:
    """What keeps an instance from being looked at again."""
    uid = one.recorded.sop_instance_uid
    match one:
        case Located():
            return
        case Altered():
            findings.altered.append(uid)
            findings.add(Outcome.ALTERED, f"ALARM: {uid} in {one.place} was altered: {one.why}")
        case Lost():
            if one.removal is None:
                findings.add(Outcome.MISSING, f"{uid} is nowhere, and no removal is on record; see 'dicomguard verify'")
            else:
                at = f"{one.removal.at:%Y-%m-%d %H:%M:%S} UTC"
                findings.add(Outcome.GONE, f"{uid} was removed on {at} ({one.removal.kind})")
        case _:
            assert_never(one)


def _enrolment_problem(recorded: InstanceDecision, loaded: dict[str, Any] | None) -> str:
    old, new = _enrolment_name(recorded.scores), _enrolment_name(loaded)
    also = f"; loaded: {new}" if loaded is not None else ""
    return (
        f"bundle {recorded.bundle} has the recorded fingerprint, but was enrolled or calibrated anew since:"
        f" decided with {old}{also}. Name a copy of the folder as it was then with --bundle"
    )


def _enrolment_name(scores: dict[str, Any] | None) -> str:
    if scores and scores.get("enrolment"):
        return f"enrolment {str(scores['enrolment'])[:16]}"
    threshold = ((scores or {}).get("thresholds") or {}).get("statistic")
    if isinstance(threshold, int | float) and math.isfinite(threshold):
        return f"threshold {threshold:.6g}"
    return "no enrolment"


def _words(reasons: Sequence[Reason]) -> str:
    return ", ".join(reason.value for reason in reasons) or "none"
