"""The false-hold budget: how many holds that a person called false a bundle may have before the node speaks up.

It speaks, and no more. A node that left `enforce` by itself would be switched off by whoever sends it enough images
that it holds wrongly. So the alarm proposes a line of the configuration, and a person writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from dicomguard.ledger import Event, EventKind, Ledger


@dataclass(frozen=True, slots=True)
class FalseHoldBudget:
    """More than `holds` in `days` days is over the budget, for each bundle by itself.

    `places`: bundle -> where its `mode` stands in the configuration, for the proposal.
    """

    holds: int
    days: float
    places: Mapping[str, str]

    def counts(self, ledger: Ledger, now: datetime) -> dict[str, int]:
        """False holds by bundle in the days before `now`; a decision counts once for a bundle.

        Each configured bundle has a count, and each whose budget was ever spent, so that it is told when that is over.

        The day of the mark counts, not that of the hold: it is the work of the people who look that is budgeted.
        """
        since = now - timedelta(days=self.days)
        once_spent = [event.subject_uid for event in ledger.events(EventKind.FALSE_HOLD_BUDGET_SPENT)]
        marked: dict[str, set[str]] = {bundle: set() for bundle in (*self.places, *once_spent)}
        for event in ledger.events(EventKind.FALSE_HOLD, since=since):
            for bundle in event.detail["bundles"]:
                marked.setdefault(bundle, set()).add(event.detail["decision_id"])
        return {bundle: len(decisions) for bundle, decisions in marked.items()}

    def check(self, ledger: Ledger, now: datetime) -> None:
        """Record where a bundle's budget was spent since the last look, or is there again. Changes nothing else."""
        for bundle, count in self.counts(ledger, now).items():
            kind = EventKind.FALSE_HOLD_BUDGET_SPENT if count > self.holds else EventKind.FALSE_HOLD_BUDGET_RESTORED
            kinds = (EventKind.FALSE_HOLD_BUDGET_SPENT, EventKind.FALSE_HOLD_BUDGET_RESTORED)
            last = ledger.last_event(kinds, bundle)
            if _is_news(kind, last):
                detail = self._detail(bundle, count, kind)
                ledger.record_turn(kind, bundle, detail, kinds=kinds, is_news=partial(_is_news, kind))

    def _detail(self, bundle: str, count: int, kind: EventKind) -> dict[str, Any]:
        detail = {"bundle": bundle, "false_holds": count, "holds": self.holds, "days": self.days}
        return {**detail, "advice": self.proposal(bundle)} if kind == EventKind.FALSE_HOLD_BUDGET_SPENT else detail

    def proposal(self, bundle: str) -> str:
        """What a person may do about a spent budget."""
        where = self.places.get(bundle, f"'bundles', in the entry of {bundle}")
        return (
            "The node goes on as it is, and will not change its mode by itself. Look for the cause first: 'dicomguard"
            f" drift --bundle {bundle}'. If these holds cost more than they are worth, write 'mode: shadow' instead of"
            f" 'mode: enforce' in the configuration under {where}, and restart the screener: then the bundle records"
            " what it would have held, and holds nothing. Enrol again, and go back to enforce."
        )


def _is_news(kind: EventKind, last: Event | None) -> bool:
    return kind == EventKind.FALSE_HOLD_BUDGET_SPENT if last is None else last.kind != kind
