"""The flight recorder: makes a recorded decision again, from the stored instances, and says whether it is the same one.

The same examiner and the same verdicts as in the screener's loop, nothing beside them. What a decision rested on that
is neither an instance nor a model is taken as recorded and named: the mode, the passing of a deadline, a study's past.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, assert_never, get_args

from dicomguard.decision import Action, Decision, Disposition, Fault, InstanceDecision, Mode, Policy, Reason
from dicomguard.screen.compare import (
    Difference,
    Tolerance,
    largest_distance,
    provenance,
    same_provenance,
    score_differences,
)
from dicomguard.screen.examine import Examined, Examiner, SeedMissingError
from dicomguard.screen.locate import Altered, Located, Lost, Whereabouts
from dicomguard.screen.outcome import Findings, Outcome, Reproduction
from dicomguard.screen.past import Past, notes_on
from dicomguard.screen.protected import Protected
from dicomguard.screen.verdicts import Rules, Standing, decide_claim
from dicomguard.study import Instance

# Found by the screener from what came before or how long it took, not by looking at the instance.
_OF_THE_PAST: Final = frozenset({Reason.UID_CONFLICT, Reason.OVERDUE})
# In a record of scores: the ruling on all frames of the study together, of which each instance is a part.
_STUDY: Final = "study"


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
        self._in_modes: dict[tuple[int, Mode], Protected] = {}
        self._other_enrolments: list[tuple[str, dict[str, Any]]] = []

    def reproduce(self, decision: Decision, found: Sequence[Whereabouts], past: Past | None) -> Reproduction:
        """Make one decision again from `found`, one entry for each of its instances; `past` None: nobody knows it."""
        findings = Findings()
        there = [one for one in found if isinstance(one, Located) and not self._lacks_model(one.recorded, findings)]
        for one in found:
            _explain(one, findings)
        looked = self._examine(there, past, findings)
        remade = self._compare(decision, looked, self._rules_of(decision), findings) if looked else 0
        for note in (*_taken_as_recorded(decision), *notes_on(decision, past)):
            findings.note(note)
        return findings.result(decision.decision_id, len(decision.instances), remade)

    # Which model looked ----------------------------------------------------------------------------------------------

    def _model_of(self, recorded: InstanceDecision) -> int | None:
        """The loaded model of the recorded fingerprint, and of the recorded thresholds where several have it."""
        found = [n for n, model in enumerate(self._models) if model.scorer.fingerprint == recorded.fingerprint]
        before = provenance(recorded.scores)
        fitting = [number for number in found if same_provenance(before, _provenance_of(self._models[number]))]
        return next(iter([*fitting, *found]), None)

    def _lacks_model(self, recorded: InstanceDecision, findings: Findings) -> bool:
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
        """The site's rules as they were, as far as the record tells; actions are those of today's policy."""
        unmatched = next((i.mode for i in decision.instances if i.fingerprint is None), decision.mode)
        was_required = any(Reason.NOT_CERTIFIED in i.reasons for i in decision.instances)
        policy = replace(self._rules.policy, certificate="require" if was_required else "record")
        return replace(self._rules, policy=policy, mode=unmatched, destinations=decision.destinations)

    def _examine(
        self, there: Sequence[Located], past: Past | None, findings: Findings
    ) -> list[tuple[InstanceDecision, Examined]]:
        """What is found now of each instance that can be looked at, in their order."""
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
            for index, item in _examined(examiner, {index: there[index].instance for index in indexes}, findings):
                # One object for all of them: verdicts tell by it which images are judged together.
                mode = there[index].recorded.mode
                model = None if number is None or item.model is None else self._in_mode(number, mode)
                done[index] = replace(item, model=model)
        return [(there[index].recorded, done[index]) for index in sorted(done)]

    def _in_mode(self, number: int, mode: Mode) -> Protected:
        if (number, mode) not in self._in_modes:
            self._in_modes[number, mode] = replace(self._models[number], mode=mode)
        return self._in_modes[number, mode]

    def _check_past_fault(
        self, recorded: InstanceDecision, reason: Reason, past: Past | None, findings: Findings
    ) -> None:
        if reason is Reason.OVERDUE:
            return
        if past is None:
            findings.note("that another data set had come under its UID (uid_conflict) is taken as recorded")
        elif recorded.sop_instance_uid not in past.others:
            other = "the ledger knows no other data set under this UID"
            findings.differences.append(Difference(f"{recorded.sop_instance_uid}: uid_conflict", reason.value, other))

    # Comparing -------------------------------------------------------------------------------------------------------

    def _compare(
        self,
        decision: Decision,
        looked: Sequence[tuple[InstanceDecision, Examined]],
        rules: Rules,
        findings: Findings,
    ) -> int:
        """Hold what is decided now against the record. Returns for how many instances that could be done."""
        examined = [item for _, item in looked]
        made = _decide(decision, examined, rules)
        if len(made) != 1:
            findings.differences.append(Difference("decisions", 1, len(made)))
            return len(looked)
        again = made[0]
        pairs = [
            (recorded, now, number)
            for number, ((recorded, _), now) in enumerate(zip(looked, again.instances, strict=True))
            if not self._is_other_enrolment(recorded, now, findings)
        ]
        is_whole = len(pairs) == len(decision.instances)
        others = [_decide(decision, examined, replace(rules, policy=p))[0] for p in _extremes(rules.policy)]
        for recorded, now, number in pairs:
            actions = {other.instances[number].action for other in others}
            self._compare_instance(recorded, now, actions, findings, is_whole=is_whole)
        if is_whole:
            _compare_study(decision, again, {other.disposition for other in others}, findings)
        elif pairs:
            findings.note(
                f"{len(pairs)} of {len(decision.instances)} instances were compared, the study as a whole not"
            )
        return len(pairs)

    def _is_other_enrolment(self, recorded: InstanceDecision, made: InstanceDecision, findings: Findings) -> bool:
        before = provenance(recorded.scores)
        if made.scores is None or not before or same_provenance(before, made.scores):
            return False
        assert recorded.fingerprint is not None
        if (recorded.fingerprint, before) not in self._other_enrolments:
            self._other_enrolments.append((recorded.fingerprint, before))
        findings.add(Outcome.OTHER_MODEL, _enrolment_problem(recorded, made.scores))
        return True

    def _compare_instance(
        self,
        recorded: InstanceDecision,
        made: InstanceDecision,
        actions: set[Action],
        findings: Findings,
        *,
        is_whole: bool,
    ) -> None:
        """`actions`: what any policy would do with the instance. Its verdict may rest on others: `is_whole` or not."""
        uid = recorded.sop_instance_uid
        found = findings.differences
        scores = None if made.scores is None else json.loads(json.dumps(made.scores))
        before = recorded.scores
        stands_alone = is_whole or before is None or _STUDY not in before
        if before is not None and not stands_alone:
            before = {name: value for name, value in before.items() if name != _STUDY}
            findings.note("verdicts that rested on the study as a whole were not compared, scores were")
        if made.fingerprint != recorded.fingerprint:
            found.append(Difference(f"{uid}: fingerprint", recorded.fingerprint, made.fingerprint))
        if stands_alone and made.verdict is not recorded.verdict:
            found.append(Difference(f"{uid}: verdict", recorded.verdict.value, made.verdict.value))
        if stands_alone and made.reasons != recorded.reasons:
            found.append(Difference(f"{uid}: reasons", _words(recorded.reasons), _words(made.reasons)))
        if stands_alone and made.action != recorded.action:
            if recorded.action in actions:
                findings.note(f"policy: today the action for {_words(recorded.reasons)} is {made.action}")
            else:
                found.append(Difference(f"{uid}: action", recorded.action, made.action))
        found.extend(score_differences(before, scores, self._tolerance, f"{uid}: scores"))
        if scores is not None and before is not None:
            findings.distances.append(largest_distance(before, scores))


def _examined(examiner: Examiner, instances: Mapping[int, Instance], findings: Findings) -> list[tuple[int, Examined]]:
    """What an examiner finds of these, by number. One whose noise cannot be drawn again takes no other along."""
    try:
        return list(zip(instances, examiner.examine([*instances.values()]), strict=True))
    except SeedMissingError:
        if len(instances) > 1:
            return [found for n, one in instances.items() for found in _examined(examiner, {n: one}, findings)]
    uid = next(iter(instances.values())).sop_instance_uid
    findings.add(Outcome.NOT_DISCLOSED, f"{uid}: the seeds of its noise are not in the file; ask for a new export")
    return []


def _taken_as_recorded(decision: Decision) -> Iterator[str]:
    """What neither instances nor models can tell."""
    reasons = {*decision.reasons, *(reason for instance in decision.instances for reason in instance.reasons)}
    if Reason.OVERDUE in reasons:
        yield "that it came too late (overdue) is taken as recorded"
    if Reason.UNMATCHED in reasons:
        yield "that no bundle was configured for such images (unmatched) is taken as recorded"


def _decide(decision: Decision, examined: Sequence[Examined], rules: Rules) -> list[Decision]:
    """What the screener would decide of these instances if their study had no past."""
    standing = Standing(decision.version, frozenset())
    is_overdue = Reason.OVERDUE in decision.reasons
    return decide_claim(decision.claim_id, examined, standing, rules, is_overdue=is_overdue, now=decision.decided_at)


def _extremes(policy: Policy) -> list[Policy]:
    """Whatever a site may have written as an action, it lies between these two."""
    names = ("unscorable", "unmatched", "inconclusive", "failed", "overdue", "unknown_size")
    return [replace(policy, **dict.fromkeys(names, action)) for action in get_args(Action)]


def _compare_study(decision: Decision, again: Decision, dispositions: set[Disposition], findings: Findings) -> None:
    """`dispositions`: what any policy would do with the study."""
    found = findings.differences
    if (again.peer, again.received_at) != (decision.peer, decision.received_at):
        findings.note(
            f"recorded as sent by {decision.peer}, {decision.received_at.isoformat()}; the receipts say {again.peer},"
            f" {again.received_at.isoformat()}"
        )
    if again.verdict is not decision.verdict:
        found.append(Difference("study: verdict", decision.verdict.value, again.verdict.value))
    is_sticky = Reason.STUDY_QUARANTINED in decision.reasons
    reasons = tuple(reason for reason in decision.reasons if reason is not Reason.STUDY_QUARANTINED)
    if again.reasons != reasons:
        found.append(Difference("study: reasons", _words(reasons), _words(again.reasons)))
    disposition = Disposition.QUARANTINE if is_sticky else again.disposition
    if disposition is decision.disposition:
        return
    if decision.disposition in dispositions:
        findings.note(f"policy: today the disposition would be {disposition.value}")
    else:
        found.append(Difference("study: disposition", decision.disposition.value, disposition.value))


def _explain(one: Whereabouts, findings: Findings) -> None:
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
        f" decided with {old}{also}. Name the folder of that enrolment with --enrolment"
    )


def _provenance_of(model: Protected) -> dict[str, Any]:
    thresholds = model.scorer.thresholds
    return {
        "enrolment": model.scorer.enrolment_sha256,
        "thresholds": None if thresholds is None else asdict(thresholds),
    }


def _enrolment_name(scores: dict[str, Any] | None) -> str:
    if scores and scores.get("enrolment"):
        return f"enrolment {str(scores['enrolment'])[:16]}"
    thresholds = (scores or {}).get("thresholds")
    threshold = thresholds.get("statistic") if isinstance(thresholds, Mapping) else None
    if isinstance(threshold, int | float) and math.isfinite(threshold):
        return f"threshold {threshold:.6g}"
    return "no enrolment"


def _words(reasons: Sequence[Reason]) -> str:
    return ", ".join(reason.value for reason in reasons) or "none"
