"""What a shipped bundle does on its test split, measured on files: attack, forge to DICOM, read back, score.

Run by scripts/bench bundle. An attacked image counts only if its class still flips after rounding to stored bits and
the node's own reading; denominators are in the result. Resumable: each image's outcome is kept under the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset
from rich.console import Console
from rich.progress import Progress, TaskID

from dicomguard.attacks.forge import forge
from dicomguard.errors import BundleError, DicomguardError
from dicomguard.lab import card
from dicomguard.lab.adversaries import Adversaries, read
from dicomguard.lab.datasets import Split
from dicomguard.lab.figures import auroc, beta_binomial_band, share
from dicomguard.lab.measure import Journal, to_curve, to_row
from dicomguard.lab.recipes import RECIPES, Case, Recipe, batches
from dicomguard.scoring import noise
from dicomguard.scoring.calibration import Calibration
from dicomguard.scoring.consistency import NoiseCurve
from dicomguard.scoring.scorer import Scorer

_KEY = b"benchmark"  # stands in for a site key, so that a second run draws the same noise
_BATCH = 8


class Bench:
    """One bundle, one bit depth, one work folder."""

    def __init__(self, scorer: Scorer, bits: int, work: Path, tick: Callable[[str], None]) -> None:
        self.scorer = scorer
        self.bits = bits
        self.clean = Journal(work / f"{scorer.name}-{bits}-clean.jsonl", scorer.fingerprint)
        self.attacked = Journal(work / f"{scorer.name}-{bits}-bim.jsonl", scorer.fingerprint)
        self.tick = tick

    def score(self, datasets: Sequence[Dataset]) -> list[NoiseCurve]:
        """Encode, read back and score, as if the files had been received."""
        opened = [read(dataset) for dataset in datasets]
        seeds = [
            noise.seed(_KEY, str(dataset.SOPInstanceUID), 0, digest, self.scorer.fingerprint, "noise-check")
            for dataset, (_, digest) in zip(datasets, opened, strict=True)
        ]
        pictures = [image for image, _ in opened]
        return self.scorer.curves(self.scorer.prepare(pictures), seeds)

    def measure_clean(self, cases: Sequence[Case]) -> None:
        """Score every clean file that is not in the journal yet."""
        for group in batches([case for case in cases if case.key not in self.clean], _BATCH):
            scored = self.score([case.make(self.bits) for case in group])
            for case, curve in zip(group, scored, strict=True):
                self.clean.put(case.key, {"truth": case.truth, **to_row(curve)})
                self.tick("clean")

    def measure_attacks(self, cases: Sequence[Case], adversaries: Adversaries, wanted: int) -> None:
        """Forge attacked pictures and score the files that still flip, until there are `wanted`."""
        survivors = sum(self.attacked[case.key]["survives"] for case in cases if case.key in self.attacked)
        for group in batches([case for case in cases if case.key not in self.attacked], 2 * _BATCH):
            if survivors >= wanted:
                return
            adversaries.attack(group)
            flipped = [case for case in group if adversaries.outcomes[case.key]["flipped"]]
            survivors += self._forge(flipped, adversaries)
            for case in set(group) - set(flipped):
                self._put(case, adversaries, {"survives": False})

    def _forge(self, cases: Sequence[Case], adversaries: Adversaries) -> int:
        """Forge, read back, and score what the classifier now gets wrong; returns how many."""
        forged = []
        for case in cases:
            dataset = case.make(self.bits)
            image, _ = read(dataset)
            forged.append(forge(dataset, image, adversaries[case.key], description="Early-stopped BIM, for tests"))
        with torch.inference_mode():
            answers = self.scorer.logits(self.scorer.prepare([read(dataset)[0] for dataset in forged])) >= 0
        wrong = [index for index, case in enumerate(cases) if bool(answers[index]) != bool(case.truth)]
        scored = dict(zip(wrong, self.score([forged[index] for index in wrong]), strict=True))
        for index, case in enumerate(cases):
            self._put(
                case,
                adversaries,
                to_row(scored[index]) | {"survives": True} if index in scored else {"survives": False},
            )
        return len(wrong)

    def _put(self, case: Case, adversaries: Adversaries, row: dict[str, Any]) -> None:
        outcome = adversaries.outcomes[case.key]
        kept = {name: outcome.get(name) for name in ("tried", "flipped", "strength")}
        self.attacked.put(case.key, {"truth": case.truth, **kept, **row})
        if row["survives"]:
            self.tick("attacked files that flip")

    def report(self, cases: Sequence[Case], calibration: Calibration) -> dict[str, Any]:
        """Everything that was measured, with exact intervals."""
        clean = [self.clean[case.key] for case in cases if case.key in self.clean]
        tried = [row for case in cases if case.key in self.attacked and (row := self.attacked[case.key])["tried"]]
        hit = [row for row in tried if row["survives"]]
        return {
            "bits": self.bits,
            **_clean_report(clean, calibration),
            **_attack_report(clean, tried, hit, calibration),
        }


def _clean_report(rows: Sequence[dict[str, Any]], calibration: Calibration) -> dict[str, Any]:
    curves = [to_curve(row) for row in rows]
    flags = np.array([calibration.flags(curve) for curve in curves], bool)
    right = np.array([_is_right(row) for row in rows], bool)
    margins = np.array([curve.margin for curve in curves])
    unsure = margins <= np.quantile(margins, 0.2)
    low, high = beta_binomial_band(calibration.images[1], calibration.alpha, len(rows))
    return {
        "accuracy": share(right),
        "clean_flagged": share(flags),
        "clean_band": {"low": low, "high": high, "count": len(rows), "inside": bool(low <= flags.sum() <= high)},
        "clean_flagged_correct": share(flags[right]),
        "clean_flagged_misclassified": share(flags[~right]),
        "clean_flagged_least_confident_fifth": share(flags[unsure]),
        "clean_low_margin": share(margins < calibration.margin_floor),
    }


def _attack_report(
    clean: Sequence[dict[str, Any]],
    tried: Sequence[dict[str, Any]],
    hit: Sequence[dict[str, Any]],
    calibration: Calibration,
) -> dict[str, Any]:
    right = [to_curve(row) for row in clean if _is_right(row)]
    curves = [to_curve(row) for row in hit]
    flags = np.array([calibration.flags(curve) for curve in curves], bool)
    over = np.array([calibration.statistic_of(curve) > calibration.threshold for curve in curves], bool)
    strengths = sorted({row["strength"] for row in hit})
    levels = range(len(calibration.paper_theta))
    paper = [
        {
            "theta": calibration.paper_theta[k],
            "attacked": share([c.probability_drops[k] > calibration.paper_theta[k] for c in curves]),
            "clean_correct": share([c.probability_drops[k] > calibration.paper_theta[k] for c in right]),
        }
        for k in levels
    ]
    return {
        "attack": "early-stopped BIM",
        "attacked": len(tried),
        "flipped": share([row["flipped"] for row in tried]),
        "survived_rounding": share([row["survives"] for row in tried if row["flipped"]]),
        "attacked_flagged": share(flags),
        "attacked_over_threshold": share(over),
        "undetected_success": share([*(~flags).tolist(), *([False] * (len(tried) - len(hit)))]),
        "by_strength": {
            str(s): share([f for f, row in zip(flags, hit, strict=True) if row["strength"] == s]) for s in strengths
        },
        "by_truth": {str(t): share([f for f, r in zip(flags, hit, strict=True) if r["truth"] == t]) for t in (0, 1)},
        "attacked_margin_quartiles": _quartiles([curve.margin for curve in curves]),
        "clean_margin_quartiles": _quartiles([curve.margin for curve in right]),
        "auroc": _auroc(right, curves, calibration.statistic_of),
        "auroc_low_confidence_alone": _auroc(right, curves, lambda curve: -curve.margin),
        "paper": paper,
        "paper_level": calibration.paper_level,
        "paper_auroc": [_auroc(right, curves, _drop_at(k)) for k in levels],
    }


def _drop_at(level: int) -> Callable[[NoiseCurve], float]:
    return lambda curve: float(curve.probability_drops[level])


def _ticker(progress: Progress, tasks: dict[str, TaskID]) -> Callable[[str], None]:
    return lambda kind: progress.advance(tasks[kind])


def _auroc(
    clean: Sequence[NoiseCurve], attacked: Sequence[NoiseCurve], statistic: Callable[[NoiseCurve], float]
) -> float | None:
    return auroc([*map(statistic, clean)], [*map(statistic, attacked)]) if clean and attacked else None


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])] if values else []


def _is_right(row: dict[str, Any]) -> bool:
    return bool((row["logit"] >= 0) == bool(row["truth"]))


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure at every bit depth of the recipe and write results and model card.

    Raises:
        BundleError: the bundle does not load or has no calibration.

    """
    scorer = Scorer.load(folder)
    if scorer.calibration is None:
        raise BundleError(f"{folder} has no calibration.", advice="Train or calibrate it first.")
    cases = recipe.cases(given.data, Split.TEST)[: given.cases]
    first, step = _shard(given.shard)
    adversaries = Adversaries(scorer, recipe.bits[0], given.work)
    reports: list[dict[str, Any]] = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for bits in recipe.bits:
            tasks = {
                "clean": progress.add_task(f"clean files, {bits} bits", total=len(cases)),
                "attacked files that flip": progress.add_task(f"attacked, {bits} bits", total=given.flips),
            }
            bench = Bench(scorer, bits, given.work, _ticker(progress, tasks))
            if given.bits in (None, bits):
                bench.measure_clean(cases[: given.clean][first::step])
                bench.measure_attacks(cases[first::step], adversaries, -(-given.flips // step))
            if step == 1:
                reports.append(bench.report(cases, scorer.calibration))
                console.print_json(data=reports[-1])
    result = {"bundle": scorer.name, "fingerprint": scorer.fingerprint, "alpha": recipe.alpha, "reports": reports}
    if step > 1:
        return result
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"bundle-{recipe.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "docs" / "README.md").write_text(card.text(recipe, folder, scorer.calibration, reports))
    return result


def _shard(text: str) -> tuple[int, int]:
    """`1/3` -> (1, 3). Several processes of one thread each are faster than one of several threads."""
    if not text:
        return 0, 1
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and int(first) < int(step)):
        raise DicomguardError(
            f"--shard {text} is not I/N with I below N.", advice="For three processes: 0/3, 1/3, 2/3."
        )
    return int(first), int(step)


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench bundle."""
    parser = argparse.ArgumentParser(prog="scripts/bench bundle", description="Measure a shipped bundle on files.")
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--bundle", type=Path, help="bundle folder (default config/bundles/NAME)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DICOMGUARD_TEST_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where outcomes are kept")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--flips", type=int, default=320, help="attacked files that flip, for each bit depth")
    parser.add_argument("--cases", type=int, default=None, help="use only so many test images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clean", type=int, default=None, help="score only so many clean files (default all)")
    parser.add_argument("--shard", default="", help="I/N: every Nth image from I on, no report; a later run reports")
    parser.add_argument("--bits", type=int, help="measure at this depth only; the report takes the rest from --work")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    console = Console()
    try:
        run(RECIPES[given.recipe], given.bundle or Path("config/bundles") / given.recipe, given, console)
    except DicomguardError as error:
        console.print(f"[red]{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
