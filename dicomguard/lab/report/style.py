"""How every plot of the report looks, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dicomguard.lab.whole import replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#6E6E6E"
SKY, BLACK = "#56B4E9", "#000000"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    # Files of the same figures are the same bytes: no dates, no random ids.
    "svg.hashsalt": "dicomguard",
}


def figure(rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure without a window, and its axes row by row; sizes in inches."""
    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        axes = made.subplots(rows, columns, squeeze=False)
    return made, list(axes.flat)


def write(made: Figure, path: Path) -> Path:
    """As PNG at 130 dots an inch, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE), replacing(path) as partial:
        made.savefig(partial, dpi=130, format="png", metadata={"Software": None})
    return path


def picture(axes: Axes, pixels: Any, title: str) -> None:
    """A picture without ticks: (H, W) in gray, or (H, W, 3); values in [0, 1]."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
