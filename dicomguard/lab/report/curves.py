"""Curves and bars that several suites share, each point with its exact interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from dicomguard.lab.report.style import CYCLE, GREY, MARKERS, RED, figure, write

Share = Mapping[str, Any]
"""As `lab.figures.share` makes it: rate, interval, hits, count."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: `points` of x and a share; dashed where it is a reference, without a band where `plain`."""

    name: str
    points: Sequence[tuple[float, Share]]
    dashed: bool = False
    plain: bool = False


def shares(
    panels: Mapping[str, Sequence[Curve]],
    path: Path,
    *,
    x: str,
    y: str,
    log: bool = False,
    bar: tuple[float, str] | None = None,
) -> Path:
    """Panels of curves with 95 % intervals. `log`: x is shown logarithmically; `bar`: a level and what it stands for.

    A curve of one name looks the same in every panel.
    """
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    made, axes = figure(1, len(panels), width=1.8 + 3.9 * len(panels), height=3.7)
    for place, (title, curves) in enumerate(panels.items()):
        _panel(axes[place], curves, names, log=log, bar=bar)
        axes[place].set_title(title, loc="left")
        axes[place].set_xlabel(x)
    axes[0].set_ylabel(y)
    seen: dict[str, Artist] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    ordered = [name for name in (*names, *(bar[1:] if bar else ())) if name in seen]
    axes[-1].legend([seen[name] for name in ordered], ordered, loc="upper left", bbox_to_anchor=(1, 1))
    return write(made, path)


def _panel(
    axes: Axes, curves: Sequence[Curve], names: Sequence[str], *, log: bool, bar: tuple[float, str] | None
) -> None:
    if bar is not None:
        axes.axhline(bar[0], color=GREY, linewidth=0.9, linestyle=":", label=bar[1])
    ticks: set[float] = set()
    for curve in curves:
        place = names.index(curve.name)
        found = [(at, one) for at, one in curve.points if one["rate"] is not None]
        xs = [at for at, _ in found]
        ticks.update(xs)
        ys = [one["rate"] for _, one in found]
        colour, marker = CYCLE[place % len(CYCLE)], MARKERS[place % len(MARKERS)]
        if not curve.plain:
            axes.fill_between(
                xs,
                [one["interval"][0] for _, one in found],
                [one["interval"][1] for _, one in found],
                color=colour,
                alpha=0.15,
            )
        # After as many curves as there are colours these come again, with another line and hollow markers.
        is_again = place >= len(CYCLE)
        line = "--" if curve.dashed else "-." if is_again else "-"
        face = "white" if is_again else colour
        width = 0.9 if curve.plain else 1.6
        axes.plot(
            xs,
            ys,
            line,
            marker=marker,
            color=colour,
            markerfacecolor=face,
            markersize=4,
            linewidth=width,
            label=curve.name,
        )
    if log:
        axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)], rotation=60, fontsize=8)
        axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)


def bars(
    rows: Mapping[str, Mapping[str, Share]],
    path: Path,
    *,
    x: str,
    title: str,
    colours: Sequence[str],
    bar: tuple[float, str] | None = None,
) -> Path:
    """Horizontal bars: a group for each row, a bar for each name in it. `bar`: a rate, as a line, and what it is.

    `colours`: all names that may occur in such a figure, so that one keeps its colour whoever else is there.
    """
    there = {name for row in rows.values() for name in row}
    names = [name for name in colours if name in there]
    made, (axes,) = figure(width=8, height=0.6 + len(rows) * (0.16 + 0.14 * len(names)))
    thick = 0.8 / max(len(names), 1)
    labelled: set[str] = set()
    for place, name in enumerate(names):
        for at, row in enumerate(rows.values()):
            one = row.get(name)
            if one is None or one["rate"] is None:
                continue
            low, high = one["interval"]
            y = at - 0.4 + thick * (place + 0.5)
            colour = CYCLE[colours.index(name) % len(CYCLE)]
            axes.barh(y, one["rate"], thick * 0.9, color=colour, label=name if name not in labelled else None)
            labelled.add(name)
            axes.plot([low, high], [y, y], color="black", linewidth=0.8)
    if bar is not None:
        axes.axvline(bar[0], color=RED, linewidth=1, linestyle="--", label=bar[1])
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(x)
    axes.set_title(title, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return write(made, path)
