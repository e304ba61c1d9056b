"""How much is told of what anybody can cause: a little in full, then one row for each address and minute.

The ledger keeps association events for ever, so whoever reaches the port must not be able to fill it. Memory is bounded
too: addresses beyond a few are counted together.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dicomguard.association import AssociationEvent, AssociationKind

# Of one address so many are told in full, and again when it has been quiet for so long.
_IN_FULL = 20
_QUIET_S = 600.0
# Of all addresses together this burst, then one a minute: more addresses do not make more rows.
_IN_FULL_OF_ALL = 200.0
_PER_SECOND_OF_ALL = 1 / 60
_WINDOW_S = 60.0
# Addresses counted each for itself; an address costs a row a minute at most, and those beyond share one.
_ADDRESSES = 16
_OTHERS = ""


class Bucket:
    """A token bucket on a monotonic clock. Thread-safe."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._tokens = burst
        self._at = clock()
        self._left_out = 0
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """None: keep quiet. Otherwise how many were kept quiet since the last time."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
            self._at = now
            if self._tokens < 1:
                self._left_out += 1
                return None
            self._tokens -= 1
            left_out, self._left_out = self._left_out, 0
            return left_out


@dataclass(slots=True)
class _Caller:
    """One address, or all the others. `since_s`: when the first of those left out came."""

    seen_s: float = 0.0
    in_full: int = 0
    since_s: float = 0.0
    left_out: Counter[AssociationKind] = field(default_factory=Counter)
    last: AssociationEvent | None = None


class Thinning:
    """Decides which events are told in full, and sums up the others. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in monotonic seconds."""
        self._clock = clock
        self._callers: dict[str, _Caller] = {}
        self._all = Bucket(_IN_FULL_OF_ALL, _PER_SECOND_OF_ALL, clock)
        self._lock = threading.Lock()

    def passes(self, event: AssociationEvent) -> bool:
        """True: tell it in full. False: it is counted, for the next summary of its address."""
        with self._lock:
            now_s = self._clock()
            caller = self._caller(event.address)
            caller.seen_s = now_s
            if caller.in_full < _IN_FULL and self._all.take() is not None:
                caller.in_full += 1
                return True
            if caller.last is None:
                caller.since_s = now_s
            caller.left_out[event.kind] += 1
            caller.last = event
            return False

    def summaries(self, *, is_last: bool = False) -> list[AssociationEvent]:
        """One event for each address whose minute is over; `is_last`: for each that has any left out."""
        told = []
        with self._lock:
            now_s = self._clock()
            for address, caller in list(self._callers.items()):
                if caller.last is not None and (is_last or now_s - caller.since_s >= _WINDOW_S):
                    told.append(_summary(caller.last, caller.left_out, is_one=address != _OTHERS))
                    caller.last = None
                    caller.left_out.clear()
                elif caller.last is None and now_s - caller.seen_s >= _QUIET_S:
                    del self._callers[address]
        return told

    def _caller(self, address: str) -> _Caller:
        known = self._callers.get(address)
        if known is not None:
            return known
        key = address if len(self._callers.keys() - {_OTHERS}) < _ADDRESSES else _OTHERS
        return self._callers.setdefault(key, _Caller())


def _summary(last: AssociationEvent, left_out: Counter[AssociationKind], *, is_one: bool) -> AssociationEvent:
    """The last of them, with how many there were."""
    if left_out.total() == 1:
        return last
    kinds = ", ".join(f"{count} {kind.value}" for kind, count in sorted(left_out.items()))
    whose = "this address" if is_one else "this and other addresses"
    return replace(last, detail=f"{last.detail} (the last of {left_out.total()} from {whose}: {kinds})".strip())
