"""The two figures of docs/study-level.md, from the numbers that `study_power` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

mpl.use("Agg")
_KINDS = {"bim": "early-stopped BIM", "pgd4": "PGD .004", "pgd8": "PGD .008"}


def draw_power(found: dict[str, Any], path: Path) -> None:
    """Share of attacked studies found against the number of attacked slices; one column a size, one row an attack."""
    sizes = [size for size in found["sizes"] if "power" in found["sizes"][size]]
    kinds = [kind for kind in found["sizes"][sizes[0]]["power"] if kind in _KINDS]
    figure = Figure(figsize=(4.2 * len(sizes), 3.0 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(sizes), squeeze=False, sharey=True)
    for row, kind in enumerate(kinds):
        for column, size in enumerate(sizes):
            axis, here = axes[row][column], found["sizes"][size]
            for name, curves in here["power_of_others"].items():
                _line(axis, curves[kind], label=name, linewidth=1.0)
            _line(axis, here["power"][kind], label="chosen", linewidth=2.4, color="black", marker="o", markersize=3)
            axis.axhline(0.9, color="grey", linestyle=":", linewidth=1)
            axis.axvline(here["aim"], color="grey", linestyle="--", linewidth=1)
            axis.set_ylim(0, 1.03)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_title(f"{size} slices, {_KINDS[kind]}", fontsize=9)
            if row == len(kinds) - 1:
                axis.set_xlabel("attacked slices (dashed: the aim)", fontsize=8)
            if column == 0:
                axis.set_ylabel(f"studies held, alpha {here['power_alpha']:.2g}", fontsize=8)
    axes[0][0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=90)


def _line(axis: Any, curve: dict[int, float | None], **style: Any) -> None:
    points = [(count, rate) for count, rate in curve.items() if rate is not None]
    axis.plot([count for count, _ in points], [rate for _, rate in points], **style)


def draw_false_holds(found: dict[str, Any], path: Path) -> None:
    """Held clean studies by size: the chosen test with its exact band, and what tests of images alone do."""
    sizes = list(found["sizes"])
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axis = figure.subplots()
    for place, size in enumerate(sizes):
        here = found["sizes"][size]
        held = here["false_holds"]
        if held["promise"]:
            tested = held["one_split"]["count"]
            low, high = (edge / tested for edge in held["band"])
            axis.bar(place - 0.3, high - low, bottom=low, width=0.22, color="lightgrey", label="its exact 95 % band")
            axis.plot(place - 0.3, held["one_split"]["rate"], "k_", markersize=16, label="conformal, one split")
            axis.plot(place - 0.3, held["mean_of_splits"], "kx", markersize=6, label="conformal, mean of splits")
        marks = {"Bonferroni": "C0o", "Simes": "C1s", "image threshold on the worst image": "C3^"}
        for offset, (name, mark) in enumerate(marks.items()):
            if "naive" in here:
                rate = here["naive"][name]
                at = place - 0.08 + 0.16 * offset
                axis.plot([at, at], rate["interval"], mark[:2], linewidth=1)
                axis.plot(at, rate["rate"], mark, markersize=5, label=name)
    axis.axhline(found["alpha"], color="grey", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
    axis.set_xlabel("slices of a study")
    axis.set_ylabel("clean studies held")
    named = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(named.values(), named.keys(), fontsize=8)
    figure.savefig(path, dpi=90)
