"""From findings to decisions, as values: no files, no ledger. `screener` records and routes them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dicomguard.decision import (
    ALWAYS_HELD,
    Decision,
    Disposition,
    InstanceDecision,
    Judgement,
    Mode,
    Policy,
    Reason,
    Score,
    Scored,
    StudyRuling,
    Thresholds,
    decide_study,
    judge,
    judge_score,
)
from dicomguard.decision import Fault as FaultFinding
from dicomguard.scoring.scorer import Scorer
from dicomguard.screen.examine import Examined, effective_mode
from dicomguard.study import Uid


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger knows of a study before this decision. `held_for`: why it is in quarantine; empty: it is not."""

    next_version: int
    held_for: frozenset[Reason]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the site decided beforehand. `pseudonym` turns a Patient ID into what may be stored."""

    policy: Policy
    mode: Mode
    destinations: tuple[str, ...]
    pseudonym: Callable[[str], str]


def decide_claim(
    claim_id: str,
    examined: Sequence[Examined],
    standing: Standing,
    rules: Rules,
    *,
    is_overdue: bool,
    now: datetime,
) -> list[Decision]:
    """One decision for a study's instances, and one each for those that are refused and those that contradict others.

    A refused instance (its sender was told so) must not take the rest of its study with it. One that contradicts an
    instance that we have says that somebody sent two data sets under one UID: it is held on its own, and from then on
    the study is, until a person has looked.
    """
    refused = [e for e in examined if e.instance.receipt.fault]
    conflicting = [e for e in examined if _has(e, Reason.UID_CONFLICT)]
    plain = [e for e in examined if e not in refused and e not in conflicting]
    decisions: list[Decision] = []
    for group in (plain, refused, conflicting):
        if group:
            is_plain = group is plain
            own = Standing(standing.next_version + len(decisions), standing.held_for if is_plain else frozenset())
            decisions.append(_decide(claim_id, group, own, rules, is_overdue=is_overdue and is_plain, now=now))
    return decisions


def _has(examined: Examined, reason: Reason) -> bool:
    return isinstance(examined.finding, FaultFinding) and examined.finding.reason is reason


def _decide(
    claim_id: str, examined: Sequence[Examined], standing: Standing, rules: Rules, *, is_overdue: bool, now: datetime
) -> Decision:
    rulings = study_rulings(examined)
    instances = tuple(instance_decision(e, rules, ruling) for e, ruling in zip(examined, rulings, strict=True))
    mode: Mode = "enforce" if any(i.mode == "enforce" for i in instances) else "shadow"
    # In shadow the detector's opinions hold nothing, also not through an earlier version; faults of a transfer do.
    is_held = bool(standing.held_for if mode == "enforce" else standing.held_for & ALWAYS_HELD)
    disposition, verdict, reasons = decide_study(instances, is_held=is_held)
    if is_overdue:
        reasons = (*(reason for reason in reasons if reason is not Reason.OVERDUE), Reason.OVERDUE)
        if rules.policy.overdue == "quarantine" and mode == "enforce":
            disposition = Disposition.QUARANTINE
    first = examined[0].instance.receipt
    looked = next((i for i in instances if i.bundle is not None), None)
    patient_id = next((e.header.patient_id for e in examined if e.header is not None and e.header.patient_id), None)
    return Decision(
        decision_id=uuid.uuid4().hex,
        claim_id=claim_id,
        version=standing.next_version,
        study_instance_uid=first.study_instance_uid,
        disposition=disposition,
        verdict=verdict,
        reasons=reasons,
        bundle=looked.bundle if looked else None,
        fingerprint=looked.fingerprint if looked else None,
        mode=mode,
        peer=f"{first.calling_ae}@{first.address}",
        received_at=min(e.instance.receipt.received_at for e in examined),
        decided_at=now,
        destinations=rules.destinations,
        instances=instances,
        patient_key=rules.pseudonym(patient_id) if patient_id else None,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance's frames stand in the ruling about its study: from number `first` on."""

    ruling: StudyRuling
    first: int


def study_rulings(examined: Sequence[Examined]) -> list[Place | None]:
    """For each instance the ruling on all frames of its bundle; None where each frame is judged by itself.

    That is the case for a single frame, whose own threshold is the promise, and for an enrolment without a study test.
    """
    places: list[Place | None] = [None] * len(examined)
    by_model: dict[int, list[int]] = {}
    for index, item in enumerate(examined):
        if item.model is not None and isinstance(item.finding, Scored):
            by_model.setdefault(id(item.model), []).append(index)
    for indices in by_model.values():
        model = examined[indices[0]].model
        assert model is not None
        enrolment = model.scorer.enrolment
        counts = [len(_scores_of(examined[index])) for index in indices]
        if enrolment is None or enrolment.studies is None or sum(counts) < 2:
            continue
        found = enrolment.studies.judge([s.statistic for index in indices for s in _scores_of(examined[index])])
        ruling = StudyRuling(
            images=sum(counts),
            score=found.score,
            threshold=found.threshold,
            p_value=found.p_value,
            has_promise=found.has_promise,
            is_beyond=found.beyond,
            is_flagged=found.flagged,
            suspects=frozenset(found.suspects),
        )
        first = 0
        for index, count in zip(indices, counts, strict=True):
            places[index] = Place(ruling, first)
            first += count
    return places


def _scores_of(examined: Examined) -> tuple[Score, ...]:
    return examined.finding.scores if isinstance(examined.finding, Scored) else ()


def instance_decision(examined: Examined, rules: Rules, place: Place | None = None) -> InstanceDecision:
    """What goes on record about one instance; `place` where its study is judged as a whole."""
    receipt = examined.instance.receipt
    scorer = examined.model.scorer if examined.model is not None else None
    thresholds = scorer.thresholds if scorer is not None else None
    finding = examined.finding
    judgement = judge(
        finding,
        thresholds,
        rules.policy,
        ruling=None if place is None else place.ruling,
        first=0 if place is None else place.first,
    )
    return InstanceDecision(
        sop_instance_uid=receipt.sop_instance_uid,
        sop_class_uid=receipt.sop_class_uid,
        series_instance_uid=Uid(receipt.series_instance_uid),
        transfer_syntax_uid=receipt.transfer_syntax_uid,
        sha256=receipt.sha256,
        size_bytes=receipt.size_bytes,
        file_name=examined.instance.name,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        action=judgement.action,
        mode=effective_mode(examined, rules.mode),
        bundle=scorer.name if scorer else None,
        fingerprint=scorer.fingerprint if scorer else None,
        detail=finding.detail if isinstance(finding, FaultFinding) else "",
        scores=None
        if isinstance(finding, FaultFinding) or scorer is None
        else _scores(finding, scorer, rules.policy, place),
    )


def worst_frame(scored: Scored, thresholds: Thresholds | None, policy: Policy) -> Score:
    """The frame that a person should look at first: flagged before clean, then the highest statistic."""

    def alarm(score: Score) -> tuple[bool, bool, float]:
        judgement: Judgement | None = judge_score(score, thresholds, policy) if thresholds else None
        flagged = judgement is not None and bool(judgement.reasons)
        return (not score.is_finite, flagged, score.statistic if score.is_finite else 0.0)

    return max(scored.scores, key=alarm)


def _scores(scored: Scored, scorer: Scorer, policy: Policy, place: Place | None) -> dict[str, Any]:
    """What the ledger keeps of the scores: the worst frame whole, of every frame the numbers that decide."""
    thresholds = scorer.thresholds
    found: dict[str, Any] = {
        "frames": len(scored.scores),
        "enrolment": scorer.enrolment_sha256,
        "worst": asdict(worst_frame(scored, thresholds, policy)),
        "statistics": [score.statistic for score in scored.scores],
        "margins": [score.margin for score in scored.scores],
        "assurance": "proven" if all(score.assurance == "proven" for score in scored.scores) else "screened",
        "passes": sum(score.passes for score in scored.scores),
    }
    if thresholds is not None and scorer.enrolment is not None:
        found["thresholds"] = asdict(thresholds)
        found["p_values"] = [score.p_value for score in scored.scores]
        # What a p-value can resolve: the drift watch must know how many clean images stand behind it.
        found["calibration_images"] = scorer.enrolment.calibration.images[1]
    if place is not None:
        found["study"] = place.ruling.to_json(place.first, len(scored.scores))
    guards = Counter(score.guard.outcome for score in scored.scores if score.guard is not None)
    if guards:
        found["guard"] = dict(sorted(guards.items()))
    return found
