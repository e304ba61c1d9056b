"""What the node does with a file, without the node: for tests that must be judged by its own procedure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset
from torch import Tensor

from dicomguard.attacks.joint import Pair
from dicomguard.decision import Policy, judge_score
from dicomguard.errors import BundleError
from dicomguard.lab.cases import Case
from dicomguard.lab.soundness import Base, Judged, Stored
from dicomguard.lab.stored import read
from dicomguard.lab.survey import Quick
from dicomguard.scoring import head, noise
from dicomguard.scoring.guard import Outcome
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Batch, Scorer

_KEY = b"soundness"  # stands in for a site key that the attacker does not have


class NodeJudge:
    """Read the bytes, score, judge under the default policy."""

    def __init__(self, scorer: Scorer, cases: Sequence[Case], bits: int) -> None:
        if scorer.guard is None or scorer.thresholds is None:
            raise BundleError(f"{scorer.name} has no guard.", advice="Enrol it with more clean images.")
        self.scorer = scorer
        self._cases = {case.key: case for case in cases}
        self._bits = bits

    def base(self, case: Case) -> Base:
        """The stored values of a clean file."""
        return Base(case.key, case.make(self._bits).pixel_array.astype(np.int64)[None])

    def quick(self, case: Case) -> Quick:
        """The model's answer to a clean file and the guard's own vote on it, without the noise check."""
        batch, seeds = self._read(case.make(self._bits))
        guard = self.scorer.guard
        assert guard is not None
        assert batch.planes is not None
        answer = head.answer(self.scorer.answer(batch.pixels).log_odds[0])
        outcome = guard.vote(batch.planes[0], answer, seeds.guard).outcome
        kind = {Outcome.DISAGREE: "disagreeing", Outcome.UNENROLLED: "unenrolled"}.get(outcome, "agreeing")
        return Quick(kind, right=answer == (case.truth,))

    def __call__(self, bases: Sequence[Base], stored: Sequence[Stored]) -> list[Judged]:
        """Judge files that hold these stored values."""
        found: list[Judged] = []
        for base, values in zip(bases, stored, strict=True):
            dataset = self._cases[base.key].make(self._bits)
            _put(dataset, values[0])
            batch, seeds = self._read(dataset)
            (score,) = self.scorer.score(batch, [seeds])
            assert score.guard is not None
            assert self.scorer.thresholds is not None
            judgement = judge_score(score, self.scorer.thresholds, Policy())
            answer = self.scorer.head.answer_of([score.predicted])
            found.append(Judged(answer, score.guard.outcome, judgement.action == "forward"))
        return found

    def _read(self, dataset: Dataset) -> tuple[Batch, Seeds]:
        image, digest = read(dataset)
        seeds = noise.seeds(_KEY, str(dataset.SOPInstanceUID), 0, digest, self.scorer.fingerprint)
        return self.scorer.prepare([image]), seeds

    def pair(self) -> Pair:
        """Model and guard as the attacker sees them: everything but the noise that will be drawn."""
        guard = self.scorer.guard
        assert guard is not None

        def model(pixels: Tensor) -> Tensor:
            return self.scorer.log_odds(torch.stack([self.scorer.preprocess(one) for one in pixels]))

        return Pair(model, guard.logits, guard.settings.sigma)


def _put(dataset: Dataset, stored: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    data = stored.astype(np.uint8 if dataset.BitsAllocated == 8 else "<u2").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
