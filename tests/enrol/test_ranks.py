from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from dicomguard.enrol.ranks import auroc

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.inf]), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_the_area_is_that_of_the_textbook_ties_and_infinity_included(clean: list[float], attacked: list[float]) -> None:
    finite = [min(value, 1e9) for value in clean + attacked]
    truth = [0] * len(clean) + [1] * len(attacked)
    assert auroc(clean, attacked) == pytest.approx(roc_auc_score(truth, finite))


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_all_pairs(clean: list[float], attacked: list[float]) -> None:
    pairs = [1.0 if a > c else 0.5 if a == c else 0.0 for a in attacked for c in clean]
    assert auroc(clean, attacked) == pytest.approx(np.mean(pairs))


def test_ties_count_as_one_half() -> None:
    assert auroc([0.0, 1.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)
    clean, attacked = np.random.default_rng(1).normal(size=50), np.random.default_rng(2).normal(1, size=40)
    expected = stats.mannwhitneyu(attacked, clean).statistic / (50 * 40)
    assert auroc(clean, attacked) == pytest.approx(expected)


def test_nothing_has_no_area_and_nan_gives_none_either() -> None:
    assert auroc([1.0], []) is None
    assert auroc([], [1.0]) is None
    found = auroc([1.0, 2.0], [math.nan])
    assert found is not None
    assert math.isnan(found)
