from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.deliver import Settings
from dicomguard.deliver.answer import Answer, in_words, is_busy, judge


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0111], ids=hex)
def test_delivered(status):
    assert judge(status, 0, 5) is Answer.DELIVERED


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF, 0x0110, 0x0213], ids=hex)
def test_tried_again_for_ever(status):
    assert judge(status, 10_000, 5) is Answer.RETRY
    assert is_busy(status)


@pytest.mark.parametrize("status", [0xA900, 0xA9FF, 0x0122, 0x0117], ids=hex)
def test_dead_at_once(status):
    assert judge(status, 0, 5) is Answer.DEAD


@pytest.mark.parametrize("status", [0xC000, 0xC001, 0xCFFF], ids=hex)
def test_dead_after_the_second(status):
    assert [judge(status, strikes, 5) for strikes in (0, 1)] == [Answer.RETRY, Answer.DEAD]


@pytest.mark.parametrize("status", [0xFFFF, 0xFF00, 0xB001, 0x0210, 0x0001, 0xA800], ids=hex)
def test_unknown_is_tried_a_few_times(status):
    assert [judge(status, strikes, 3) for strikes in (0, 1, 2)] == [Answer.RETRY, Answer.RETRY, Answer.DEAD]


@given(st.integers(0, 0xFFFF))
def test_every_status_has_an_answer_and_words(status):
    assert judge(status, 0, 5) in Answer
    assert bool(in_words(status)) == (status != 0)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_up_to_the_maximum(failures, jitter):
    settings = Settings("GUARD")
    assert 0.5 <= settings.delay_s(failures, jitter) <= 900
    assert settings.delay_s(failures, 0.0) <= settings.delay_s(failures + 1, 0.0)


def test_pauses_begin_at_a_second_and_end_at_a_quarter_of_an_hour():
    settings = Settings("GUARD")
    assert [settings.delay_s(n, 0.0) for n in (1, 2, 3, 10, 11, 50)] == [1, 2, 4, 512, 900, 900]
    assert 0.5 <= settings.delay_s(1) <= 1
