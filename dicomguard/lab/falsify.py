"""Try to falsify the certificates of an enrolled bundle, by adaptive attacks that the node itself judges.

Run by scripts/bench soundness. The bases are correctly answered test files. Resumable; see `soundness`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from dicomguard.attacks.joint import Budget, Pair
from dicomguard.decision import Policy, judge_score
from dicomguard.errors import BundleError
from dicomguard.lab import command
from dicomguard.lab.datasets import Split
from dicomguard.lab.majority import Terms
from dicomguard.lab.recipes import Case, Recipe
from dicomguard.lab.soundness import Base, Judged, Soundness, Stored
from dicomguard.lab.stored import read
from dicomguard.scoring import noise
from dicomguard.scoring.scorer import Scorer

_KEY = b"soundness"  # stands in for a site key that the attacker does not have


class NodeJudge:
    """What the node does with a file, without the node: read the bytes, score, judge under the default policy."""

    def __init__(self, scorer: Scorer, cases: Sequence[Case], bits: int) -> None:
        if scorer.guard is None or scorer.thresholds is None:
            raise BundleError(f"{scorer.name} has no guard.", advice="Enrol it with more clean images.")
        self.scorer = scorer
        self._cases = {case.key: case for case in cases}
        self._bits = bits

    def base(self, case: Case) -> Base:
        """The stored values of a clean file."""
        return Base(case.key, case.make(self._bits).pixel_array.astype(np.int64)[None])

    def __call__(self, bases: Sequence[Base], stored: Sequence[Stored]) -> list[Judged]:
        """Judge files that hold these stored values."""
        found: list[Judged] = []
        for base, values in zip(bases, stored, strict=True):
            dataset = self._cases[base.key].make(self._bits)
            _put(dataset, values[0])
            image, digest = read(dataset)
            seeds = noise.seeds(_KEY, str(dataset.SOPInstanceUID), 0, digest, self.scorer.fingerprint)
            (score,) = self.scorer.score(self.scorer.prepare([image]), [seeds])
            assert score.guard is not None
            assert self.scorer.thresholds is not None
            judgement = judge_score(score, self.scorer.thresholds, Policy())
            answer = self.scorer.head.answer_of([score.predicted])
            found.append(Judged(answer, score.guard.outcome, judgement.action == "forward"))
        return found

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


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> None:
    """Attack, and write the report unless this is a shard."""
    scorer = Scorer.load(folder)
    bits = recipe.bits[-1]
    cases = recipe.cases(given.data, Split.TEST)
    judge = NodeJudge(scorer, cases, bits)
    guard = scorer.guard
    assert guard is not None
    settings = guard.settings
    first, step = command.shard(given.shard)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {
            "bases": progress.add_task("long votes on clean files", total=given.bases),
            "attempts": progress.add_task("adaptive attempts", total=given.attempts // step),
        }
        test = Soundness(
            judge.pair(),
            judge,
            Terms(eps=settings.eps, alpha=settings.alpha, draws=given.draws),
            Budget(eps=given.budget or settings.eps, levels=2**bits - 1),
            work=given.work / f"{scorer.name}-{given.budget or settings.eps:g}",
            fingerprint=f"{scorer.fingerprint}/{scorer.enrolment_sha256}",
            tick=lambda kind: progress.advance(tasks[kind]),
        )
        answers = (scorer.answer(scorer.prepare([case.image(bits)]).pixels).log_odds.argmax(-1)[0] for case in cases)
        right = (case for case, answer in zip(cases, answers, strict=True) if tuple(answer) == (case.truth,))
        bases = [judge.base(case) for case, _ in zip(right, range(given.bases), strict=False)]
        test.confirm(bases[first::step] if given.confirm_only else bases)
        if given.confirm_only:
            return
        # Bases where model and guard disagreed come first: their flips are counted apart, and there are few of them.
        disagreeing, agreeing = test.of_kind(bases, "disagreeing"), test.of_kind(bases, "agreeing")
        test.attack(disagreeing, min(given.attempts // 10, 20 * len(disagreeing)), shard=(first, step))
        test.attack(agreeing, given.attempts, shard=(first, step))
        if step > 1:
            return
        report = {"bundle": scorer.name, "enrolment": scorer.enrolment_sha256, **test.report()}
    report["command"] = f"scripts/bench soundness {recipe.name} --attempts {given.attempts}"
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"soundness-{recipe.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print_json(data={name: report[name] for name in ("bases", "attempts", "flipped", "a", "b", "c", "sound")})


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench soundness."""
    parser = command.shardable(command.parser("soundness", "Try to falsify certificates."))
    parser.add_argument("--attempts", type=int, default=2000)
    parser.add_argument("--bases", type=int, default=40)
    parser.add_argument("--draws", type=int, default=100_000, help="noise draws of each long vote")
    parser.add_argument("--budget", type=float, help="attack with another budget than the certificate's: a control")
    parser.add_argument("--confirm-only", action="store_true", help="make the long votes only")
    return command.execute(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
