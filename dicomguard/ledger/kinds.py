"""What kinds of events there are, and which of them somebody must hear of. docs/ledger.md says who records them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class EventKind(StrEnum):
    """As an event's kind stands in the ledger."""

    UID_CONFLICT = "uid_conflict"
    DOUBT_AFTER_FORWARD = "doubt_after_forward"
    OVERDUE = "overdue"
    SCREENING_FAILED = "screening_failed"
    STRANGER_IN_SPOOL = "stranger_in_spool"
    REVIEW_UNFINISHED = "review_unfinished"
    JOURNAL_UNREADABLE = "journal_unreadable"
    ROUTING_FAILED = "routing_failed"
    HOST_FAILING = "host_failing"
    UNKNOWN_OUTBOUND = "unknown_outbound"
    ALTERED_IN_SPOOL = "altered_in_spool"
    DAMAGED_IN_SPOOL = "damaged_in_spool"
    DELIVERY_DEAD = "delivery_dead"
    DESTINATION_FAILING = "destination_failing"
    DESTINATION_OVERDUE = "destination_overdue"
    LEDGER_TRUNCATED = "ledger_truncated"
    DRIFT_MOVED = "drift_moved"
    DRIFT_MORE_ALARMS = "drift_more_alarms"
    FALSE_HOLD_BUDGET_SPENT = "false_hold_budget_spent"
    DRIFT_OVER = "drift_over"
    FALSE_HOLD_BUDGET_RESTORED = "false_hold_budget_restored"
    FALSE_HOLD = "false_hold"
    EVIDENCE_EXPORTED = "evidence_exported"
    DESTINATION_RECOVERED = "destination_recovered"
    RETENTION_REMOVED = "retention_removed"
    REQUEUED = "requeued"
    FAILED_PURGED = "failed_purged"
    REJECTED_PURGED = "rejected_purged"


_QUIET: Final = frozenset(
    {
        EventKind.DRIFT_OVER,
        EventKind.FALSE_HOLD_BUDGET_RESTORED,
        EventKind.FALSE_HOLD,
        EventKind.EVIDENCE_EXPORTED,
        EventKind.DESTINATION_RECOVERED,
        EventKind.RETENTION_REMOVED,
        EventKind.REQUEUED,
        EventKind.FAILED_PURGED,
        EventKind.REJECTED_PURGED,
    }
)
ALARMS: Final = frozenset(EventKind) - _QUIET
"""Logged as errors when they are recorded, marked where events are shown. What is new is one, unless it says not."""
