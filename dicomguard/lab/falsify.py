"""Try to falsify the certificates of an enrolled bundle, by adaptive attacks that the node itself judges.

Run by scripts/bench soundness. In three stages, each resumable and shared by several processes where they are given
--shard: a quick vote on every test file (--survey-only) finds where the guard agrees; long votes confirm some of
either kind (--confirm-only); then the attempts, see `soundness`. Whether the model is right about a file plays no part.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from dicomguard.attacks.joint import Budget
from dicomguard.errors import DicomguardError
from dicomguard.lab import command
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.figures import share, worded
from dicomguard.lab.majority import Terms
from dicomguard.lab.node_judge import NodeJudge
from dicomguard.lab.recipes import Recipe
from dicomguard.lab.soundness import Base, Kind, Soundness
from dicomguard.lab.survey import FILTER, KINDS, Survey
from dicomguard.lab.whole import write_json
from dicomguard.scoring.scorer import Scorer

_LEAST_ATTEMPTS = 3  # on each base where model and guard disagreed


def confirm(
    test: Soundness, kind: Kind, candidates: Iterator[Case], base: Callable[[Case], Base], wanted: int
) -> list[Base]:
    """Long votes on candidates until `wanted` of them are confirmed to be of this kind, or none is left.

    All that were voted on, those that turned out to be of another kind too.
    """
    found: list[Base] = []
    while more := [base(case) for case in islice(candidates, wanted - len(test.of_kind(found, kind)))]:
        test.confirm(more)
        found += more
    return found


def attempts_on_disagreeing(attempts: int, bases: int) -> int:
    """A tenth of `attempts`, rounded up to whole rounds over the bases, and not less than three on each."""
    return bases * max(_LEAST_ATTEMPTS, math.ceil(attempts / (10 * bases))) if bases else 0


@dataclass(frozen=True, slots=True)
class _Stages:
    """What the stages work on: test files, the node, and where outcomes are kept."""

    cases: Sequence[Case]
    spares: Sequence[Case]
    judge: NodeJudge
    survey: Survey
    test: Soundness
    wanted: dict[Kind, int]

    def candidates(self, kind: Kind) -> Iterator[Case]:
        """Files of a kind by their quick votes; spares only where there is need of more that disagree."""
        return self.survey.of_kind(kind, self.cases, self.spares if kind == "disagreeing" else ())

    def survey_all(self, shard: tuple[int, int]) -> None:
        """Every shard its own files; without one also as many spares as it takes."""
        for case in self.cases[shard[0] :: shard[1]]:
            self.survey(case)
        if shard[1] == 1:
            self.chosen()

    def chosen(self) -> list[Case]:
        """As many files of each kind as are wanted, by their quick votes."""
        return [case for kind, number in self.wanted.items() for case in islice(self.candidates(kind), number)]

    def confirm(self, shard: tuple[int, int]) -> list[Base]:
        """Long votes on every shard's own part of what is chosen; without one, until enough are confirmed."""
        if shard[1] > 1:
            bases = [self.judge.base(case) for case in self.chosen()[shard[0] :: shard[1]]]
            self.test.confirm(bases)
            return bases
        return self.confirmed()

    def confirmed(self) -> list[Base]:
        """The bases of either kind; those that are in the journal cost nothing."""
        return [
            base
            for kind, number in self.wanted.items()
            for base in confirm(self.test, kind, self.candidates(kind), self.judge.base, number)
        ]

    def attack(self, bases: Sequence[Base], attempts: int, shard: tuple[int, int]) -> None:
        """`attempts` on agreeing bases, and a tenth as many or more on the others, which come first: they are few."""
        disagreeing = self.test.of_kind(bases, "disagreeing")
        self.test.attack(disagreeing, attempts_on_disagreeing(attempts, len(disagreeing)), shard=shard)
        self.test.attack(self.test.of_kind(bases, "agreeing"), attempts, shard=shard)

    def selection(self, bases: Sequence[Base]) -> dict[str, Any]:
        """What the bases were chosen from, how, and what became of the quick votes by the long ones."""
        files = {case.key: case for case in (*self.cases, *self.spares)}
        quick = {base.key: self.survey(files[base.key]) for base in bases}
        long = self.test.confirm(bases)
        became = Counter(f"{quick[key].kind}, then {long[key]}" for key in quick)
        return {
            "filter": FILTER,
            "wanted": self.wanted,
            "test_files": self.survey.counted(self.cases),
            "spares": self.survey.counted(self.spares),
            "quick_then_long": dict(became),
            "right": {kind: share([quick[key].right for key in quick if long[key] == kind]) for kind in KINDS},
        }


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> None:
    """Survey, confirm, attack, and write the report unless this is a shard or one stage."""
    shard = command.shard(given.shard)
    scorer = Scorer.load(folder)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {
            "files": progress.add_task("quick votes on test files", total=None),
            "bases": progress.add_task("long votes on clean files", total=given.bases + given.disagreeing),
            "attempts": progress.add_task("adaptive attempts", total=given.attempts // shard[1]),
        }
        stages = _stages(recipe, scorer, given, lambda kind: progress.advance(tasks[kind]))
        stages.survey_all(shard if given.survey_only else (0, 1))
        if given.survey_only:
            return
        bases = stages.confirm(shard) if given.confirm_only else stages.confirmed()
        if given.confirm_only:
            return
        stages.attack(bases, given.attempts, shard)
    if shard[1] > 1:
        return
    report = {
        "bundle": scorer.name,
        "fingerprint": scorer.fingerprint,
        "enrolment": scorer.enrolment_sha256,
        "command": given.command,
        "selection": stages.selection(bases),
        **stages.test.report(),
    }
    # A control is no result, and must not be found under a result's name.
    kind = "" if given.budget is None else f"-control-{given.budget:g}"
    write_json(given.results / f"soundness-{recipe.name}{kind}.json", report)
    _show(report, console)


def _stages(recipe: Recipe, scorer: Scorer, given: argparse.Namespace, tick: Callable[[str], None]) -> _Stages:
    bits = recipe.bits[-1]
    cases, spares = recipe.cases(given.data, Split.TEST), recipe.spares(given.data)
    judge = NodeJudge(scorer, [*cases, *spares], bits)
    guard = scorer.guard
    assert guard is not None
    settings = guard.settings
    if given.budget == settings.eps:
        raise DicomguardError(
            f"{given.budget:g} is the certificate's own budget, so this would be no control.",
            advice="Leave out --budget to test the certificates, or name another one.",
        )
    identity, work = f"{scorer.fingerprint}/{scorer.enrolment_sha256}", given.work / scorer.name
    return _Stages(
        cases,
        spares,
        judge,
        Survey(judge.quick, work / "soundness-survey.jsonl", f"{identity}/{bits}", lambda: tick("files")),
        Soundness(
            judge.pair(),
            judge,
            Terms(eps=settings.eps, alpha=settings.alpha, draws=given.draws),
            Budget(eps=settings.eps if given.budget is None else given.budget, levels=2**bits - 1),
            work=work,
            fingerprint=identity,
            tick=tick,
        ),
        {"agreeing": given.bases, "disagreeing": given.disagreeing},
    )


def _show(report: dict[str, Any], console: Console) -> None:
    console.print_json(data={name: report[name] for name in ("bases", "attempts_by_kind", "a", "sound")})
    for name in ("b", "c", "undetected"):
        for unit, found in report[name].items():
            console.print(f"{name} {unit.replace('_', ' ')}: {worded(found)}")


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench soundness."""
    parser = command.shardable(command.parser("soundness", "Try to falsify certificates."))
    parser.add_argument("--attempts", type=int, default=2000, help="on agreeing bases; a tenth more on the others")
    parser.add_argument("--bases", type=int, default=40, help="clean files on which model and guard agree")
    parser.add_argument("--disagreeing", type=int, default=30, help="clean files on which they do not, at most")
    parser.add_argument("--draws", type=int, default=100_000, help="noise draws of each long vote")
    parser.add_argument("--budget", type=float, help="a control: attack with another budget than the certificate's")
    parser.add_argument("--survey-only", action="store_true", help="make the quick votes only")
    parser.add_argument("--confirm-only", action="store_true", help="make the quick and the long votes only")
    return command.execute(run, command.parse(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
