"""Certified share of clean test files against the pixel budget, each budget with a guard of its own noise.

Run by scripts/bench certificates. The enrolment's own guard answers for its budget, others are trained for this.
Resumable: lessons and guards are kept under the work folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
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
from dicomguard.lab.datasets import Split
from dicomguard.lab.figures import share
from dicomguard.lab.recipes import Case, Recipe
from dicomguard.lab.stored import read
from dicomguard.scoring import noise
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.guard import Guard, GuardSettings, Outcome, Range, looks_for
from dicomguard.scoring.scorer import Scorer

BUDGETS = (0.004, 0.008, 0.012, 0.016)
ALPHA = 1e-6
_KEY = b"certificates"
Advance = Callable[[str, float], None]


class Workshop:
    """One bundle and a work folder: makes guards, and asks them about the test files."""

    def __init__(
        self, recipe: Recipe, scorer: Scorer, data: Path, work: Path, advance: Advance, shipped: Guard | None = None
    ) -> None:
        self.recipe = recipe
        self.shipped = shipped
        self.scorer = scorer
        self._data = data
        self._work = work / f"{scorer.name}-{scorer.fingerprint[:12]}"
        self._work.mkdir(parents=True, exist_ok=True)
        self._advance = advance
        self.ranges: tuple[Range, ...] = ()  # of the files that were read last

    def guard(self, settings: GuardSettings, distillation: Distillation) -> Guard:
        """The enrolment's guard where it is one for this budget and noise, else one trained at the first call."""
        if (
            self.shipped is not None
            and self.shipped.settings.model_copy(update={"ranges": settings.ranges}) == settings
        ):
            return self.shipped
        path = self._work / f"guard-{settings.sigma:g}-{distillation.epochs}.safetensors"
        if not path.exists():
            network = distil(self._lessons(distillation), self.scorer.head, settings.sigma, distillation, self._advance)
            partial = path.with_suffix(".partial")
            state = network.state_dict()
            save_file({f"guard.{k}": v.contiguous() for k, v in state.items() if v.is_floating_point()}, partial)
            partial.rename(path)
        return Guard.from_tensors(settings, load_file(path), self.scorer.head, self.scorer.device)

    def test_files(self, count: int | None) -> CleanSet:
        """The clean test files, read as the node reads them, and their order as in the recipe."""
        return self._read(self.recipe.cases(self._data, Split.TEST)[:count], "read test files")

    def _lessons(self, distillation: Distillation) -> Lessons:
        path = self._work / f"lessons-{distillation.variants}.safetensors"
        if not path.exists():
            clean = self._read(self.recipe.cases(self._data, Split.TRAIN), "read training files")
            taught = lessons(self.scorer, clean, distillation, self._advance)
            partial = path.with_suffix(".partial")
            save_file({"planes": taught.planes, "log_odds": taught.log_odds.contiguous()}, partial)
            partial.rename(path)
        kept = load_file(path)
        return Lessons(kept["planes"], kept["log_odds"])

    def _read(self, cases: Sequence[Case], stage: str) -> CleanSet:
        gathered = Gathered(self.scorer, None)
        for case in cases:
            image, digest = read(case.make(self.recipe.bits[-1]))
            gathered.add(Clean(image, case.group, case.key, digest, (case.truth,), Part.HELD_BACK))
            self._advance(stage, 1 / len(cases))
        self.ranges = gathered.ranges()
        return gathered.parts[Part.HELD_BACK]

    def certify(self, guard: Guard, clean: CleanSet) -> dict[str, Any]:
        """Ask the guard about every file; shares with exact intervals, draws and seconds for an image."""
        outcomes, draws, seconds = [], [], []
        for place, item in enumerate(clean.items):
            batch = clean.batch([place])
            assert batch.planes is not None
            (odds,) = self.scorer.answer(batch.pixels).log_odds
            seeds = noise.seeds(_KEY, item.study, 0, item.sha256, self.scorer.fingerprint)
            started = time.perf_counter()
            vote = guard.vote(batch.planes[0], tuple(int(c) for c in odds.argmax(-1)), seeds.guard)
            seconds.append(time.perf_counter() - started)
            outcomes.append(vote.outcome)
            draws.append(vote.draws)
            self._advance(f"certify eps {guard.settings.eps:g}", 1 / len(clean))
        return {
            "eps": guard.settings.eps,
            "sigma": guard.settings.sigma,
            "alpha": guard.settings.alpha,
            "looks": list(guard.settings.looks),
            "certified": share([o is Outcome.CERTIFIED for o in outcomes]),
            "agrees": share([o is not Outcome.DISAGREE for o in outcomes]),
            "draws_mean": float(np.mean(draws)),
            "seconds_mean": float(np.mean(seconds)),
            "seconds_p95": float(np.quantile(seconds, 0.95)),
            "threads": torch.get_num_threads(),
        }


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make and measure a guard for each budget, and write the results."""
    scorer = Scorer(Bundle(folder))
    shipped = Scorer.load(folder).guard
    distillation = Distillation(epochs=given.epochs)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, part: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0)
            progress.advance(tasks[stage], part)

        shop = Workshop(recipe, scorer, given.data, given.work, advance, shipped)
        rows = []
        clean: CleanSet | None = None
        for eps in given.eps or BUDGETS:
            sigma = given.sigma or sigma_for(eps, ALPHA)
            clean = clean or shop.test_files(given.cases)
            settings = GuardSettings(
                sigma=sigma, eps=eps, alpha=ALPHA, looks=looks_for(eps, sigma, ALPHA), ranges=shop.ranges
            )
            guard = shop.guard(settings, distillation)
            rows.append({**shop.certify(guard, clean), "shipped": guard is shipped})
            console.print_json(data=rows[-1])
    result = {
        "bundle": scorer.name,
        "fingerprint": scorer.fingerprint,
        "command": f"scripts/bench certificates {recipe.name}",
        "rows": rows,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"certificates-{recipe.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench certificates."""
    parser = command.parser("certificates", "Certified share of clean files against the budget.")
    parser.add_argument("--eps", type=float, action="append", help="a budget (default: .004, .008, .012, .016)")
    parser.add_argument("--sigma", type=float, help="the guard's noise (default: chosen for each budget)")
    parser.add_argument("--epochs", type=int, default=Distillation().epochs)
    parser.add_argument("--cases", type=int, default=None, help="use only so many test files")
    return command.execute(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
