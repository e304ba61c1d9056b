"""The noise-consistency paper's figures, from our own files: perturbation, sigmoid outputs, bubbles, heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomguard.lab.report.style import BLUE, GREEN, ORANGE, RED, figure, picture, write

Values = NDArray[np.float64]
Picture = NDArray[np.float32]

_HALF = 0.5
_BINS = np.linspace(-1, 1, 41)
_COLOURS = {"clean": BLUE, "clean, noisy": GREEN, "attacked": RED, "attacked, noisy": ORANGE}


def _shown(pixels: Picture) -> Picture:
    """(C, H, W) as a picture."""
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)


def perturbation(rows: Sequence[tuple[str, Picture, Picture]], path: Path) -> Path:
    """Figure 1: title, clean and attacked pixels (C, H, W) of a few files, and the change between them, enlarged."""
    made, axes = figure(len(rows), 3, width=7.5, height=2.6 * len(rows))
    for place, (title, clean, attacked) in enumerate(rows):
        change = (attacked - clean).mean(0)
        largest = float(np.abs(change).max())
        gain = 0.5 / max(largest, 1e-9)
        first, second, third = axes[3 * place : 3 * place + 3]
        picture(first, _shown(clean), f"clean: {title}")
        picture(second, _shown(attacked), "attacked")
        picture(third, 0.5 + gain * change, f"change, {gain:.0f} times enlarged\n(largest {largest:.4f})")
    return write(made, path)


def sigmoid_outputs(outputs: Mapping[str, Values], title: str, path: Path, *, label: str) -> Path:
    """Figure 3: the probability of the victim's second class, `label`, for each kind of file, each file a point.

    A median stands on either side of one half: over both together it would lie where there are no files.
    """
    made, (axes,) = figure(width=7, height=3.6)
    names = list(outputs)
    for place, name in enumerate(names):
        values = outputs[name]
        spread = np.random.default_rng(place).uniform(-0.32, 0.32, len(values))
        axes.plot(place + spread, values, ".", color=_COLOURS.get(name, BLUE), alpha=0.45, markersize=5)
        for side in (values[values < _HALF], values[values >= _HALF]):
            if len(side):
                axes.plot([place - 0.36, place + 0.36], [np.median(side)] * 2, color="black", linewidth=1.5)
    axes.axhline(_HALF, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(names)), [f"{name}\n({len(outputs[name])})" for name in names])
    axes.set_ylabel(f"probability of {label}")
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(title, loc="left")
    return write(made, path)


def bubbles(levels: Sequence[float], differences: Mapping[str, Values], title: str, path: Path) -> Path:
    """Figure 4: p(x) - p(x + n) at each noise level, files of a kind counted in bins; the area is their share.

    `differences`: (N, levels) for each kind, side by side.
    """
    made, (axes,) = figure(width=7.5, height=4.2)
    shift = np.linspace(-0.17, 0.17, len(differences))
    for (name, values), aside in zip(differences.items(), shift, strict=True):
        colour = _COLOURS.get(name, BLUE)
        for place in range(len(levels)):
            counts, _ = np.histogram(np.clip(values[:, place], -1, 1), _BINS)
            centres = (_BINS[:-1] + _BINS[1:]) / 2
            seen = counts > 0
            area = 420 * counts[seen] / max(len(values), 1)
            axes.scatter(np.full(seen.sum(), place + aside), centres[seen], area, color=colour, alpha=0.6, linewidths=0)
        axes.scatter([], [], 60, color=colour, alpha=0.6, label=f"{name} ({len(values)} files)")
    axes.set_xticks(range(len(levels)), [f"{100 * level:g} %" for level in levels])
    axes.set_xlabel("noise")
    axes.set_ylabel("p(x) - p(x + n), median of the draws")
    axes.set_ylim(-1.05, 1.05)
    axes.set_title(title, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return write(made, path)


def heat_maps(columns: Mapping[str, tuple[Picture, Values]], title: str, path: Path) -> Path:
    """Figures 5 and 6: what the answer hangs on, for each kind of file: pixels (C, H, W) and saliency (H, W)."""
    made, axes = figure(2, len(columns), width=2.5 * len(columns), height=5.2)
    for place, (name, (pixels, saliency)) in enumerate(columns.items()):
        picture(axes[place], _shown(pixels), name)
        below = axes[len(columns) + place]
        picture(below, _shown(pixels), "where the answer is most sensitive")
        below.imshow(saliency, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    made.suptitle(title, x=0.01, ha="left", fontsize=11)
    return write(made, path)
