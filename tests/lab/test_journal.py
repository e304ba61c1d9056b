from __future__ import annotations

from pathlib import Path

import numpy as np

from dicomguard.lab.measure import Journal, measured, to_curve, to_row
from dicomguard.scoring.consistency import NoiseCurve

CURVE = NoiseCurve(-1.5, 0.8, 1.5, np.array([0.1, 0.2]), np.array([0.3, 0.4]), np.array([1.2, 1.1]))


def test_a_curve_comes_back_from_its_row() -> None:
    assert to_row(to_curve(to_row(CURVE))) == to_row(CURVE)


def test_a_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(key: str) -> NoiseCurve:
        calls.append(key)
        return CURVE

    path = tmp_path / "j.jsonl"
    measured(["a", "b"], Journal(path, "f"), measure, lambda: None)
    with path.open("a") as file:
        file.write('{"key": "c", "finger')  # stopped while writing
    again = measured(["a", "b", "c"], Journal(path, "f"), measure, lambda: None)
    assert calls == ["a", "b", "c"]
    assert len(again) == 3
    assert "a" not in Journal(path, "another fingerprint")
