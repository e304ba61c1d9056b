"""Curves and bars that several suites share, each point with its exact interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dicomguard.lab.report.style import CYCLE, GREY, MARKERS, RED, figure, write

Share = Mapping[str, Any]
"""As `lab.figures.share` makes it: rate, interval, hits, count."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: `points` of x and a share; dashed where it is a reference."""

    name: str
    points: Sequence[tuple[float, Share]]
    dashed: bool = False


def shares(
    panels: Mapping[str, Sequence[Curve]], path: Path, *, x: str, y: str, log: bool = False, bar: float | None = None
) -> Path:
    """Panels of curves with 95 % intervals. `log`: x is shown logarithmically; `bar`: a level to compare with."""
    made, axes = figure(1, len(panels), width=1.8 + 3.9 * len(panels), height=3.7)
    for place, (title, curves) in enumerate(panels.items()):
        _panel(axes[place], curves, log=log, bar=bar)
        axes[place].set_title(title, loc="left")
        axes[place].set_xlabel(x)
    axes[0].set_ylabel(y)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return write(made, path)


def _panel(axes: Axes, curves: Sequence[Curve], *, log: bool, bar: float | None) -> None:
    if bar is not None:
        axes.axhline(bar, color=GREY, linewidth=0.8, linestyle=":")
    ticks: set[float] = set()
    for place, curve in enumerate(curves):
        found = [(at, one) for at, one in curve.points if one["rate"] is not None]
        xs = [at for at, _ in found]
        ticks.update(xs)
        ys = [one["rate"] for _, one in found]
        colour, marker = CYCLE[place % len(CYCLE)], MARKERS[place % len(MARKERS)]
        axes.fill_between(
            xs,
            [one["interval"][0] for _, one in found],
            [one["interval"][1] for _, one in found],
            color=colour,
            alpha=0.15,
        )
        # After as many curves as there are colours these come again, with another line.
        line = "--" if curve.dashed else "-" if place < len(CYCLE) else "-."
        axes.plot(xs, ys, line, marker=marker, color=colour, markersize=4, label=curve.name)
    if log:
        axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)], rotation=60, fontsize=8)
        axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)


def bars(rows: Mapping[str, Mapping[str, Share]], path: Path, *, x: str, title: str, bar: float | None = None) -> Path:
    """Horizontal bars: a group for each row, a bar for each name in it. `bar`: the promised rate, as a line."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    made, (axes,) = figure(width=8, height=0.6 + len(rows) * (0.16 + 0.14 * len(names)))
    thick = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        for at, row in enumerate(rows.values()):
            one = row.get(name)
            if one is None or one["rate"] is None:
                continue
            low, high = one["interval"]
            y = at - 0.4 + thick * (place + 0.5)
            axes.barh(y, one["rate"], thick * 0.9, color=CYCLE[place % len(CYCLE)], label=name if at == 0 else None)
            axes.plot([low, high], [y, y], color="black", linewidth=0.8)
    if bar is not None:
        axes.axvline(bar, color=RED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(x)
    axes.set_title(title, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return write(made, path)
