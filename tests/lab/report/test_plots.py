from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from dicomguard.lab.figures import share
from dicomguard.lab.report import curves, noise_figures


def drawn(path: Path) -> np.ndarray:
    assert not list(path.parent.glob("*.partial"))
    with PIL.Image.open(path) as image:
        found = np.asarray(image.convert("RGB"), np.float32)
    assert found.std() > 5, "it shows something"
    return found


def blob(seed: int, planes: int = 1) -> np.ndarray:
    y, x = np.mgrid[:64, :64] / 63
    return np.stack([np.exp(-((x - 0.3 - 0.1 * seed) ** 2 + (y - 0.5) ** 2) * (8 + p)) for p in range(planes)]).astype(
        "f4"
    )


def test_the_papers_figures_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        (f"case {i}", blob(i, 1 + 2 * i), blob(i, 1 + 2 * i) + 0.004 * rng.choice([-1, 1], (1 + 2 * i, 64, 64)))
        for i in range(2)
    ]
    drawn(noise_figures.perturbation(rows, tmp_path / "one.png"))
    outputs = {
        "clean": rng.beta(9, 1, 60),
        "clean, noisy": rng.beta(8, 1, 60),
        "attacked": rng.beta(3, 5, 50) * 0.5,
        "attacked, noisy": rng.beta(9, 2, 50),
    }
    drawn(noise_figures.sigmoid_outputs(outputs, "a victim under BIM", tmp_path / "three.png", label="ill"))
    levels = [0.01, 0.02, 0.03, 0.04, 0.05]
    differences = {"clean": rng.normal(0.02, 0.05, (60, 5)), "attacked": rng.normal(-0.4, 0.2, (50, 5))}
    drawn(noise_figures.bubbles(levels, differences, "a victim under BIM", tmp_path / "four.png"))
    maps = {name: (blob(i), blob(3 - i)[0].astype(np.float64)) for i, name in enumerate(["clean", "noisy", "attacked"])}
    drawn(noise_figures.heat_maps(maps, "a file", tmp_path / "five.png"))


def test_curves_and_bars_show_intervals_and_bear_gaps(tmp_path: Path) -> None:
    eps = [0.001, 0.002, 0.004, 0.008, 0.016]
    falling = [(e, share([True] * int(50 - 9 * i) + [False] * (9 * i))) for i, e in enumerate(eps)]
    nothing = [(0.002, share([])), (0.004, share([True]))]
    panels = {
        "paper": [curves.Curve("ours", falling), curves.Curve("paper", nothing, dashed=True)],
        "other": [curves.Curve("ours", falling[::-1][1:][::-1]), curves.Curve("paper", nothing)],
    }
    drawn(
        curves.shares(panels, tmp_path / "curves.png", x="eps", y="undetected success", log=True, bar=(0.9, "broken"))
    )
    rows = {f"JPEG {q}": {"ours": share([True] * q + [False] * 50), "paper": share([])} for q in (3, 10)}
    drawn(
        curves.bars(
            rows, tmp_path / "bars.png", x="false alarms", title="shifted", colours=("paper", "ours"), bar=(0.05, "5 %")
        )
    )


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    one = [curves.Curve("ours", [(0.001, share([True, False])), (0.002, share([True]))])]
    paths = [curves.shares({"t": one}, tmp_path / f"{i}.png", x="eps", y="y") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
