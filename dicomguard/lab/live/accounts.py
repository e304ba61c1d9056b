"""What became of every file of a manifest, by the node's own ledger. Reads only.

A file is accounted for when the ledger says where it went: forwarded, quarantined, or failed (a claim that was given up
three times). Everything else has to be explained by somebody: it never arrived, or another data set came under its UID.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from dicomguard.decision import Decision, Disposition, InstanceDecision, Verdict
from dicomguard.lab.live.manifest import Row
from dicomguard.ledger import EventKind, Ledger

# What an image alone would be quarantined for under the default policy (dicomguard.decision).
_FLAGGED: Final = frozenset({Verdict.SUSPECT, Verdict.INCONCLUSIVE})


class Status(StrEnum):
    """Where a file went."""

    FORWARDED = "forwarded"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    WAITING = "waiting"
    OTHER_BYTES = "other bytes"
    NEVER = "never arrived"


_ACCOUNTED: Final = frozenset({Status.FORWARDED, Status.QUARANTINED, Status.FAILED})


@dataclass(frozen=True, slots=True)
class Account:
    """One file of the set. `records`: how often the ledger has it; `decision` and `instance`: the first record of it.

    A data set that came twice unchanged leaves one record only: the node keeps one copy.
    """

    row: Row
    status: Status
    records: int = 0
    decision: Decision | None = None
    instance: InstanceDecision | None = None
    note: str = ""

    @property
    def is_accounted(self) -> bool:
        """True when the ledger says where the file went."""
        return self.status in _ACCOUNTED

    @property
    def is_decided(self) -> bool:
        """True when the node looked at this very data set."""
        return self.status in {Status.FORWARDED, Status.QUARANTINED}

    @property
    def is_flagged(self) -> bool:
        """True when the image alone would be quarantined under the default policy."""
        return self.is_decided and self.instance is not None and self.instance.verdict in _FLAGGED

    @property
    def statistic(self) -> float | None:
        """The highest of its frames, None where it was not scored. Not a number counts as infinite: it is held."""
        scores = self.instance.scores if self.is_decided and self.instance is not None else None
        found = [float(value) for value in (scores or {}).get("statistics", [])]
        return max((math.inf if math.isnan(value) else value for value in found), default=None)

    @property
    def thresholds(self) -> dict[str, Any] | None:
        """What the node held its scores against."""
        scores = None if self.instance is None else self.instance.scores
        return None if scores is None else scores.get("thresholds")

    @property
    def is_other_model(self) -> bool:
        """True when another bundle decided than the one that was attacked."""
        known = None if self.instance is None else self.instance.fingerprint
        return known is not None and self.row.fingerprint not in (None, known)

    def to_json(self) -> dict[str, Any]:
        """What the join's JSON says of one file."""
        decision, instance, row = self.decision, self.instance, self.row
        found: dict[str, Any] = {
            "sop_instance_uid": row.sop_instance_uid,
            "path": row.path,
            "truth": row.truth,
            "attack": row.attack,
            "eps": row.eps,
            "flipped": row.flipped,
            "status": self.status.value,
            "accounted": self.is_accounted,
            "records": self.records,
            "note": self.note,
        }
        if decision is None or instance is None:
            return found
        scores = instance.scores or {}
        return found | {
            "decision_id": decision.decision_id,
            "disposition": decision.disposition.value,
            "verdict": instance.verdict.value,
            "reasons": [reason.value for reason in instance.reasons],
            "flagged": self.is_flagged,
            "statistic": _plain(self.statistic),
            "p_value": min(scores.get("p_values") or [math.nan]) if scores.get("p_values") else None,
            "assurance": scores.get("assurance"),
            "answer": scores.get("worst", {}).get("predicted"),
            "received_at": decision.received_at.isoformat(),
            "decided_at": decision.decided_at.isoformat(),
            "latency_s": latency_s(decision),
        }


def latency_s(decision: Decision) -> float:
    """Seconds from the receipt of a study's first instance to its decision, by the ledger's times."""
    return (decision.decided_at - decision.received_at).total_seconds()


def account(
    rows: Sequence[Row], ledger: Ledger, waiting: Collection[str] = (), failed: Collection[tuple[str, str]] = ()
) -> Iterator[Account]:
    """One account for each file that was to be sent, in the manifest's order.

    `waiting`: SOP Instance UIDs that lie in the node's spool undecided, where the caller could look. `failed`: the SOP
    Instance UID and SHA-256 of what lies there in claims that were given up.

    Raises:
        LedgerError: the ledger cannot be read.

    """
    given_up = frozenset(event.subject_uid for event in ledger.events(EventKind.SCREENING_FAILED))
    purged = (
        (item["sop_instance_uid"], item["sha256"])
        for event in ledger.events(EventKind.FAILED_PURGED)
        for item in event.detail["instances"]
    )
    failures = _Failures(frozenset([*failed, *purged]), given_up)
    studies: dict[str, list[Decision]] = {}
    for row in rows:
        if not row.is_sent:
            continue
        uid = row.study_instance_uid
        if uid not in studies:
            # Studies come one after the other, and a decision holds every instance's scores.
            studies = {uid: list(ledger.decisions(study_uid=uid))} if uid else {}
        records = _records(studies.get(uid, []), row) or _records(_known(ledger, row), row)
        yield _account(row, records, failures, waits=row.sop_instance_uid in waiting)


@dataclass(frozen=True, slots=True)
class _Failures:
    """Claims that were given up: SOP Instance UID and SHA-256 of what was in them, and the studies they were of."""

    files: frozenset[tuple[str, str]]
    studies: frozenset[str]

    def has(self, row: Row) -> bool:
        if row.sha256 is None:
            return any(uid == row.sop_instance_uid for uid, _ in self.files)
        return (row.sop_instance_uid, row.sha256) in self.files


def _known(ledger: Ledger, row: Row) -> list[Decision]:
    """For a manifest without studies, and for an instance that somebody sent under another study."""
    ids = dict.fromkeys(known.decision_id for known in ledger.known_instances(row.sop_instance_uid))
    return [ledger.decision(decision_id) for decision_id in ids]


def _records(decisions: Sequence[Decision], row: Row) -> list[tuple[Decision, InstanceDecision]]:
    return [(d, i) for d in decisions for i in d.instances if i.sop_instance_uid == row.sop_instance_uid]


def _account(
    row: Row, records: Sequence[tuple[Decision, InstanceDecision]], failures: _Failures, *, waits: bool
) -> Account:
    count = len(records)
    same = [(d, i) for d, i in records if row.sha256 in (None, i.sha256)]
    if same:
        decision, instance = same[0]
        is_held = decision.disposition is Disposition.QUARANTINE
        note = "arrived twice" if count > 1 else ""
        return Account(row, Status.QUARANTINED if is_held else Status.FORWARDED, count, decision, instance, note)
    if records:
        decision, instance = records[0]
        note = "another data set came under its UID: send files as they are, such as with 'dicomguard replay'"
        return Account(row, Status.OTHER_BYTES, count, decision, instance, note)
    if waits:
        return Account(row, Status.WAITING, note="it is in the spool and not decided yet")
    if failures.has(row):
        return Account(row, Status.FAILED, note="see 'dicomguard failed list'")
    note = row.error or "nothing of it is on record"
    if row.study_instance_uid in failures.studies:
        note += "; a claim of its study failed: name the node with -c, so that what lies in failed/ is seen"
    return Account(row, Status.NEVER, note=note)


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value
