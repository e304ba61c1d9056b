"""Whether recomputed scores are the recorded ones: measurements within a tolerance, everything else the same. Pure.

Whole numbers count or number something (frames, draws, images), and settings were written by somebody: neither depends
on the processor, so each must be the very same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from dicomguard.plain_json import finite

# What a score cost, not what it says: another processor may stop early one look sooner.
_COSTS: Final = frozenset({"passes"})
# Counted over many draws of noise, of which another processor may see a few differently: a measurement.
_COUNTS_OF_NOISE: Final = frozenset({"votes"})
# Written down beforehand, or held against what was: no measurements, although they are no whole numbers.
_SETTINGS: Final = frozenset({"alpha", "eps", "sigma", "levels"})
# Numbers of frames in no order that says anything.
_SETS: Final = frozenset({"suspects"})
# Every version recorded these of every image that was scored; what else only the newer record has is no difference.
_ALWAYS: Final = ("frames", "statistics")
# A model and its calibration, not what they found: compared exactly, beforehand, by `provenance`.
_PROVENANCE: Final = ("enrolment", "thresholds")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Of measurements: |recomputed - recorded| <= absolute + relative * |recorded|; not finite: the same one."""

    absolute: float = 0.02
    relative: float = 0.02

    def allows(self, recorded: float, recomputed: float) -> bool:
        """True when the two count as one number."""
        if math.isfinite(recorded) and math.isfinite(recomputed):
            return abs(recomputed - recorded) <= self.absolute + self.relative * abs(recorded)
        return recorded == recomputed or (math.isnan(recorded) and math.isnan(recomputed))


_NONE: Final = Tolerance(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that did not come out as it was recorded. `by`: the distance of two numbers, None for other things."""

    what: str
    recorded: Any
    recomputed: Any
    by: float | None = None

    def __str__(self) -> str:
        """One line for a person."""
        by = "" if self.by is None else f" (by {self.by:.3g})"
        return f"{self.what}: recorded {self.recorded}, recomputed {self.recomputed}{by}"

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; numbers that JSON does not know become texts."""
        values = {"recorded": self.recorded, "recomputed": self.recomputed, "by": self.by}
        return {"what": self.what, **finite(values)}


def provenance(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which enrolment and which thresholds a score was held against; empty where there is no score."""
    return {name: scores[name] for name in _PROVENANCE if scores and name in scores}


def same_provenance(recorded: Mapping[str, Any], recomputed: Mapping[str, Any]) -> bool:
    """True when what was recorded of a model's enrolment holds for the loaded one, to the last digit."""
    return not any(differences(recorded, recomputed, _NONE, ""))


def score_differences(
    recorded: Mapping[str, Any] | None, recomputed: Mapping[str, Any] | None, tolerance: Tolerance, what: str
) -> Iterator[Difference]:
    """Where two records of the scores of one instance part ways. What only the newer one has is no difference."""
    if recorded is None or recomputed is None:
        if recorded is not recomputed:
            yield Difference(what, _presence(recorded), _presence(recomputed))
        return
    for name in _ALWAYS:
        if name not in recorded and name in recomputed:
            yield Difference(f"{what}.{name}", "nothing", recomputed[name])
    left = {name: value for name, value in recorded.items() if name not in _PROVENANCE}
    worst = (recorded.get("worst"), recomputed.get("worst"))
    if all(isinstance(w, Mapping) for w in worst) and _changed_places(recorded, recomputed, tolerance):
        # Two frames of one height: which of them is called the worst says nothing.
        del left["worst"]
    yield from differences(left, recomputed, tolerance, what)


def differences(recorded: Any, recomputed: Any, tolerance: Tolerance, what: str) -> Iterator[Difference]:
    """The same for any JSON value; `what` names it."""
    if isinstance(recorded, Mapping) and isinstance(recomputed, Mapping):
        for name, value in recorded.items():
            where = f"{what}.{name}" if what else str(name)
            if name in _COSTS:
                continue
            if name not in recomputed:
                yield Difference(where, value, "nothing: not computed by this version")
            elif name in _SETS and _is_list(value) and _is_list(recomputed[name]):
                if _as_set(value) != _as_set(recomputed[name]):
                    yield Difference(where, list(value), list(recomputed[name]))
            else:
                allowed = _NONE if name in _SETTINGS else tolerance
                yield from differences(value, recomputed[name], allowed, where)
    elif _is_list(recorded) and _is_list(recomputed):
        if len(recorded) != len(recomputed):
            yield Difference(what, f"{len(recorded)} values", f"{len(recomputed)} values")
            return
        for index, (old, new) in enumerate(zip(recorded, recomputed, strict=True)):
            yield from differences(old, new, tolerance, f"{what}[{index}]")
    elif _is_number(recorded) and _is_number(recomputed):
        allowed = tolerance if _is_measured(recorded, recomputed, what) else _NONE
        if not allowed.allows(recorded, recomputed):
            yield Difference(what, recorded, recomputed, abs(recomputed - recorded))
    elif recorded != recomputed or type(recorded) is not type(recomputed):
        yield Difference(what, recorded, recomputed)


def largest_distance(recorded: Any, recomputed: Any) -> float:
    """The largest distance of two numbers that stand in the same place, whatever the tolerance; 0 where none do."""
    found = differences(recorded, recomputed, _NONE, "")
    return max((d.by for d in found if d.by is not None and math.isfinite(d.by)), default=0.0)


def _changed_places(recorded: Mapping[str, Any], recomputed: Mapping[str, Any], tolerance: Tolerance) -> bool:
    """True when another frame is the worst now, and each is as high as the other in the record too."""
    before, now = recorded["worst"].get("frame"), recomputed["worst"].get("frame")
    statistics = recorded.get("statistics")
    if before == now or not _is_list(statistics):
        return False
    if not all(isinstance(n, int) and 0 <= n < len(statistics) for n in (before, now)):
        return False
    heights = statistics[before], statistics[now]
    return all(_is_number(height) for height in heights) and tolerance.allows(*heights)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_measured(recorded: object, recomputed: object, what: str) -> bool:
    is_whole = isinstance(recorded, int) or isinstance(recomputed, int)
    return not is_whole or what.rpartition(".")[2] in _COUNTS_OF_NOISE


def _as_set(values: Sequence[Any]) -> set[str]:
    return {repr(value) for value in values}


def _presence(scores: object) -> str:
    return "no scores" if scores is None else "scores"
