"""Certified share of clean test files against the pixel budget, each budget with a guard of its own noise.

Run by scripts/bench certificates. The enrolment's own guard answers for its budget, others are trained for this.
Resumable: lessons and guards are kept under the work folder, named by all that they were made of. Like a node, a guard
looks only at files whose range and contrast were there when it was made: those of the enrolment, or of its lessons.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from safetensors.torch import load_file, save_file

from dicomguard.enrol.cleanset import Clean, CleanSet, Gathered, Part
from dicomguard.enrol.distil import Distillation, Lessons, distil, lessons
from dicomguard.enrol.enrolling import sigma_for
from dicomguard.lab import command
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.figures import share
from dicomguard.lab.measure import name_of
from dicomguard.lab.recipes import Recipe
from dicomguard.lab.stored import read
from dicomguard.lab.whole import replacing, write_json
from dicomguard.scoring import head, noise
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.guard import Guard, GuardSettings, Outcome, Range, looks_for
from dicomguard.scoring.scorer import Scorer

BUDGETS = (0.004, 0.008, 0.012, 0.016)
ALPHA = 1e-6
_KEY = b"certificates"
Advance = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one model: training ones teach a guard, test ones are certified. `bits`: stored bits of both."""

    training: Sequence[Case]
    test: Sequence[Case]
    bits: int

    @classmethod
    def of(cls, recipe: Recipe, data: Path) -> Source:
        """Those of a shipped bundle, at the larger of its depths."""
        return cls(recipe.cases(data, Split.TRAIN), recipe.cases(data, Split.TEST), recipe.bits[-1])


class Workshop:
    """One bundle and a work folder: makes guards, and asks them about the test files.

    `taught`: another work folder whose lessons are used.
    """

    def __init__(
        self,
        source: Source,
        scorer: Scorer,
        work: Path,
        advance: Advance,
        shipped: Guard | None = None,
        *,
        taught: Path | None = None,
    ) -> None:
        self._from = source
        self.shipped = shipped
        self.scorer = scorer
        name = f"{scorer.name}-{scorer.fingerprint[:12]}"
        self._work, self._taught = work / name, (taught or work) / name
        self._work.mkdir(parents=True, exist_ok=True)
        self._advance = advance

    def guard(self, settings: GuardSettings, distillation: Distillation) -> Guard:
        """The enrolment's guard where it is one for this budget and noise, else one trained at the first call."""
        if (
            self.shipped is not None
            and self.shipped.settings.model_copy(update={"ranges": settings.ranges}) == settings
        ):
            return self.shipped
        path = self.guard_path(settings, distillation)
        if not path.exists():
            taught = self.lessons(distillation)
            network = distil(
                taught, self.scorer.head, settings.sigma, distillation, self._advance, width=settings.width
            )
            state = network.state_dict()
            with replacing(path) as partial:
                save_file({f"guard.{k}": v.contiguous() for k, v in state.items() if v.is_floating_point()}, partial)
        return Guard.from_tensors(settings, load_file(path), self.scorer.head, self.scorer.device)

    def ranges(self) -> tuple[Range, ...]:
        """What a guard looks at: as the enrolment has it, else as the training files, of which lessons are made."""
        if self.shipped is not None:
            return self.shipped.settings.ranges
        return self._read(self._from.training, "read training files").ranges()

    def test_files(self, count: int | None, ranges: Sequence[Range]) -> CleanSet:
        """The clean test files, read as the node reads them, in their order; blank beyond `ranges`."""
        gathered = self._read(self._from.test[:count], "read test files")
        gathered.hide(ranges)
        return gathered.parts[Part.DISTILLED]

    def guard_path(self, settings: GuardSettings, distillation: Distillation) -> Path:
        """Where the guard of this noise is kept."""
        made_of = (asdict(distillation), settings.width, self._source())
        return self._work / f"guard-{settings.sigma:g}-{name_of(*made_of)}.safetensors"

    def lessons_path(self, distillation: Distillation) -> Path:
        """Where lessons are kept, which do not depend on how a guard is trained on them."""
        moves = {name: getattr(distillation, name) for name in ("seed", "variants", "rotation", "zoom", "shift")}
        return self._taught / f"lessons-{name_of(moves, self._source())}.safetensors"

    def _source(self) -> tuple[object, ...]:
        """What lessons rest on beside their settings: the model, its path, and the training files."""
        keys = sorted(case.key for case in self._from.training)
        return self.scorer.fingerprint, self.scorer.path, self._from.bits, keys

    def lessons(self, distillation: Distillation) -> Lessons:
        """What the bundle answers to the training files, from disk where it was asked before."""
        path = self.lessons_path(distillation)
        if not path.exists():
            clean = self._read(self._from.training, "read training files").parts[Part.DISTILLED]
            taught = lessons(self.scorer, clean, distillation, self._advance)
            with replacing(path) as partial:
                save_file({"planes": taught.planes, "log_odds": taught.log_odds.contiguous()}, partial)
        kept = load_file(path)
        return Lessons(kept["planes"], kept["log_odds"])

    def _read(self, cases: Sequence[Case], stage: str) -> Gathered:
        gathered = Gathered(self.scorer, None)
        for case in cases:
            image, digest = read(case.make(self._from.bits))
            gathered.add(Clean(image, case.group, case.key, digest, (case.truth,), Part.DISTILLED))
            self._advance(stage, 1 / len(cases))
        return gathered

    def certify(self, guard: Guard, clean: CleanSet) -> dict[str, Any]:
        """Ask the guard about every file; shares with exact intervals, draws and seconds for an image."""
        outcomes, draws, seconds, answers = [], [], [], []
        for place, item in enumerate(clean.items):
            batch = clean.batch([place])
            assert batch.planes is not None
            (odds,) = self.scorer.answer(batch.pixels).log_odds
            answer = head.answer(odds)
            seeds = noise.seeds(_KEY, item.study, 0, item.sha256, self.scorer.fingerprint)
            started = time.perf_counter()
            vote = guard.vote(batch.planes[0], answer, seeds.guard)
            seconds.append(time.perf_counter() - started)
            outcomes.append(vote.outcome)
            answers.append(answer[0])
            draws.append(vote.draws)
            self._advance(f"certify eps {guard.settings.eps:g}", 1 / len(clean))
        certified, answered = np.array([o is Outcome.CERTIFIED for o in outcomes]), np.array(answers)
        truths = [None if item.truth is None else item.truth[0] for item in clean.items]
        right = np.array([answer == truth for answer, truth in zip(answers, truths, strict=True)])
        return {
            "eps": guard.settings.eps,
            "sigma": guard.settings.sigma,
            "alpha": guard.settings.alpha,
            "looks": list(guard.settings.looks),
            "certified": share(certified),
            # A certificate says that an answer was not changed, not that it is right.
            "certified_right": share(certified & right),
            # A guard that always says the same certifies most files of a set that is mostly one answer.
            "by_answer": {label: share(certified[answered == place]) for place, label in enumerate(self.scorer.labels)},
            "agrees": share([o in (Outcome.CERTIFIED, Outcome.UNCERTIFIED) for o in outcomes]),
            "unenrolled": share([o is Outcome.UNENROLLED for o in outcomes]),
            "draws_mean": float(np.mean(draws)),
            "seconds_mean": float(np.mean(seconds)),
            "seconds_p95": float(np.quantile(seconds, 0.95)),
            "threads": torch.get_num_threads(),
        }


def settings_for(eps: float, ranges: tuple[Range, ...], *, sigma: float | None = None) -> GuardSettings:
    """A guard for a budget, with noise chosen for it unless given."""
    noise_of = sigma or sigma_for(eps, ALPHA)
    return GuardSettings(sigma=noise_of, eps=eps, alpha=ALPHA, looks=looks_for(eps, noise_of, ALPHA), ranges=ranges)


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make and measure a guard for each budget, and write the results."""
    scorer = Scorer(Bundle(folder))
    enrolled = Scorer.load(folder)
    shipped = enrolled.guard
    distillation = Distillation(epochs=given.epochs)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, part: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0)
            progress.advance(tasks[stage], part)

        shop = Workshop(Source.of(recipe, given.data), scorer, given.work, advance, shipped)
        rows = []
        ranges = shop.ranges()
        clean = shop.test_files(given.cases, ranges)
        for eps in given.eps or BUDGETS:
            guard = shop.guard(settings_for(eps, ranges, sigma=given.sigma), distillation)
            rows.append({**shop.certify(guard, clean), "shipped": guard is shipped})
            console.print_json(data=rows[-1])
    result = {
        "bundle": scorer.name,
        "fingerprint": scorer.fingerprint,
        "enrolment": enrolled.enrolment_sha256,
        "command": given.command,
        "rows": rows,
    }
    write_json(given.results / f"certificates-{recipe.name}.json", result)
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench certificates."""
    parser = command.parser("certificates", "Certified share of clean files against the budget.")
    parser.add_argument("--eps", type=float, action="append", help="a budget (default: .004, .008, .012, .016)")
    parser.add_argument("--sigma", type=float, help="the guard's noise (default: chosen for each budget)")
    parser.add_argument("--epochs", type=int, default=Distillation().epochs)
    parser.add_argument("--cases", type=int, default=None, help="use only so many test files")
    return command.execute(run, command.parse(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
