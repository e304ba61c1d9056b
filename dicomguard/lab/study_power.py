"""How many attacked images of a study are found, and how often clean studies are held: `docs/study-level.md`.

    python -m dicomguard.lab.study_power score    scores studies, round by round; may be stopped and started again
    python -m dicomguard.lab.study_power choose   compares the candidates on the studies set aside for that
    python -m dicomguard.lab.study_power report   measures the chosen one on the others, writes results and figures

Phantom studies of 10, 100 and 500 slices are every 50th, 5th and single slice of a body. An attacked study is a clean
one in which k slices, drawn at random, were attacked for real: their own surprises after the attack take the place of
those before. Thresholds never see the body that they judge.

A surprise hardly rises above the log of the number of reference images, of which these studies have more than most
enrolments: the report also tells what is found with as few as those have (`THINNED`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from dicomguard.errors import DicomguardError
from dicomguard.lab import command, study_scores
from dicomguard.lab.figures import beta_binomial_band, share
from dicomguard.lab.study_candidates import CANDIDATES, MONOTONE, Law
from dicomguard.lab.study_figures import draw_false_holds, draw_power
from dicomguard.lab.study_scores import ATTACKS, SLICES, Studied
from dicomguard.lab.whole import write_json
from dicomguard.scoring.calibration import STATISTIC, Calibration
from dicomguard.scoring.study_test import conformal_threshold, score, studies_needed

Values = NDArray[np.float64]
Statistic = Callable[[Values], float]

SIZES = (10, 100, 500)
AIMS = {10: 2, 100: 5, 500: 12}
POWER = 0.9
COUNTS = {10: range(1, 11), 100: range(1, 19), 500: range(1, 19)}
THINNED = (28, 200)  # reference images of small enrolments
_DRAWS = 20  # random choices of the attacked slices, for each study and number of them
_SPLITS = 400
LOUD = 40.0
# Drawn beside the chosen one.
_SHOWN = ("maximum", "3rd largest", "Simes", "higher criticism", "tail sum over 5")
_LEAST = 3  # attacked studies, or there is no rate
# Bodies scored in one round: (part, first number, every n-th slice, how many). Sizes below come from larger ones too.
_ROUND = (
    ("figures", 0, 1, 4),
    ("selection", 0, 1, 2),
    ("figures", 1000, 5, 2),
    ("selection", 1000, 5, 1),
    ("figures", 2000, 50, 4),
    ("selection", 2000, 50, 2),
)
_ATTACKED = (0, 3, 5)  # bodies whose slices are attacked, modulo 8
# Lung CT comes after this many rounds, so that a run that is stopped early has some of everything.
_LUNGS_AFTER = 3


def collect(work: Path, data: Path, rounds: int, tell: Callable[[str], None]) -> None:
    """Score `rounds` rounds of phantom studies and all lung CT blocks; what is there already is left alone."""
    rater = study_scores.phantom_rater(work, tell)
    for number in range(rounds):
        for part, first, step, count in _ROUND:
            for body in range(number * count, (number + 1) * count):
                attacked = step == 1 and body % 8 in _ATTACKED
                study_scores.phantom_study(rater, work, part, first + body, step, attacked=attacked)
        tell(f"round {number + 1} of {rounds}")
        if number + 1 == min(_LUNGS_AFTER, rounds):
            lungs, blocks = study_scores.lung_rater(work, data, tell)
            for place, (group, block) in enumerate(blocks.items()):
                study_scores.lung_study(lungs, work, group, block, attacked=place % 2 == 0)
            tell(f"{len(blocks)} lung CT blocks")


@dataclass(frozen=True, slots=True)
class Sample:
    """Clean studies of one size, and the attacked surprises of those whose slices were attacked."""

    clean: list[Values]
    attacked: list[dict[str, Values]]


def with_loud(sampled: Sample) -> Sample:
    """The same with one more attack, made up: surprises of `LOUD`, as attacks far from the boundary have them."""
    attacked = [
        {**hit, "loud": np.where(np.isfinite(hit[ATTACKS[0]]) | np.isfinite(hit[ATTACKS[-1]]), LOUD, np.nan)}
        if hit
        else hit
        for hit in sampled.attacked
    ]
    return Sample(sampled.clean, attacked)


def sample(work: Path, part: str, size: int, reference: Calibration | None = None) -> Sample:
    """Studies of `size` phantom slices: every body of the part that was scored finely enough.

    With the surprises that were kept, or those that another `reference` gives.
    """
    studies = [study_scores.load(path) for path in sorted((work / "phantom").glob(f"{part}-*.npz"))]
    step = SLICES // size
    if reference is not None:
        kept = (study_scores.of(study, study.indices % step == 0) for study in studies)
        studies = [study_scores.rated(study, reference) for study in kept if len(study.indices) == size]
    clean, attacked = [], []
    for study in studies:
        keep = study.indices % step == 0
        if keep.sum() == size:
            clean.append(study.surprises[keep])
            attacked.append({kind: row[keep] for kind, row in study.attacked.items()})
    if len(clean) < 2:
        raise DicomguardError(f"no studies of {size} slices were scored.", advice="Run the score stage first.")
    return Sample(clean, attacked)


def single(work: Path, part: str) -> list[float]:
    """One slice of each body, drawn at random."""
    rng = np.random.default_rng(3)
    return [float(rng.choice(study)) for study in sample(work, part, 10).clean]


def lung_sample(work: Path) -> list[Studied]:
    """The lung CT blocks that nothing was fitted on."""
    return [study_scores.load(path) for path in sorted((work / "lung").glob("*.npz"))]


def power(
    clean: Sequence[Values],
    attacked: Sequence[dict[str, Values]],
    statistic: Statistic,
    alpha: float,
    counts: Iterable[int],
) -> dict[str, dict[int, float | None]]:
    """Share of attacked studies that are found, by attack and by number of attacked images.

    The threshold for a study comes from all other clean ones. None where too few images flipped to attack so many.
    """
    rng = np.random.default_rng(5)
    scores = np.array([statistic(study) for study in clean])
    found: dict[str, dict[int, float | None]] = {}
    for kind in sorted({kind for hit in attacked for kind in hit}):
        found[kind] = {}
        for count in counts:
            rates = []
            for index, (study, hit) in enumerate(zip(clean, attacked, strict=True)):
                flipped = np.flatnonzero(np.isfinite(hit[kind])) if kind in hit else np.empty(0, np.int64)
                if len(flipped) < count:
                    continue
                threshold = conformal_threshold(np.delete(scores, index), alpha)
                if threshold is None:
                    raise DicomguardError(
                        f"{len(clean)} clean studies are too few for alpha {alpha:g}.",
                        advice=f"{studies_needed(alpha) + 1} are needed.",
                    )
                rates.append(
                    np.mean([_hit(study, hit[kind], flipped, count, rng, statistic) > threshold for _ in range(_DRAWS)])
                )
            found[kind][count] = float(np.mean(rates)) if len(rates) >= _LEAST else None
    return found


def _hit(
    study: Values, hit: Values, flipped: NDArray[np.int64], count: int, rng: np.random.Generator, statistic: Statistic
) -> float:
    chosen = rng.choice(flipped, count, replace=False)
    changed = study.copy()
    changed[chosen] = hit[chosen]
    return statistic(changed)


def fewest(curve: dict[int, float | None]) -> int | None:
    """The smallest number of attacked images from which on the power stays at `POWER` or more."""
    answer = None
    for count in sorted(curve, reverse=True):
        rate = curve[count]
        if rate is None:
            continue
        if rate < POWER:
            break
        answer = count
    return answer


def with_law(name: str, law: Law) -> Statistic:
    """A candidate as a function of a study's surprises."""
    candidate = CANDIDATES[name]

    def statistic(study: Values) -> float:
        ordered = np.sort(study)[::-1]
        return candidate(ordered, law.p_values(ordered))

    return statistic


def choose(work: Path, alpha: float) -> dict[str, Any]:
    """Every candidate on the selection studies: the fewest attacked slices found, and the mean power."""
    samples = {size: with_loud(sample(work, "selection", size)) for size in SIZES}
    law = Law(samples[10].clean)
    table: dict[str, Any] = {}
    for name in CANDIDATES:
        statistic = with_law(name, law)
        row: dict[str, Any] = {"monotone": name in MONOTONE, "sizes": {}}
        means = []
        for size, studies in samples.items():
            # Where there are too few studies for alpha, the candidates are compared at what there is.
            level = max(alpha, 1 / len(studies.clean))
            curves = power(studies.clean, studies.attacked, statistic, level, COUNTS[size])
            real = [curve for kind, curve in curves.items() if kind != "loud"]
            rates = [rate for curve in real for rate in curve.values() if rate is not None]
            means.append(float(np.mean(rates)))
            row["sizes"][size] = {
                "studies": len(studies.clean),
                "alpha": level,
                "fewest": {kind: fewest(curve) for kind, curve in curves.items()},
                "mean_power": means[-1],
            }
        row["mean_power"] = float(np.mean(means))
        row["mixed_sizes"] = mixed_sizes(samples[SLICES].clean, statistic, alpha)
        table[name] = row
    return {"alpha": alpha, "candidates": table}


def false_holds(clean: Sequence[Values], statistic: Statistic, alpha: float) -> dict[str, Any]:
    """Clean studies held: some calibrate, the others are judged; one split with its exact band, the mean of many."""
    scores = np.array([statistic(study) for study in clean])
    rng = np.random.default_rng(9)
    # Half calibrates; more, where half would be too few for a promise and some remain to be judged.
    half = max(len(scores) // 2, min(studies_needed(alpha), len(scores) - 5))
    if conformal_threshold(scores[:half], alpha) is None:
        return {"studies": len(scores), "calibrated": half, "promise": False}
    held = []
    for _ in range(_SPLITS):
        order = rng.permutation(len(scores))
        threshold = conformal_threshold(scores[order[:half]], alpha)
        held.append(int((scores[order[half:]] > threshold).sum()))
    low, high = beta_binomial_band(half, alpha, len(scores) - half)
    return {
        "studies": len(scores),
        "calibrated": half,
        "promise": True,
        "one_split": share([True] * held[0] + [False] * (len(scores) - half - held[0])),
        "band": [low, high],
        "inside": low <= held[0] <= high,
        "mean_of_splits": float(np.mean(held) / (len(scores) - half)),
        "inside_share_of_splits": float(np.mean([low <= h <= high for h in held])),
    }


def mixed_sizes(bodies: Sequence[Values], statistic: Statistic, alpha: float) -> dict[int, float]:
    """Clean studies held, by size, where the threshold of the band 21 to 200 comes from studies of mixed sizes.

    `bodies` are studies of all slices; every 3rd to 20th slice makes the others. Half calibrates, half is judged.
    """
    steps = (3, 4, 5, 10, 20)
    scores = np.array([[statistic(body[::step]) for step in steps] for body in bodies])
    rng = np.random.default_rng(10)
    half = max(len(bodies) // 2, min(studies_needed(alpha), len(bodies) - 5))
    rates = []
    for _ in range(_SPLITS):
        order = rng.permutation(len(bodies))
        mixed = scores[order[:half], rng.integers(0, len(steps), half)]
        threshold = conformal_threshold(mixed, alpha)
        if threshold is None:
            return {}
        rates.append((scores[order[half:]] > threshold).mean(0))
    return {len(bodies[0][::step]): float(rate) for step, rate in zip(steps, np.mean(rates, 0), strict=True)}


def naive(clean: Sequence[Values], law: Law, threshold: float, alpha: float) -> dict[str, Any]:
    """What tests that take images for independent do to clean studies: holds at nominal `alpha`."""
    found = [np.sort(law.p_values(study)) for study in clean]
    return {
        "image threshold on the worst image": share([bool(study.max() > threshold) for study in clean]),
        "independent images would give": 1 - (1 - alpha) ** len(clean[0]),
        "Bonferroni": share([bool(p[0] <= alpha / len(p)) for p in found]),
        "Simes": share([bool((p <= alpha * np.arange(1, len(p) + 1) / len(p)).any()) for p in found]),
    }


def report(work: Path, alpha: float, chosen: dict[str, Any]) -> dict[str, Any]:
    """The chosen score on studies that had no part in the choice, with the naive tests beside it."""
    law = Law([*sample(work, "selection", 10).clean])
    singles = np.array(single(work, "figures"))
    image_threshold = conformal_threshold(single(work, "selection"), alpha)
    assert image_threshold is not None
    result: dict[str, Any] = {"alpha": alpha, "score": "scoring.study_test.score", "sizes": {}, "correlation": {}}
    result["statistic"] = STATISTIC
    result["reference_images"] = study_scores.reference(work, "phantom").images[0]
    thinned = {count: study_scores.reference(work, "phantom", count) for count in THINNED}
    result["sizes"][1] = {"false_holds": false_holds([np.array([s]) for s in singles], score, alpha)}
    for size in SIZES:
        studies = with_loud(sample(work, "figures", size))
        level = max(alpha, 1 / len(studies.clean))
        curves = power(studies.clean, studies.attacked, score, level, COUNTS[size])
        result["sizes"][size] = {
            "false_holds": false_holds(studies.clean, score, alpha),
            "naive": naive(studies.clean, law, image_threshold, alpha),
            "attacked_studies": sum(bool(hit) for hit in studies.attacked),
            "power_alpha": level,
            "aim": AIMS[size],
            "fewest": {kind: fewest(curve) for kind, curve in curves.items()},
            "fewest_by_reference": {
                count: _fewest_with(sample(work, "figures", size, reference), level, size)
                for count, reference in thinned.items()
            },
            "power": curves,
            "power_of_others": {
                name: power(studies.clean, studies.attacked, with_law(name, law), level, COUNTS[size])
                for name in _SHOWN
            },
        }
        result["correlation"][size] = correlation(studies.clean)
    result["mixed_sizes"] = mixed_sizes(sample(work, "figures", SLICES).clean, score, alpha)
    blocks = lung_sample(work)
    if blocks:
        count = study_scores.reference(work, "lung").images[0]
        result["lung_ct"] = {"reference_images": count, **_lung(blocks, alpha)}
    result["selection"] = {
        name: {
            "mean_power": row["mean_power"],
            "fewest": {s: v["fewest"] for s, v in row["sizes"].items()},
            "mixed_sizes": row["mixed_sizes"],
        }
        for name, row in chosen["candidates"].items()
    }
    return result


def _fewest_with(studies: Sample, alpha: float, size: int) -> dict[str, int | None]:
    curves = power(studies.clean, studies.attacked, score, alpha, COUNTS[size])
    return {kind: fewest(curve) for kind, curve in curves.items()}


def _lung(blocks: Sequence[Studied], alpha: float) -> dict[str, Any]:
    clean = [study.surprises for study in blocks]
    curves = power(clean, [study.attacked for study in blocks], score, alpha, range(1, 8))
    return {
        "studies": len(blocks),
        "sizes": [min(map(len, clean)), max(map(len, clean))],
        "false_holds": false_holds(clean, score, alpha),
        "fewest": {kind: fewest(curve) for kind, curve in curves.items()},
        "power": curves,
        "correlation": correlation([study for study in clean if len(study) > 2]),
    }


def correlation(clean: Sequence[Values]) -> dict[str, float]:
    """Of surprises within a study: the share of variance between studies, and the correlation of neighbours."""
    means = np.array([study.mean() for study in clean])
    total = np.concatenate(clean)
    pairs = np.concatenate([np.stack([study[:-1], study[1:]]) for study in clean], axis=1)
    size = float(np.mean([len(study) for study in clean]))
    between = max(float(means.var(ddof=1) - np.mean([study.var(ddof=1) for study in clean]) / size), 0.0)
    return {
        "between_studies": between / float(total.var()),
        "neighbours": float(np.corrcoef(pairs[0], pairs[1])[0, 1]),
        "mean": float(total.mean()),
        "largest": float(total.max()),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line of the three stages."""
    parser = argparse.ArgumentParser(
        prog="python -m dicomguard.lab.study_power", description="Measure study decisions."
    )
    parser.add_argument("stage", choices=["score", "choose", "report"])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DICOMGUARD_TEST_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("build/study"), help="scores are kept in a folder of it")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="gets results/ and figures/")
    parser.add_argument("--alpha", type=float, default=0.05, help="false-hold rate of a study")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    work = study_scores.keyed(given.work)
    line = command.line(parser.prog, sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(given.threads)
    console = Console()
    selection = given.out / "results" / "study-selection.json"
    named = f"study-power-alpha-{given.alpha:g}"
    try:
        if given.stage == "score":
            collect(work, given.data, given.rounds, console.print)
            return 0
        if given.stage == "choose":
            write_json(selection, _rounded({**choose(work, given.alpha), "command": line}))
            return 0
        found = report(work, given.alpha, json.loads(selection.read_text()))
    except DicomguardError as error:
        console.print(f"[red]{error}")
        return 1
    write_json(given.out / "results" / f"{named}.json", _rounded({**found, "command": line}))
    figures = given.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    draw_power(found, figures / f"{named}.png")
    draw_false_holds(found, figures / f"study-false-holds-alpha-{given.alpha:g}.png")
    return 0


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {str(key): _rounded(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_rounded(value) for value in found]
    if isinstance(found, float):
        return round(found, 4) if math.isfinite(found) else None
    return found


if __name__ == "__main__":
    sys.exit(main())
