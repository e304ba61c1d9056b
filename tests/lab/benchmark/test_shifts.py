from __future__ import annotations

import numpy as np
import pytest

from dicomguard.lab.benchmark.shifts import SHIFTS, UNCHANGED


@pytest.mark.parametrize("planes", [1, 3], ids=["gray", "rgb"])
@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_a_picture_a_little_and_keeps_its_form(name: str, planes: int) -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    picture = np.stack([np.outer(ramp, ramp) ** (1 + p) for p in range(planes)]).astype(np.float32)
    picture[:, 20:30, 20:30] = 0.9
    before = picture.copy()
    moved = SHIFTS[name](picture, 7)
    assert moved.shape == picture.shape
    assert moved.dtype == np.float32
    assert 0 <= moved.min() <= moved.max() <= 1
    change = float(np.abs(moved - picture).mean())
    assert (change == 0) if name == UNCHANGED else (0.0005 < change < 0.08)
    assert np.array_equal(SHIFTS[name](picture, 7), moved)
    assert np.array_equal(picture, before), "what is given is left alone"


def test_noise_is_drawn_by_the_seed() -> None:
    picture = np.full((1, 16, 16), 0.5, np.float32)
    assert not np.array_equal(SHIFTS["Gaussian noise, 3 %"](picture, 1), SHIFTS["Gaussian noise, 3 %"](picture, 2))
    assert SHIFTS["Gaussian noise, 3 %"](picture, 1).std() == pytest.approx(0.03, rel=0.2)
