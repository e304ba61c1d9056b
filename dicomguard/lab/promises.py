"""What a bundle's enrolment really reaches on its test patients, measured on files. Run by scripts/bench files.

Resumable: every file's outcome is kept under the work folder. Several processes of one thread, `--shard 0/2` and
`--shard 1/2`, are faster than one of two; a last run without --shard reports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from dicomguard.attacks.suite import SUITE
from dicomguard.enrol.cleanset import is_reference
from dicomguard.errors import BundleError
from dicomguard.lab import card, command, rules
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.figures import share
from dicomguard.lab.recipes import Recipe
from dicomguard.lab.specimens import Looked, Specimens
from dicomguard.lab.whole import write_json
from dicomguard.scoring.enrolment import Enrolment
from dicomguard.scoring.guard import Outcome
from dicomguard.scoring.scorer import Scorer

ALPHAS = (0.05, 0.01)
_CLEAN = "clean files"


class Bench:
    """One bundle: its calibration and test splits, clean and attacked."""

    def __init__(self, recipe: Recipe, scorer: Scorer, given: argparse.Namespace, progress: Progress) -> None:
        if scorer.enrolment is None:
            raise BundleError(f"{scorer.name} is not enrolled.", advice="Run scripts/train with --enrol-only first.")
        self.recipe = recipe
        self.scorer = scorer
        self.enrolment: Enrolment = scorer.enrolment
        self.given = given
        self.progress = progress
        self.test = recipe.cases(given.data, Split.TEST)[: given.cases]
        # One picture a patient first: the spares are reached only where an attack seldom succeeds.
        self.targets = [*self.test, *(recipe.spares(given.data) if given.cases is None else [])]
        self.calibration = recipe.cases(given.data, Split.CALIBRATION)
        self._tasks: dict[str, TaskID] = {}

    def measure(self, bits: int, first: int, step: int) -> None:
        """Look at this shard's files: clean ones of both splits, then attack by attack."""
        specimens = Specimens(self.scorer, bits, self.given.work, self._ticker(bits))
        specimens.look_at_clean([*self.calibration, *self.test][first::step])
        for name in SUITE:
            specimens.attack(name, self.targets[first::step], -(-self.given.flips // step))

    def measure_in_turn(self, first: int, step: int) -> None:
        """Look at this shard's clean files of what `in_turn` reports, which may be of depths that nothing else is."""
        for bits, cases in self._turns():
            Specimens(self.scorer, bits, self.given.work, self._ticker(bits)).look_at_clean(cases[first::step])

    def _turns(self) -> list[tuple[int, Sequence[Case]]]:
        depths = self.recipe.bits
        return [(bits, self.test[place :: len(depths)]) for place, bits in enumerate(depths)] if len(depths) > 1 else []

    def _ticker(self, bits: int) -> Callable[[str], None]:
        totals = dict.fromkeys(SUITE, self.given.flips) | {_CLEAN: len(self.calibration) + len(self.test)}

        def tick(kind: str) -> None:
            name = f"{kind}, {bits} bits"
            if name not in self._tasks:
                self._tasks[name] = self.progress.add_task(name, total=totals[kind])
            self.progress.advance(self._tasks[name])

        return tick

    def report(self, bits: int) -> dict[str, Any]:
        """Every table of one bit depth."""
        specimens = Specimens(self.scorer, bits, self.given.work, self._ticker(bits))
        calibrated = specimens.found("clean", self.calibration)
        groups = {case.key: case.group for case in self.calibration}
        reference = [one for one in calibrated if is_reference(groups[one.key])]
        held_back = [one for one in calibrated if not is_reference(groups[one.key])]
        clean = specimens.found("clean", self.test)
        attacked = {name: specimens.found(name, self.targets) for name in SUITE}
        shipped = rules.fitted("as shipped", self.enrolment.calibration)
        paper = rules.paper(self.enrolment.paper.theta, self.enrolment.paper.level)
        # An enrolment on several depths in turn promises nothing for one of them alone; see `in_turn`.
        is_one = len(self.recipe.bits) == 1
        rows = [
            rules.row(shipped, self.enrolment.alpha, clean, attacked, is_exchangeable=is_one),
            rules.row(paper, 0, clean, attacked),
        ]
        losses = {}
        for alpha in ALPHAS:
            fitted = rules.rules(self.scorer.noise, reference, held_back, alpha)
            rows += [rules.row(rule, alpha, clean, attacked) for rule in fitted]
            by_name = {rule.name: rule for rule in fitted}
            short, full = by_name["noise check alone"], by_name["noise check alone, whole ladder"]
            losses[str(alpha)] = rules.paired_loss(full, short, attacked)
        return {
            "bits": bits,
            "accuracy": share([one.evidence.seen.answer == (one.truth,) for one in clean]),
            "tried": {name: specimens.tried(name, self.targets) for name in SUITE},
            "rows": rows,
            "cascade_loss": losses,
            "certificates": self._certificates(clean, attacked),
        }

    def in_turn(self) -> dict[str, Any] | None:
        """Clean test files of the recipe's depths in turn, as the enrolment's were; None where there is one depth."""
        if not self._turns():
            return None
        shipped = rules.fitted("as shipped", self.enrolment.calibration)
        clean: list[Looked] = []
        for bits, cases in self._turns():
            clean += Specimens(self.scorer, bits, self.given.work, self._ticker(bits)).found("clean", cases)
        return {"bits": list(self.recipe.bits), **rules.row(shipped, self.enrolment.alpha, clean, {})}

    def _certificates(self, clean: Sequence[Looked], attacked: dict[str, list[Looked]]) -> dict[str, Any] | None:
        guard = self.enrolment.guard
        if guard is None:
            return None
        return {
            "eps": guard.eps,
            "sigma": guard.sigma,
            "alpha": guard.alpha,
            "looks": list(guard.looks),
            "clean": _outcomes(clean),
            "attacks": {name: _outcomes(files) for name, files in attacked.items()},
        }


def _outcomes(files: Sequence[Looked]) -> dict[str, Any]:
    return {outcome.value: share([one.outcome == outcome.value for one in files]) for outcome in Outcome}


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> None:
    """Measure one bundle; without --shard write its results and its card.

    Raises:
        BundleError: the bundle does not load or is not enrolled.

    """
    scorer = Scorer.load(folder)
    first, step = command.shard(given.shard)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bench = Bench(recipe, scorer, given, progress)
        for bits in given.bits or recipe.bits:
            bench.measure(bits, first, step)
        bench.measure_in_turn(first, step)
    if step > 1:
        return
    result = {
        "bundle": scorer.name,
        "fingerprint": scorer.fingerprint,
        "enrolment": scorer.enrolment_sha256,
        "command": given.command,
        "reports": [bench.report(bits) for bits in given.bits or recipe.bits],
        "in_turn": bench.in_turn(),
    }
    write_json(given.results / f"score-{recipe.name}.json", result)
    assert scorer.enrolment is not None
    card.write(recipe, folder, scorer.enrolment, result)


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench files."""
    parser = command.shardable(command.parser("files", "Measure what an enrolment promises, on files."))
    parser.add_argument("--flips", type=int, default=300, help="files that flip, for each attack and bit depth")
    parser.add_argument("--cases", type=int, default=None, help="use only so many test images")
    parser.add_argument("--bits", type=int, action="append", help="bit depth (default: those of the recipe)")
    return command.execute(run, command.parse(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
