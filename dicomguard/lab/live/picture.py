"""The picture of a replay: how well attacked and clean files are told apart, by how much, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dicomguard.lab.live.accounts import Account
from dicomguard.lab.live.rates import latencies_s
from dicomguard.lab.whole import not_written, replacing

_CLEAN: Final = "clean"
_FLOOR, _CEILING = 1e-2, 1e4  # a score of zero and one that is infinite have a place on a logarithmic axis too


def draw(found: dict[str, Any], accounts: Sequence[Account], path: Path, *, quiet_s: float | None = None) -> None:
    """Write a PNG. `found`: `rates.summary` of the accounts; `quiet_s`: how long the node waits for late images.

    Raises:
        DicomguardError: it cannot be written.

    """
    figure = Figure(figsize=(15.0, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = {name: f"C{place}" for place, name in enumerate(found["attacks"])}
    _roc(left, found, colours)
    _scores(middle, found, accounts, colours)
    _latency(right, accounts, quiet_s)
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            FigureCanvasAgg(figure).print_png(file)
    except OSError as error:
        raise not_written(path, error) from error


def _roc(axes: Axes, found: dict[str, Any], colours: dict[str, str]) -> None:
    """Curves over all thresholds, and a cross where the node stands, with its exact intervals."""
    false = found["clean"]["flagged"]
    for name, attack in found["attacks"].items():
        if attack["roc"] is None:
            continue
        low, high = attack["roc"]["interval"]
        label = f"{name}: area {attack['roc']['area']:.3f} ({low:.3f} to {high:.3f})"
        rates = attack["roc"]["false_positive_rate"], attack["roc"]["true_positive_rate"]
        axes.plot(*rates, color=colours[name], linewidth=1.8, label=label, drawstyle="steps-post")
        true = attack["flagged"]
        if true["rate"] is not None and false["rate"] is not None:
            axes.errorbar(
                false["rate"],
                true["rate"],
                xerr=_beside(false),
                yerr=_beside(true),
                fmt="o",
                color=colours[name],
                markeredgecolor="black",
                capsize=3,
            )
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="All thresholds (dots: the node as it is set)")
    axes.set(xlabel="clean files flagged (FPR)", ylabel="attacked files flagged (TPR)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", fontsize="small")
    else:
        axes.text(0.5, 0.4, "It takes clean and attacked files, scored,\nto draw a curve.", ha="center")


def _beside(rate: dict[str, Any]) -> list[list[float]]:
    low, high = rate["interval"]
    return [[rate["rate"] - low], [high - rate["rate"]]]


def _scores(axes: Axes, found: dict[str, Any], accounts: Sequence[Account], colours: dict[str, str]) -> None:
    """Every file's statistic, and the threshold; the sideways spread is chance, so that dots do not hide each other."""
    names = ([_CLEAN] if any(one.row.truth == "clean" for one in accounts) else []) + list(found["attacks"])
    random = np.random.default_rng(0)
    if any(one.statistic is not None for one in accounts):
        axes.set_yscale("log")
    for place, name in enumerate(names):
        of = [one for one in accounts if _name(one) == name and one.statistic is not None]
        values = np.clip([one.statistic or 0.0 for one in of], _FLOOR, _CEILING)
        across = place + random.uniform(-0.25, 0.25, len(of))
        works = np.array([one.row.truth == "clean" or one.row.is_attack for one in of], bool)
        colour = colours.get(name, "black")
        axes.scatter(across[works], values[works], s=16, color=colour, alpha=0.7, linewidths=0)
        axes.scatter(across[~works], values[~works], s=16, facecolors="none", edgecolors=colour, linewidths=0.8)
    for number, threshold in enumerate(found["thresholds"]):
        label = None if number else "threshold of the node"
        axes.axhline(threshold["statistic"], color="black", linestyle="--", linewidth=1, label=label)
    if found["thresholds"]:
        axes.legend(loc="lower right", fontsize="small")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize="small")
    axes.set(title="Every file (rings: answer unchanged)", ylabel="score (larger: more suspicious)")


def _name(one: Account) -> str:
    return _CLEAN if one.row.truth == "clean" else one.row.attack or "unnamed attack"


def _latency(axes: Axes, accounts: Sequence[Account], quiet_s: float | None) -> None:
    values = np.sort(latencies_s(accounts))
    axes.set(
        title="How long studies took", xlabel="seconds from first image to decision", ylabel="share decided by then"
    )
    if not len(values):
        axes.text(0.5, 0.5, "Nothing was decided.", ha="center", transform=axes.transAxes)
        return
    axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color="C0")
    for share, style in ((0.5, "--"), (0.95, "-")):
        at = float(np.quantile(values, share))
        axes.axvline(at, color="black", linestyle=style, linewidth=1, label=f"{share:.0%} within {at:.1f} s")
    if quiet_s is not None:
        axes.axvspan(0, quiet_s, color="0.9", label=f"waiting for late images ({quiet_s:g} s)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.3)  # room for the legend
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(loc="upper left", fontsize="small")
