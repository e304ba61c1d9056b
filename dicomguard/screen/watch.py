"""Reads what the ledger drew, judges each stream of p-values, and records an event when a stream's state turns.

Everything is computed from the ledger, so several screeners see the same and a restart forgets nothing. Only the newest
draws of a stream are read for that, back to a place from which whoever reads counts the same windows. Nothing here
changes what is held or forwarded: an event says that a promise is void, and a person decides what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from dicomguard.ledger import Draw, DrawGroup, Event, EventKind, Ledger
from dicomguard.screen import drift
from dicomguard.screen.budget import FalseHoldBudget
from dicomguard.screen.drift import SCALES, Baseline, Look, State
from dicomguard.study import utc_now

EVENTS: Final = {
    State.MOVED: EventKind.DRIFT_MOVED,
    State.MORE_ALARMS: EventKind.DRIFT_MORE_ALARMS,
    State.UNIFORM: EventKind.DRIFT_OVER,
}
# Every so many windows' worth of draws of a stream a window begins, whatever came before: from there on anybody who
# reads counts the same windows. What was unfinished then is left out; that is nothing where no patient came twice.
_WINDOWS_IN_SPAN: Final = 10
# How far back a start reads at most. A stream in which nearly all patients come again and again has few windows there.
_SPANS_READ: Final = 8
_STATES: Final[dict[str, State]] = {kind: state for state, kind in EVENTS.items()}


# Bundle -> SHA-256 of each of its enrolments that the site has configured.
Configured = Mapping[str, Collection[str]]


@dataclass(slots=True)
class Stream:
    """The p-values of one bundle against one enrolment: of one sender, or of all of them (`sender` "").

    All senders together are what the promise is about where the enrolment's images came from all of them; one sender
    is whom to ask. `ranks` are the newest, as many as the largest scale needs and the unfinished window. `drawn` counts
    all draws from the stream's first, read or not, patients that came again included. `is_one_of_several`: the site has
    other enrolments of this bundle, each with streams of its own.
    """

    bundle: str
    sender: str
    baseline: Baseline
    window: int
    ranks: list[int] = field(default_factory=list)
    drawn: int = 0
    unfinished: int = 0
    through: int = 0
    through_at: datetime | None = None
    is_one_of_several: bool = False
    _patients: set[str] = field(default_factory=set)
    _repeats: int = 0  # draws of patients that were counted already, since a window was whole
    _fresh: int = 0  # the others

    @property
    def model(self) -> str:
        """The bundle, and which enrolment of it where the site has several."""
        return f"{self.bundle} enrolment {self.baseline.enrolment[:12]}" if self.is_one_of_several else self.bundle

    @property
    def subject(self) -> str:
        """What its events are about."""
        return f"{self.model} from {self.sender}" if self.sender else self.model

    @property
    def has_few_patients(self) -> bool:
        """True when a window's worth of studies was left out, and not one in ten counted: no window becomes whole."""
        return self._repeats >= self.window and self._repeats >= 9 * self._fresh

    def add(self, draw: Draw) -> bool:
        """Count a draw. True when it completed a window; then the ranks end with it.

        A patient counts once in a window, whatever number of studies: pictures of one patient are no separate draws.
        """
        if self.drawn % (_WINDOWS_IN_SPAN * self.window) == 0:
            self._begin_window()
        self.drawn += 1
        if draw.patient_key is not None:
            if draw.patient_key in self._patients:
                self._repeats += 1
                return False
            self._patients.add(draw.patient_key)
        self._fresh += 1
        self.ranks.append(int(drift.ranks_of([draw.p_value], self.baseline.images)[0]))
        self.unfinished += 1
        if self.unfinished < self.window:
            return False
        self.unfinished = self._repeats = self._fresh = 0
        self._patients.clear()
        self.through, self.through_at = draw.number, draw.at
        del self.ranks[: -max(SCALES) * self.window]
        return True

    def _begin_window(self) -> None:
        """Leave out what is unfinished."""
        del self.ranks[len(self.ranks) - self.unfinished :]
        self.unfinished = 0
        self._patients.clear()

    @property
    def has_all_windows(self) -> bool:
        """True when the largest scale is whole."""
        return len(self.ranks) - self.unfinished >= max(SCALES) * self.window

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
    """The streams of each bundle's enrolments, as the ledger has them, and whatever draws are added later.

    Those are the `configured` ones, or, where none of them drew anything yet, the one that drew last.
    """

    def __init__(self, ledger: Ledger, window: int, configured: Configured = MappingProxyType({})) -> None:
        """Reads what the windows need. Raises LedgerError."""
        self._ledger = ledger
        self._window = window
        self._configured = configured
        tallies = ledger.draw_groups()
        self.seen = max((tally.newest for tally in tallies.values()), default=0)
        drew: dict[str, list[DrawGroup]] = {}
        for group, _ in sorted(tallies.items(), key=lambda item: item[1].newest):
            drew.setdefault(group.bundle, []).append(group.of_all)
        current: set[DrawGroup] = set()
        for bundle, groups in drew.items():
            ours = {group for group in groups if group.enrolment in configured.get(bundle, ())}
            current |= ours or {groups[-1]}
        counts: dict[DrawGroup, int] = {}
        for group, tally in tallies.items():
            if group.of_all in current:
                counts[group] = tally.draws
                counts[group.of_all] = counts.get(group.of_all, 0) + tally.draws
        self._streams = {group: self._read(group, drawn, self.seen) for group, drawn in counts.items()}

    def add(self, draws: Sequence[Draw]) -> list[Stream]:
        """Count draws in the order of their numbers; returns the streams of which they completed a window, each once.

        Raises LedgerError; then none of them is counted.
        """
        for draw in draws:
            for group in _groups_of(draw):
                if group not in self._streams:  # a new sender, or an enrolment that is back
                    drawn = self._ledger.count_draws(group, through=draw.number - 1)
                    self._streams[group] = self._read(group, drawn, draw.number - 1)
        completed: dict[DrawGroup, Stream] = {}
        for draw in draws:
            for group in _groups_of(draw):
                if self._streams[group].add(draw):
                    completed[group] = self._streams[group]
            self.seen = draw.number
        return list(completed.values())

    def _read(self, group: DrawGroup, drawn: int, through: int) -> Stream:
        """A stream as it stands after its first `drawn` draws, which have numbers up to `through`."""
        span = _WINDOWS_IN_SPAN * self._window
        back = 1
        while True:
            start = max(0, drawn // span - back) * span
            baseline = Baseline(group.enrolment, group.images, group.alpha)
            stream = Stream(group.bundle, group.sender or "", baseline, self._window, drawn=start)
            stream.is_one_of_several = len(self._configured.get(group.bundle, ())) > 1
            for draw in self._ledger.newest_draws(group, drawn - start, through=through):
                stream.add(draw)
            if start == 0 or stream.has_all_windows or back >= _SPANS_READ:
                return stream
            back *= 2

    def __iter__(self) -> Iterator[Stream]:
        """By bundle, all senders before each of them."""
        return iter(sorted(self._streams.values(), key=lambda stream: (stream.model, stream.sender)))


def _groups_of(draw: Draw) -> tuple[DrawGroup, DrawGroup]:
    """All senders together, and its own."""
    return DrawGroup.of(draw).of_all, DrawGroup.of(draw)


class Watch:
    """What the screener calls now and then. `level`: of a false event at a window, over all tests and scales."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        window: int,
        level: float,
        budget: FalseHoldBudget,
        configured: Configured = MappingProxyType({}),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._ledger = ledger
        self._level = level
        self._budget = budget
        self._configured = configured
        self._now = now
        self._window = window
        self._streams: Streams | None = None
        self._due: list[Stream] = []

    def step(self) -> None:
        """Look at what was drawn since the last time, and at the budget. Raises LedgerError while it is away."""
        if self._streams is None:
            self._streams = Streams(self._ledger, self._window, self._configured)
            self._due += self._streams  # a window may have been completed while nobody looked
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
    ledger.record_turn(EVENTS[state], stream.subject, detail, kinds=tuple(EVENTS.values()), is_news=is_news)
    return state


def standing(ledger: Ledger, stream: Stream) -> State:
    """What the last event about the stream's subject says; an event of another enrolment says nothing of this one."""
    last = ledger.last_event(tuple(EVENTS.values()), stream.subject)
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
        case _ if stream.has_few_patients:
            return (
                f"Nearly all studies of {whose} have a Patient ID that was counted already, and a patient counts once"
                " in a window: so none becomes whole, and no change would be seen. Where a sender writes one ID for"
                " all, have it send the patients' own, or a pseudonym for each."
            )
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
