from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.errors import BundleError
from dicomguard.scoring.component import Component

# Few different values, so that ties are common.
VALUES = st.lists(st.integers(-20, 20).map(lambda v: v / 4), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1)
AT = st.floats(-8, 8)


def brute(values: list[float], at: float) -> float:
    return -math.log((1 + sum(value >= at for value in values)) / (len(values) + 1))


@given(VALUES)
@settings(deadline=None)
def test_at_a_clean_value_it_is_minus_the_log_of_the_conformal_p_value(values: list[float]) -> None:
    component = Component.fit(np.array(values), "number")
    for value in set(values):
        assert component.surprise(value) == pytest.approx(brute(values, value), abs=1e-12)


@given(VALUES, AT)
@settings(deadline=None)
def test_between_two_values_it_lies_between_their_surprises(values: list[float], at: float) -> None:
    component = Component.fit(np.array(values), "number")
    lower = [v for v in values if v <= at]
    upper = [v for v in values if v >= at]
    found = component.surprise(at)
    if not lower:
        assert found == 0 == brute(values, at)
    elif not upper:
        beyond = at - max(values)
        assert found == pytest.approx(brute(values, max(values)) + math.log1p(beyond / component.tail))
    else:
        assert brute(values, max(lower)) - 1e-12 <= found <= brute(values, min(upper)) + 1e-12


@given(VALUES, AT, st.floats(0, 8))
@settings(deadline=None)
def test_it_rises_with_the_value(values: list[float], at: float, further: float) -> None:
    component = Component.fit(np.array(values), "number")
    assert 0 <= component.surprise(at) <= component.surprise(at + further) + 1e-12


def test_known_values() -> None:
    component = Component.fit(np.arange(99.0), "number")
    assert component.surprise(98.0) == pytest.approx(math.log(100 / 2))
    assert component.surprise(88.0) == pytest.approx(-math.log(12 / 100))
    assert component.surprise(88.5) == pytest.approx(-math.log(11.5 / 100))
    assert component.surprise(-5.0) == 0
    assert component.surprise(1e6) > 1000


def test_what_is_no_number_stays_none() -> None:
    component = Component.fit(np.arange(9.0), "number")
    assert math.isnan(component.surprise(math.nan))
    assert component.surprise(math.inf) == math.inf
    assert component.surprise(-math.inf) == 0


def test_the_tail_is_as_long_as_the_clean_one() -> None:
    short = Component.fit(np.r_[np.zeros(90), np.linspace(1, 1.1, 10)], "number")
    long = Component.fit(np.r_[np.zeros(90), np.linspace(1, 9, 10)], "number")
    assert short.surprise(12) > long.surprise(12)
    assert long.tail == pytest.approx(4)


def test_it_comes_back_from_json() -> None:
    component = Component.fit(np.random.default_rng(0).normal(size=50), "number")
    again = Component.model_validate_json(component.model_dump_json())
    assert [again.surprise(v) for v in (-1.0, 0.3, 9.0)] == [component.surprise(v) for v in (-1.0, 0.3, 9.0)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, math.nan], "the drop of a clean image is NaN"),
        ([1.0, math.inf, 2.0], "NaN or infinite"),
        ([1.0], "NaN or infinite"),
        ([2.0, 2.0, 2.0], "the drop of all clean images is the same"),
        ([1.0, 1.0 + 1e-9], "is the same"),
    ],
)
def test_what_no_distribution_can_be_made_of(values: list[float], words: str) -> None:
    with pytest.raises(BundleError, match=words) as raised:
        Component.fit(np.array(values), "drop")
    assert raised.value.advice


def test_a_number_that_may_be_the_same_surprises_by_how_far_another_one_is() -> None:
    component = Component.fit(np.full(30, -1.0), "share", if_same=0.01)
    assert component.surprise(-1.0) == 0
    assert component.surprise(-0.9) == pytest.approx(10)
    assert Component.fit(np.array([-1.0, -0.5]), "share", if_same=0.01).tail > 0.01
