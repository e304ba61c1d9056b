"""A claim and its place in the screener's queue. Pure: the clock is the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dicomguard.spool.store import Claim

# Before a claim that failed is tried again: a passing trouble must not use up its attempts, nor others wait for it.
PAUSES_S: Final = (1.0, 30.0, 300.0)


@dataclass(frozen=True, slots=True)
class Turn:
    """A claim that is tried at `not_before_s` (monotonic clock), after `failures` in this run.

    `is_struck`: it failed by itself, and could not be moved to its next attempt, or to `failed/`, yet.
    """

    claim: Claim
    is_overdue: bool = False
    not_before_s: float = 0.0
    failures: int = 0
    is_struck: bool = False

    @property
    def pause_s(self) -> float:
        """How long it waits when it fails now."""
        return PAUSES_S[min(self.failures, len(PAUSES_S) - 1)]
