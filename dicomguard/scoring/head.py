"""What a network's outputs mean: one question with several classes (softmax), or several yes-or-no ones (sigmoid).

Everything downstream sees log-odds of shape (..., questions, classes): a softmax head asks one question, a multi-label
head asks one with two classes for each finding. A single logit z is the softmax of (0, z), so that the binary heads of
the noise-consistency paper are the smallest case and no special one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Answer = tuple[int, ...]  # the class of each question


class HeadKind(StrEnum):
    """`softmax`: the labels exclude each other. `multilabel`: each label is present or absent on its own."""

    SOFTMAX = "softmax"
    MULTILABEL = "multilabel"


@dataclass(frozen=True, slots=True)
class Head:
    """How outputs are read, and what the answers are called."""

    kind: HeadKind
    labels: tuple[str, ...]

    @property
    def questions(self) -> int:
        """How many answers an image gets."""
        return 1 if self.kind is HeadKind.SOFTMAX else len(self.labels)

    @property
    def classes(self) -> int:
        """How many classes each question has."""
        return len(self.labels) if self.kind is HeadKind.SOFTMAX else 2

    def log_odds(self, outputs: Tensor) -> Tensor:
        """Network outputs (N, outputs) to (N, questions, classes), up to a constant per question; gradients flow.

        Raises ValueError where the number of outputs does not fit the labels.
        """
        wanted = {len(self.labels), 1} if len(self.labels) == 2 else {len(self.labels)}
        if self.kind is HeadKind.MULTILABEL:
            wanted = {len(self.labels)}
        if outputs.ndim != 2 or outputs.shape[1] not in wanted:
            raise ValueError(
                f"the network gives outputs of shape {tuple(outputs.shape)} for {len(self.labels)} {self.kind} labels"
            )
        if self.kind is HeadKind.MULTILABEL or outputs.shape[1] == 1:
            return torch.stack([torch.zeros_like(outputs), outputs], -1)
        return outputs.unsqueeze(1)

    def name(self, answer: Answer) -> str:
        """`pneumonia`; for several labels `effusion + nodule`, or `none of the labels`."""
        if self.kind is HeadKind.SOFTMAX:
            return self.labels[answer[0]]
        present = [label for label, chosen in zip(self.labels, answer, strict=True) if chosen]
        return " + ".join(present) or "none of the labels"

    def answer_of(self, truth: Sequence[str]) -> Answer:
        """The answer that the names of the present labels stand for. Raises ValueError for a name that is no label."""
        unknown = sorted(set(truth) - set(self.labels))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the labels")
        if self.kind is HeadKind.MULTILABEL:
            return tuple(int(label in truth) for label in self.labels)
        if len(truth) != 1:
            raise ValueError(f"{len(truth)} labels where exactly one applies")
        return (self.labels.index(truth[0]),)


def answer(log_odds: NDArray[np.float64]) -> Answer:
    """Shape (questions, classes) of one image -> the class of each question: the largest; the first of equals."""
    return tuple(int(c) for c in log_odds.argmax(-1))


def answers(log_odds: Tensor) -> Tensor:
    """Shape (N, questions, classes) -> (N, questions), int64: the largest; the first of equals."""
    return log_odds.argmax(-1)


def margins(log_odds: Tensor, kept: Tensor) -> Tensor:
    """How far (N, questions, classes) is from leaving the answers `kept` (N, questions): shape (N,), negative = left.

    Per question the log-odds of the kept class against the strongest other; of several questions the smallest, since
    an attack has succeeded when any answer has changed. Differentiable.
    """
    own = log_odds.gather(-1, kept.unsqueeze(-1)).squeeze(-1)
    others = log_odds.scatter(-1, kept.unsqueeze(-1), -torch.inf).amax(-1)
    return (own - others).amin(-1)


def pairwise(log_odds: NDArray[np.float64], answer: Answer) -> NDArray[np.float64]:
    """(..., questions, classes): log-odds of the answer's class against each other one; infinite against itself."""
    chosen = np.asarray(answer)[:, None]
    own = np.take_along_axis(log_odds, np.broadcast_to(chosen, (*log_odds.shape[:-1], 1)), -1)
    found: NDArray[np.float64] = own - log_odds
    np.put_along_axis(found, np.broadcast_to(chosen, (*log_odds.shape[:-1], 1)), np.inf, -1)
    return found


def smallest_margins(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., questions, classes) -> (...): how far the answer is from being another one, never negative.

    The least of all questions' log-odds of the largest class against the second; NaN where one of them is.
    """
    ordered = np.sort(log_odds, -1)
    found: NDArray[np.float64] = (ordered[..., -1] - ordered[..., -2]).min(-1)
    return found


def probabilities(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis, the classes."""
    shares = np.exp(log_odds - log_odds.max(-1, keepdims=True))
    found: NDArray[np.float64] = shares / shares.sum(-1, keepdims=True)
    return found


def probability(log_odds: NDArray[np.float64], answer: Answer) -> NDArray[np.float64]:
    """(..., questions, classes) -> (..., questions): softmax probability of the answer's class."""
    chosen = np.broadcast_to(np.asarray(answer)[:, None], (*log_odds.shape[:-1], 1))
    found: NDArray[np.float64] = np.take_along_axis(probabilities(log_odds), chosen, -1)[..., 0]
    return found
