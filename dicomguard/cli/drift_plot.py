"""The picture of streams of p-values: a histogram each, with the band that is expected of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dicomguard.screen import drift
from dicomguard.screen.watch import Stream

_BINS = 20
_MOST = 12
_COLUMNS = 3


def draw(streams: Sequence[Stream], path: Path) -> None:
    """Write a PNG with a panel for each stream, the first twelve that have a whole window. Raises OSError."""
    shown = [stream for stream in streams if len(stream.newest(1))][:_MOST]
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    for place, stream in enumerate(shown):
        _panel(figure.add_subplot(rows, columns, place + 1), stream)
    if not shown:
        figure.text(0.5, 0.5, "No stream has a whole window yet.", ha="center")
    FigureCanvasAgg(figure).print_png(path)


def _panel(axes: Axes, stream: Stream) -> None:
    """Bars are the newest studies, as many whole windows as there are; all bars are in the band 99 times of 100."""
    ranks, m, alpha = stream.newest(max(drift.SCALES)), stream.baseline.images, stream.baseline.alpha
    # A bin holds whole ranks: (1 + k) / (m + 1) for k of an interval, so that its law is exact.
    edges = np.unique(np.linspace(0, m + 1, _BINS + 1).round().astype(int))
    counts = np.histogram(ranks, edges)[0]
    bands = np.array([drift.expected_count(len(ranks), int(width), m, 0.01 / _BINS) for width in np.diff(edges)])
    at = edges / (m + 1)
    axes.stairs(
        bands[:, 1], at, baseline=bands[:, 0], fill=True, color="0.85", label=f"expected of all bars (99 %, m = {m})"
    )
    inside = (counts >= bands[:, 0]) & (counts <= bands[:, 1])
    widths, centres = np.diff(at), (at[:-1] + at[1:]) / 2
    colours = np.where(inside, "tab:blue", "tab:red")
    axes.bar(centres, counts, 0.72 * widths, color=colours.tolist(), alpha=0.8)
    axes.axvline(alpha, color="black", linestyle="--", linewidth=1, label=f"alpha = {alpha:g}")
    axes.set(xlim=(0, 1), xlabel="p-value", ylabel="studies", title=f"{stream.subject}: newest {len(ranks)} studies")
    axes.set_ylim(0, 1.25 * max(float(counts.max()), float(bands.max())))
    axes.legend(loc="upper right", fontsize="small")
