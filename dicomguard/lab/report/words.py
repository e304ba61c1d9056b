"""Numbers as sentences and tables of Markdown print them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from scipy import stats

Share = Mapping[str, Any]

EPS: Final = "eps, share of the presentation range"
"""What the axis of budgets is called."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; a bar in a cell would end it."""
    lines = [_row(columns), _row(["---"] * len(columns)), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def who(one: Mapping[str, Any]) -> str:
    """The victim of a row; its seed where it is not the first."""
    return one["family"] if not one["seed"] else f"{one['family']}, seed {one['seed']}"


def rate(found: Share | None) -> str:
    """`97.3 (84.2-99.9)`: percent with its 95 % interval; a dash where there was nothing to count."""
    if found is None or found["rate"] is None:
        return "-"
    low, high = found["interval"]
    return f"{100 * found['rate']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def counted(found: Share | None) -> str:
    """`97.3 (36/37)`."""
    if found is None or found["rate"] is None:
        return "-"
    return f"{100 * found['rate']:.1f} ({found['hits']}/{found['count']})"


def both(found: Share | None, alarms: Share | None) -> str:
    """`97.3 (36/37) | 4.1 (12/290)`: TPR and FPR in percent, as the noise-consistency paper writes them."""
    return f"{counted(found)} | {counted(alarms)}"


def both_rates(found: Share | None, alarms: Share | None) -> str:
    """The same with intervals in place of counts: `97.3 (84.2-99.9) | 4.1 (2.1-7.1)`."""
    return f"{rate(found)} | {rate(alarms)}"


def area(found: Mapping[str, Any] | None) -> str:
    """`.973 (.951-.990)`: an area under a ROC curve with its 95 % interval.

    None at 0 and 1, where a bootstrap sees no spread however few the files.
    """
    if found is None or found.get("area") is None:
        return "-"
    low, high = found.get("interval") or (None, None)
    return f"{found['area']:.3f}" + ("" if low is None or low == high else f" ({low:.3f}-{high:.3f})")


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def difference(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """The 95 % interval of one share less another, each hits of a count (Newcombe 1998, method 10).

    For independent shares; wider than it need be where both are of the same files.
    """
    (low, high), (below, above) = (proportion_interval(hits, count) for hits, count in (one, other))
    p, q = one[0] / one[1], other[0] / other[1]
    return p - q - math.hypot(p - low, above - q), p - q + math.hypot(high - p, q - below)


def proportion_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    found = stats.binomtest(hits, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def percent(value: float | None) -> str:
    """`96.1`."""
    return "-" if value is None else f"{100 * value:.1f}"


def of_data_sets(trainings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What each data set stands in for, and what it cannot show, from the reports of the victims trained on it."""
    seen: dict[str, Mapping[str, Any]] = {}
    for one in trainings:
        seen.setdefault(one["data_set"], one)
    for name, one in seen.items():
        other = one["stands_in_for"]["data_set"]
        yield f"- **{name}**{f', in place of {other}' if other else ''}. {' '.join(one['limits'])}".rstrip()
    yield ""
