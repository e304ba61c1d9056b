from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dicomguard.scoring import head
from dicomguard.scoring.head import Head, HeadKind

THREE = Head(HeadKind.SOFTMAX, ("a", "b", "c"))
TWO = Head(HeadKind.SOFTMAX, ("normal", "opacity"))
FINDINGS = Head(HeadKind.MULTILABEL, ("effusion", "nodule", "mass"))

ODDS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5),
    elements=st.integers(-9, 9).map(float),
)


def test_questions_and_classes() -> None:
    assert (THREE.questions, THREE.classes) == (1, 3)
    assert (TWO.questions, TWO.classes) == (1, 2)
    assert (FINDINGS.questions, FINDINGS.classes) == (3, 2)


def test_a_single_logit_is_the_softmax_of_zero_and_itself() -> None:
    logit = torch.tensor([[-1.5], [0.0], [2.0]], requires_grad=True)
    odds = TWO.log_odds(logit)
    assert odds.shape == (3, 1, 2)
    assert torch.allclose(odds.softmax(-1)[:, 0, 1], logit[:, 0].sigmoid())
    odds.sum().backward()
    assert logit.grad is not None
    assert logit.grad.flatten().tolist() == [1, 1, 1]


def test_two_logits_and_three_are_taken_as_they_are() -> None:
    for reading, width in ((TWO, 2), (THREE, 3)):
        outputs = torch.randn(4, width)
        assert torch.equal(reading.log_odds(outputs)[:, 0], outputs)


def test_several_labels_are_as_many_questions() -> None:
    outputs = torch.randn(5, 3)
    odds = FINDINGS.log_odds(outputs)
    assert odds.shape == (5, 3, 2)
    assert torch.allclose(odds.softmax(-1)[..., 1], outputs.sigmoid())
    assert torch.equal(head.answers(odds), (outputs > 0).long())


@pytest.mark.parametrize(
    ("reading", "shape"),
    [
        (TWO, (2, 3)),
        (THREE, (2, 1)),
        (THREE, (2, 2)),
        (FINDINGS, (2, 1)),
        (FINDINGS, (2, 6)),
        (TWO, (2,)),
        (TWO, (2, 2, 1)),
    ],
)
def test_outputs_that_do_not_fit_the_labels_are_an_error(reading: Head, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="outputs of shape"):
        reading.log_odds(torch.zeros(shape))


def brute_margin(odds: np.ndarray, kept: list[int]) -> float:
    return min(
        row[own] - max(value for place, value in enumerate(row) if place != own)
        for row, own in zip(odds.tolist(), kept, strict=True)
    )


@given(ODDS, st.randoms())
@settings(deadline=None)
def test_margins_are_those_of_brute_force(odds: np.ndarray, random: object) -> None:
    images, questions, classes = odds.shape
    kept = np.random.default_rng(images).integers(classes, size=(images, questions))
    found = head.margins(torch.from_numpy(odds), torch.from_numpy(kept)).tolist()
    assert found == [brute_margin(one, own) for one, own in zip(odds, kept.tolist(), strict=True)]
    own = head.answers(torch.from_numpy(odds))
    smallest = head.margins(torch.from_numpy(odds), own)
    assert (smallest >= 0).all()
    assert np.array_equal(head.smallest_margins(odds), smallest.numpy())


@given(ODDS)
@settings(deadline=None)
def test_pairwise_log_odds_and_probabilities_are_those_of_brute_force(odds: np.ndarray) -> None:
    answer = tuple(int(c) for c in odds[0].argmax(-1))
    pairs, shares = head.pairwise(odds, answer), head.probability(odds, answer)
    for image, question in np.ndindex(odds.shape[:2]):
        row, own = odds[image, question], answer[question]
        expected = [np.inf if y == own else row[own] - row[y] for y in range(len(row))]
        assert pairs[image, question].tolist() == expected
        assert shares[image, question] == pytest.approx(np.exp(row[own]) / np.exp(row).sum())
    kept = torch.tensor(answer).expand(len(odds), -1)
    assert np.array_equal(pairs.min((-1, -2)), head.margins(torch.from_numpy(odds), kept).numpy())


def test_probabilities_of_huge_log_odds_do_not_overflow() -> None:
    assert head.probability(np.array([[800.0, -800.0]]), (0,)).tolist() == [1.0]
    assert head.probability(np.array([[800.0, -800.0]]), (1,)).tolist() == [0.0]


def test_margins_have_a_gradient_towards_the_strongest_other_class() -> None:
    odds = torch.tensor([[[3.0, 1.0, 2.0]]], requires_grad=True)
    head.margins(odds, torch.tensor([[0]])).sum().backward()
    assert odds.grad is not None
    assert odds.grad.flatten().tolist() == [1.0, 0.0, -1.0]


def test_of_equal_classes_the_first_is_the_answer() -> None:
    assert head.answers(torch.zeros(2, 1, 3)).tolist() == [[0], [0]]


def test_answers_have_names() -> None:
    assert [THREE.name((c,)) for c in range(3)] == ["a", "b", "c"]
    assert FINDINGS.name((1, 0, 1)) == "effusion + mass"
    assert FINDINGS.name((0, 0, 0)) == "none of the labels"


def test_names_have_answers() -> None:
    assert THREE.answer_of(["b"]) == (1,)
    assert FINDINGS.answer_of(["mass", "effusion"]) == (1, 0, 1)
    assert FINDINGS.answer_of([]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("reading", "truth", "words"),
    [
        (THREE, ["d"], "'d' is none of the labels"),
        (FINDINGS, ["mass", "tumour"], "'tumour' is none"),
        (THREE, [], "0 labels where exactly one"),
        (THREE, ["a", "b"], "2 labels where exactly one"),
    ],
)
def test_names_that_are_no_answer(reading: Head, truth: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reading.answer_of(truth)
