"""What we think of an image and what we do with a study. Pure: no files, no clock, no model.

"Flagged", in every TPR | FPR of this project, means that an image alone would be quarantined under the default policy:
SUSPECT and INCONCLUSIVE alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, assert_never

from dicomguard.study import Uid

Action = Literal["forward", "quarantine"]
Mode = Literal["enforce", "shadow"]
Assurance = Literal["proven", "screened"]


class Verdict(StrEnum):
    """What we think of an image, or of a study (its worst image)."""

    CLEAN = "CLEAN"
    UNSCORABLE = "UNSCORABLE"
    INCONCLUSIVE = "INCONCLUSIVE"
    SUSPECT = "SUSPECT"


# From harmless to alarming; a study takes the highest of its images.
_SEVERITY = {Verdict.CLEAN: 0, Verdict.UNSCORABLE: 1, Verdict.INCONCLUSIVE: 2, Verdict.SUSPECT: 3}


class Disposition(StrEnum):
    """What we do with a study."""

    FORWARD = "forward"
    QUARANTINE = "quarantine"


class Reason(StrEnum):
    """Coded reasons. Each stands in the ledger, in the evidence and in the docs under this very word."""

    SCORE_OVER_THRESHOLD = "score_over_threshold"
    STUDY_OVER_THRESHOLD = "study_over_threshold"
    UNKNOWN_STUDY_SIZE = "unknown_study_size"
    LOW_MARGIN = "low_margin"
    NOT_CERTIFIED = "not_certified"
    UNENROLLED_RANGE = "unenrolled_range"
    NON_IMAGE = "non_image"
    UNMATCHED = "unmatched"
    UNDECODABLE = "undecodable"
    CODEC_MISSING = "codec_missing"
    TRUNCATED = "truncated"
    OVER_LIMITS = "over_limits"
    TIMEOUT = "timeout"
    NOT_A_NUMBER = "not_a_number"
    MODEL_FAULT = "model_fault"
    UNPARSABLE = "unparsable"
    MISSING_UID = "missing_uid"
    INVALID_UID = "invalid_uid"
    UID_MISMATCH = "uid_mismatch"
    UID_CONFLICT = "uid_conflict"
    IDENTITY_MISMATCH = "identity_mismatch"
    ALTERED_IN_SPOOL = "altered_in_spool"
    STUDY_QUARANTINED = "study_quarantined"
    OVERDUE = "overdue"


# Faults of the transfer itself, not of the detector. Held whatever the mode and the policy say: the sender was told
# that the instance was refused, or two different data sets claim one UID, or the file changed after it was received, or
# it is another instance for one reader of it than for the next.
REFUSED = frozenset({Reason.UID_MISMATCH, Reason.UNPARSABLE, Reason.MISSING_UID, Reason.INVALID_UID})
ALWAYS_HELD = REFUSED | {Reason.UID_CONFLICT, Reason.IDENTITY_MISMATCH, Reason.ALTERED_IN_SPOOL}


@dataclass(frozen=True, slots=True)
class GuardVote:
    """What the certified guard said: `votes` of `draws` for the bundle's answer, under noise `sigma`.

    `outcome` is CERTIFIED (for every change of at most `eps` of its range per stored pixel, at confidence 1 - `alpha`),
    DISAGREE (its own answer is `majority`), UNCERTIFIED, or UNENROLLED: no clean image of the enrolment had the range
    that this header gives the stored values, and the guard was not asked.
    """

    votes: int
    draws: int
    outcome: Literal["CERTIFIED", "DISAGREE", "UNCERTIFIED", "UNENROLLED"]
    majority: str
    eps: float
    sigma: float
    alpha: float


@dataclass(frozen=True, slots=True)
class Score:
    """The noise-consistency check of one frame (the noise-consistency paper, section 2.3).

    `margin` is s*z, the logit towards the predicted class (>= 0); `probability` the predicted class's probability.
    `probability_drops[l]` is the median over the repeats of p_c(x) - p_c(clip(x + n)) at noise level `levels[l]`
    (fraction of the unit input range), `logit_drops[l]` the same of the margin; positive = away from the prediction.
    `min_noisy_margin` is the smallest over the levels of the median noisy margin. `statistic` is the calibrated score
    that is held against `Thresholds.statistic`; larger is more suspicious. Of several questions (a multi-label head)
    the drops are those of the one that the noise shakes most; `margin` is the smallest.

    `likely` is the class that the noise favours most beside the answer: the likely true one, where the image was
    manipulated. `p_value` is conformal among the enrolment's held-back clean images, `surprises` the -log p of each
    component (fused into the statistic), `passes` the forward passes that were spent on the noise check.
    """

    predicted: str
    probability: float
    margin: float
    levels: tuple[float, ...]
    probability_drops: tuple[float, ...]
    logit_drops: tuple[float, ...]
    min_noisy_margin: float
    statistic: float
    likely: str = ""
    p_value: float = 1.0
    surprises: Mapping[str, float] = field(default_factory=dict)
    passes: int = 0
    guard: GuardVote | None = None
    frame: int = 0

    @property
    def assurance(self) -> Assurance:
        """`proven`: the guard certified the answer for its pixel budget. `screened`: looked at, nothing proven."""
        return "proven" if self.guard is not None and self.guard.outcome == "CERTIFIED" else "screened"

    @property
    def is_finite(self) -> bool:
        """False where any number that a decision rests on is NaN or infinite."""
        numbers = (self.probability, self.margin, self.min_noisy_margin, self.statistic, self.p_value)
        return all(map(math.isfinite, (*numbers, *self.probability_drops, *self.logit_drops)))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a score is held against. Fitted on clean images by a calibration.

    `statistic`: conformal threshold at false-alarm rate `alpha`. `margin_floor`: 2 % quantile of the clean margins.
    `paper_theta[l]` = 2 std of the probability drop at each level, `paper_level` the index of the level chosen on
    validation; recorded beside every decision, not acted upon.
    """

    statistic: float
    alpha: float
    margin_floor: float
    paper_theta: tuple[float, ...]
    paper_level: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do where the scores do not say it."""

    unscorable: Action = "forward"
    unmatched: Action = "forward"
    inconclusive: Action = "quarantine"
    failed: Action = "quarantine"
    overdue: Action = "quarantine"
    unknown_size: Action = "quarantine"
    certificate: Literal["record", "require"] = "record"


@dataclass(frozen=True, slots=True)
class Fault:
    """An instance that could not be scored, and why. `detail` is for people and holds no patient data."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """An instance whose every frame was scored, in frame order (at least one)."""

    scores: tuple[Score, ...]


Finding = Scored | Fault


@dataclass(frozen=True, slots=True)
class StudyRuling:
    """What the scores of all frames of a study under one bundle say together; see `scoring.study_test`.

    `suspects`: the numbers of the frames that make it suspicious, in the order of instances and frames. Without a
    promise too few clean studies of this size were enrolled, and the threshold is extrapolated; where `is_beyond`, so
    far that a frame which is no suspect has not been shown to be clean.
    """

    images: int
    score: float
    threshold: float | None
    p_value: float
    has_promise: bool
    is_beyond: bool
    is_flagged: bool
    suspects: frozenset[int]

    def to_json(self, first: int, frames: int) -> dict[str, Any]:
        """A plain mapping, as it stands beside the scores of the instance with frames `first` to `first + frames`.

        Of the suspects only its own: all of them in each of thousands of instances would be millions.
        """
        return {
            "images": self.images,
            "score": self.score,
            "threshold": self.threshold,
            "p_value": self.p_value,
            "has_promise": self.has_promise,
            "beyond": self.is_beyond,
            "flagged": self.is_flagged,
            "first": first,
            "suspects": sorted(n for n in range(first, first + frames) if n in self.suspects),
            "suspect_count": len(self.suspects),
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdict, reasons and action for one frame or one instance, before the mode is applied."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    action: Action


def judge_score(
    score: Score, thresholds: Thresholds, policy: Policy, *, ruling: StudyRuling | None = None, index: int = 0
) -> Judgement:
    """One frame. A score over its threshold is the stronger finding, so it is looked at before the margin.

    An image with a range that was never enrolled is INCONCLUSIVE, alone and in a study: a header may have blanked it.

    Where the frames of a study are judged together (`ruling`, in which this frame is number `index`), that decides: of
    300 clean images some are over a threshold that was made for one. Where the study is beyond what the clean ones can
    show, all its frames but the suspects are INCONCLUSIVE, flagged or not: others may have been sent to hide them.
    """
    is_unproven = policy.certificate == "require" and score.assurance != "proven"
    # Before the numbers: a guard that was not asked leaves no finite score, and this says why.
    if score.guard is not None and score.guard.outcome == "UNENROLLED":
        return _inconclusive(Reason.UNENROLLED_RANGE, policy.failed, is_unproven=is_unproven)
    if not score.is_finite:
        return Judgement(Verdict.INCONCLUSIVE, (Reason.NOT_A_NUMBER,), policy.failed)
    if ruling is not None:
        if ruling.is_flagged and index in ruling.suspects:
            return Judgement(Verdict.SUSPECT, (Reason.STUDY_OVER_THRESHOLD,), "quarantine")
        if ruling.is_beyond:
            return _inconclusive(Reason.UNKNOWN_STUDY_SIZE, policy.unknown_size, is_unproven=is_unproven)
    elif score.statistic > thresholds.statistic:
        return Judgement(Verdict.SUSPECT, (Reason.SCORE_OVER_THRESHOLD,), "quarantine")
    elif score.margin < thresholds.margin_floor:
        return Judgement(Verdict.INCONCLUSIVE, (Reason.LOW_MARGIN,), policy.inconclusive)
    if is_unproven:
        return Judgement(Verdict.INCONCLUSIVE, (Reason.NOT_CERTIFIED,), "quarantine")
    return Judgement(Verdict.CLEAN, (), "forward")


def _inconclusive(reason: Reason, action: Action, *, is_unproven: bool) -> Judgement:
    """A lenient line of the policy lets nothing through that `certificate: require` holds."""
    if is_unproven:
        return Judgement(Verdict.INCONCLUSIVE, (reason, Reason.NOT_CERTIFIED), "quarantine")
    return Judgement(Verdict.INCONCLUSIVE, (reason,), action)


def judge_fault(fault: Fault, policy: Policy) -> Judgement:
    """One instance that was not scored."""
    match fault.reason:
        case Reason.NON_IMAGE:
            return Judgement(Verdict.UNSCORABLE, (fault.reason,), policy.unscorable)
        case Reason.UNMATCHED:
            return Judgement(Verdict.UNSCORABLE, (fault.reason,), policy.unmatched)
        case reason if reason in ALWAYS_HELD:
            return Judgement(Verdict.INCONCLUSIVE, (fault.reason,), "quarantine")
        case Reason.OVERDUE:
            return Judgement(Verdict.INCONCLUSIVE, (fault.reason,), policy.overdue)
        case _:
            return Judgement(Verdict.INCONCLUSIVE, (fault.reason,), policy.failed)


def judge(
    finding: Finding,
    thresholds: Thresholds | None,
    policy: Policy,
    *,
    ruling: StudyRuling | None = None,
    first: int = 0,
) -> Judgement:
    """One instance: its worst frame. Scores without thresholds are a model that was never enrolled: fails closed.

    `first`: which number its first frame has in the study's `ruling`, where there is one.
    """
    match finding:
        case Fault():
            return judge_fault(finding, policy)
        case Scored(scores):
            if thresholds is None or not scores:
                return judge_fault(Fault(Reason.MODEL_FAULT), policy)
            return _worst(
                [
                    judge_score(score, thresholds, policy, ruling=ruling, index=first + offset)
                    for offset, score in enumerate(scores)
                ]
            )
        case _:
            assert_never(finding)


def _worst(judgements: Sequence[Judgement]) -> Judgement:
    verdict = max((j.verdict for j in judgements), key=_SEVERITY.__getitem__)
    reasons = tuple(dict.fromkeys(reason for j in judgements for reason in j.reasons))
    action: Action = "quarantine" if any(j.action == "quarantine" for j in judgements) else "forward"
    return Judgement(verdict, reasons, action)


@dataclass(frozen=True, slots=True)
class InstanceDecision:
    """What was found about one instance, as it stands in the ledger. `scores` is JSON-ready."""

    sop_instance_uid: Uid
    sop_class_uid: Uid
    series_instance_uid: Uid
    transfer_syntax_uid: Uid
    sha256: str
    size_bytes: int
    file_name: str
    verdict: Verdict
    reasons: tuple[Reason, ...]
    action: Action
    mode: Mode
    bundle: str | None = None
    fingerprint: str | None = None
    detail: str = ""
    scores: dict[str, Any] | None = None

    @property
    def holds(self) -> bool:
        """True when this instance alone would quarantine its study."""
        if self.action == "forward":
            return False
        return self.mode == "enforce" or not ALWAYS_HELD.isdisjoint(self.reasons)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping, as it stands in a decision's `instances`."""
        return {
            "sop_instance_uid": self.sop_instance_uid,
            "sop_class_uid": self.sop_class_uid,
            "series_instance_uid": self.series_instance_uid,
            "transfer_syntax_uid": self.transfer_syntax_uid,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "file_name": self.file_name,
            "verdict": self.verdict.value,
            "reasons": [reason.value for reason in self.reasons],
            "action": self.action,
            "mode": self.mode,
            "bundle": self.bundle,
            "fingerprint": self.fingerprint,
            "detail": self.detail,
            "scores": self.scores,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """One version of what was decided about a study, complete as it is recorded and shown.

    `version` counts from 1 and rises with every late arrival. `peer` is the sender. `patient_key` is a keyed hash of
    the Patient ID, or the ID itself where the site opted in, or None.
    """

    decision_id: str
    claim_id: str
    version: int
    study_instance_uid: Uid
    disposition: Disposition
    verdict: Verdict
    reasons: tuple[Reason, ...]
    bundle: str | None
    fingerprint: str | None
    mode: Mode
    peer: str
    received_at: datetime
    decided_at: datetime
    destinations: tuple[str, ...]
    instances: tuple[InstanceDecision, ...]
    patient_key: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The decision as `--json` prints it: one mapping with plain values."""
        return {
            "decision_id": self.decision_id,
            "version": self.version,
            "study_instance_uid": self.study_instance_uid,
            "disposition": self.disposition.value,
            "verdict": self.verdict.value,
            "reasons": [reason.value for reason in self.reasons],
            "bundle": self.bundle,
            "fingerprint": self.fingerprint,
            "mode": self.mode,
            "peer": self.peer,
            "received_at": self.received_at.isoformat(),
            "decided_at": self.decided_at.isoformat(),
            "destinations": list(self.destinations),
            "patient_key": self.patient_key,
            "claim_id": self.claim_id,
            "instances": [instance.to_json() for instance in self.instances],
        }


def decide_study(
    instances: Sequence[InstanceDecision], *, is_held: bool
) -> tuple[Disposition, Verdict, tuple[Reason, ...]]:
    """A study takes its worst image; `is_held` says that the study is in quarantine already (sticky until lifted).

    Objects that are no images do not colour the verdict of a study that has images; they act through their policy.
    """
    images = [i for i in instances if Reason.NON_IMAGE not in i.reasons] or list(instances)
    verdict = max((i.verdict for i in images), key=_SEVERITY.__getitem__)
    reasons = tuple(dict.fromkeys(reason for i in instances for reason in i.reasons))
    if is_held:
        return Disposition.QUARANTINE, verdict, (*reasons, Reason.STUDY_QUARANTINED)
    held = any(instance.holds for instance in instances)
    return (Disposition.QUARANTINE if held else Disposition.FORWARD), verdict, reasons
