"""Reads what the ledger drew, judges each stream of p-values, and records an event when a stream's state turns.

Everything is computed from the ledger, so several screeners see the same and a restart forgets nothing. Nothing here
changes what is held or forwarded: an event says that a promise is void, and a person decides what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np

from dicomguard.ledger import Draw, Event, Ledger
from dicomguard.screen import drift
from dicomguard.screen.budget import FalseHoldBudget
from dicomguard.screen.drift import SCALES, Baseline, Look, State
from dicomguard.study import utc_now

OVER_EVENT: Final = "drift_over"
EVENTS: Final = {State.MOVED: "drift_moved", State.MORE_ALARMS: "drift_more_alarms", State.UNIFORM: OVER_EVENT}
_STATES: Final = {kind: state for state, kind in EVENTS.items()}


@dataclass(slots=True)
class Stream:
    """The p-values of one bundle against one enrolment: of one sender, or of all of them (`sender` "").

    All senders together are what the promise is about where the enrolment's images came from all of them; one sender
    is whom to ask. `ranks` are the newest, as many as the largest scale needs and the unfinished window.
    """

    bundle: str
    sender: str
    baseline: Baseline
    window: int
    ranks: list[int] = field(default_factory=list)
    counted: int = 0
    unfinished: int = 0
    through: int = 0
    through_at: datetime | None = None
    last: int = 0
    _patients: set[str] = field(default_factory=set)

    @property
    def subject(self) -> str:
        """What its events are about."""
        return f"{self.bundle} from {self.sender}" if self.sender else self.bundle

    def add(self, draw: Draw) -> bool:
        """Count a draw. True when it completed a window; then the ranks end with it.

        A patient counts once in a window, whatever number of studies: pictures of one patient are no separate draws.
        """
        self.last = draw.number
        if draw.patient_key is not None:
            if draw.patient_key in self._patients:
                return False
            self._patients.add(draw.patient_key)
        self.ranks.append(int(drift.ranks_of([draw.p_value], self.baseline.images)[0]))
        self.counted += 1
        self.unfinished += 1
        if self.unfinished < self.window:
            return False
        self.unfinished = 0
        self._patients.clear()
        self.through, self.through_at = draw.number, draw.at
        del self.ranks[: -max(SCALES) * self.window]
        return True

    def newest(self, windows: int) -> drift.Ranks:
        """The ranks of the newest so many whole windows together, or of as many as there are."""
        whole = self.ranks[: len(self.ranks) - self.unfinished]
        return np.array(whole[-windows * self.window :], dtype=np.int64)

    def looks(self) -> list[Look]:
        """One for each scale; none before there is a window, and one only while there is one only.

        The larger scale takes what there is of its windows: were it left out until it is whole, a change in the first
        window would seem to be over with the second and to be back with the fifth.
        """
        samples = {len(ranks): ranks for ranks in map(self.newest, SCALES)}
        return [drift.look(ranks, self.baseline) for count, ranks in sorted(samples.items()) if count]


class Streams:
    """All streams, filled from draws in the order of their numbers."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._streams: dict[tuple[str, Baseline, str], Stream] = {}
        self.seen = 0

    def add(self, draws: list[Draw]) -> list[Stream]:
        """Count draws; returns the streams of which they completed a window, each once."""
        completed: dict[tuple[str, Baseline, str], Stream] = {}
        for draw in draws:
            baseline = Baseline(draw.enrolment, draw.images, draw.alpha)
            for sender in ("", draw.sender):
                key = (draw.bundle, baseline, sender)
                stream = self._streams.setdefault(key, Stream(draw.bundle, sender, baseline, self._window))
                if stream.add(draw):
                    completed[key] = stream
            self.seen = draw.number
        return list(completed.values())

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())


class Watch:
    """What the screener calls now and then. `level`: of a false event at a window, over all tests and scales."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        window: int,
        level: float,
        budget: FalseHoldBudget,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._ledger = ledger
        self._level = level
        self._budget = budget
        self._now = now
        self._streams = Streams(window)
        self._due: list[Stream] = []

    def step(self) -> None:
        """Look at what was drawn since the last time, and at the budget. Raises LedgerError while it is away."""
        self._due += self._streams.add(self._ledger.draws(self._streams.seen))
        while self._due:
            turn(self._ledger, self._due[0], self._level)
            del self._due[0]  # only now: a ledger that went away meanwhile is asked again
        self._budget.check(self._ledger, self._now())


def turn(ledger: Ledger, stream: Stream, level: float) -> State:
    """Judge a stream at its newest whole window; record an event where its state turned. Returns the state."""
    looks = stream.looks()
    before = standing(ledger, stream)
    state = drift.judge(looks, level, before) if looks else State.COLLECTING
    if state is State.COLLECTING or state is before:
        return state

    def is_news(last: Event | None) -> bool:
        if last is None:
            return state is not State.UNIFORM  # all is well, and nobody ever heard otherwise
        is_same = _STATES[last.kind] is state and (state is State.UNIFORM or _is_of(last, stream))
        return not is_same and int(last.detail["through"]) < stream.through

    detail = _detail(stream, looks, state)
    ledger.record_turn(EVENTS[state], stream.subject, detail, kinds=tuple(_STATES), is_news=is_news)
    return state


def standing(ledger: Ledger, stream: Stream) -> State:
    """What the last event about the stream's subject says; an event of another enrolment says nothing of this one."""
    last = ledger.last_event(tuple(_STATES), stream.subject)
    return _STATES[last.kind] if last is not None and _is_of(last, stream) else State.COLLECTING


def advice(stream: Stream, state: State) -> str:
    """What a person should do next, in words."""
    whose = f"images from {stream.sender}" if stream.sender else "the images that this bundle screens"
    match state:
        case State.MOVED:
            return (
                f"The promise of alpha = {stream.baseline.alpha:g} does not hold for {whose} until they are like those"
                " of the enrolment again. Look at what is held, find out what changed (device, protocol, processing),"
                " then enrol again on recent clean studies that a person has looked at: 'dicomguard enrol'."
            )
        case State.MORE_ALARMS:
            return (
                f"More of {whose} are flagged than the enrolment explains, and the rest is as it was: an attack looks"
                " like this, and so does a new kind of image. Look at what is held first ('dicomguard quarantine"
                " list'). Enrol again only when a person has found the flagged ones clean; until then the promise of"
                f" alpha = {stream.baseline.alpha:g} does not hold here."
            )
        case State.UNIFORM:
            return "The images are like those of the enrolment; the promise holds."
        case _:
            return f"{stream.unfinished} of {stream.window} studies are there; nothing is said before."


def _is_of(event: Event, stream: Stream) -> bool:
    return event.detail.get("enrolment") == stream.baseline.enrolment


def _detail(stream: Stream, looks: list[Look], state: State) -> dict[str, Any]:
    return {
        "bundle": stream.bundle,
        "sender": stream.sender,
        **asdict(stream.baseline),
        "window": stream.window,
        "through": stream.through,
        "looks": [look_json(one) for one in looks],
        "advice": advice(stream, state),
    }


def look_json(look: Look) -> dict[str, Any]:
    """A look as plain values."""
    return {**asdict(look), "expected_flags": list(look.expected_flags), "p": look.p}
