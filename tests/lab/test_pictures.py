from pathlib import Path

import numpy as np
import pytest

from dicomguard.lab.cases import Case
from dicomguard.lab.instances import secondary_capture
from dicomguard.lab.pictures import prepared
from dicomguard.scoring.preprocess import Preprocess


def case(name: str, value: int) -> Case:
    picture = np.full((32, 32), value, np.uint8)
    return Case(name, 0, name, lambda bits: secondary_capture(picture, bits=bits, name=name))


def test_other_pictures_or_another_preprocessing_are_made_again(tmp_path: Path) -> None:
    plain, small = Preprocess(1, []), Preprocess(1, [("Resize", {"spatial_size": [16, 16]})])
    ticks: list[float] = []
    dark = prepared([case("a", 10), case("b", 20)], 8, plain, tmp_path, ticks.append)
    assert dark.shape == (2, 32, 32)
    assert len(ticks) == 2
    np.testing.assert_array_equal(prepared([case("a", 10), case("b", 20)], 8, plain, tmp_path, ticks.append), dark)
    assert len(ticks) == 2, "kept"
    assert prepared([case("a", 10), case("b", 20)], 8, small, tmp_path, ticks.append).shape == (2, 16, 16)
    bright = prepared([case("a", 200), case("b", 20)], 8, plain, tmp_path, ticks.append)
    assert bright[0].mean() > dark[0].mean() + 0.5
    with pytest.raises(ValueError, match="no cases"):
        prepared([], 8, plain, tmp_path, ticks.append)
