from __future__ import annotations

import pytest
from scipy import stats

from dicomguard.enrol.intervals import clopper_pearson


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 10), (180, 200)])
def test_intervals_are_scipys_exact_ones(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, count) == pytest.approx((expected.low, expected.high))
