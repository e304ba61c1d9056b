"""docs/promises.md: what the shipped enrolments reach, written from docs/results and nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dicomguard.lab.figures import worded

_INTRODUCTION = (
    "Every figure comes from a file under docs/results, written by the command named beside it. This page is made by",
    "`scripts/bench page`, and by `scripts/bench score`, which measures everything first. Intervals are exact, 95 %.",
    "*Flagged*: the file alone would be quarantined. Attacked files count only where the answer still differs once the",
    "picture is rounded to stored bits and read back.",
)
_LEAST_FILES = 300  # attacked files that a figure should rest on
_TARGETS = {0.05: 0.97, 0.01: 0.90}
_STUDIES = ("study-power-alpha-0.1.json", "study-power-alpha-0.05.json")
_CERTIFIED = {0.004: (0.85, 0.92), 0.008: (0.76, 0.85), 0.012: (0.62, 0.75), 0.016: (None, 0.65)}


def page(results: Path, names: Sequence[str]) -> str:
    """Markdown from the result files that are there; what was not measured is named."""
    return "\n".join(_lines(results, names)) + "\n"


def _lines(results: Path, names: Sequence[str]) -> Iterator[str]:
    yield "# What is promised, measured"
    yield ""
    yield from _INTRODUCTION
    yield ""
    yield from _studies(results)
    for name in names:
        yield from _bundle(results, name)


def _studies(results: Path) -> Iterator[str]:
    yield "# Whole studies"
    yield ""
    found = [json.loads((results / name).read_text()) for name in _STUDIES if (results / name).exists()]
    if not found:
        yield "*studies: not measured yet (`scripts/bench studies`).*"
        yield ""
        return
    yield "`scripts/bench studies`, on CT phantoms; how, and on real CT, in [study-level.md](study-level.md)."
    yield "*Fewest*: attacked images of a study that are found with power .9."
    yield ""
    yield "| images | alpha | clean studies held, one split | band | mean of splits | fewest, by attack | aim |"
    yield "|---|---|---|---|---|---|---|"
    for result in found:
        for size, row in result["sizes"].items():
            yield _study_row(result["alpha"], size, row)
    yield ""
    yield from (line for result in found for line in _power_missed(result))
    for result in found:
        yield f"![Power at alpha {result['alpha']:g}](figures/study-power-alpha-{result['alpha']:g}.png)"
    yield ""


def _study_row(alpha: float, size: str, row: dict[str, Any]) -> str:
    held = row["false_holds"]
    cells = [size, f"{alpha:g}", "no promise", "", "", "", ""]
    if held["promise"]:
        outside = "" if held["inside"] else " **outside**"
        cells[2:5] = [
            _short(held["one_split"]),
            f"{held['band'][0]}-{held['band'][1]}{outside}",
            f"{held['mean_of_splits']:.3f}",
        ]
    if "fewest" in row:
        cells[5] = ", ".join(f"{name} {count or 'none'}" for name, count in row["fewest"].items())
        cells[6] = str(row["aim"])
    return f"| {' | '.join(cells)} |"


def _power_missed(result: dict[str, Any]) -> Iterator[str]:
    for size, row in result["sizes"].items():
        for name, count in row.get("fewest", {}).items():
            if count is None or count > row["aim"]:
                words = "never reached" if count is None else f"needs {count}"
                yield f"- alpha {result['alpha']:g}, {size} images, {name}: power .9 **{words}**, aim {row['aim']}."
    yield ""


def _bundle(results: Path, name: str) -> Iterator[str]:
    yield f"# {name}"
    yield ""
    parts = (("score", _files), ("certificates", _certificates), ("soundness", _soundness), ("speed", _speed))
    for kind, section in parts:
        path = results / f"{kind}-{name}.json"
        if path.exists():
            yield from section(json.loads(path.read_text()))
        else:
            yield f"*{kind}: not measured yet (`scripts/bench {'files' if kind == 'score' else kind} {name}`).*"
            yield ""
    card = results / f"speed-{name}-cuda.json"
    if card.exists():
        found = json.loads(card.read_text())
        yield f"`{found['command']}`: {_throughput(found['throughput'])}"
        yield ""


def _files(result: dict[str, Any]) -> Iterator[str]:
    for report in result["reports"]:
        yield f"## False alarms and detection, {report['bits']} stored bits"
        yield ""
        yield f"`{result['command']}`. Accuracy on clean test files {worded(report['accuracy'])}."
        yield ""
        yield from _rules(report)
        yield from _attempts(report)
        yield from _missed(report)
        yield from _cascade(report)
        yield from _outcomes(report)


def _rules(report: dict[str, Any]) -> Iterator[str]:
    attacks = list(report["rows"][0]["attacks"])
    yield f"| rule | alpha | clean flagged | band | passes | {' | '.join(attacks)} |"
    yield "|---" * (5 + len(attacks)) + "|"
    for row in report["rows"]:
        band = row["band"]
        inside = "" if band is None else f"{band['low']}-{band['high']}{'' if band['inside'] else ' **outside**'}"
        alpha = "" if row["alpha"] is None else f"{row['alpha']:g}"
        cells = [row["rule"], alpha, _short(row["clean"]), inside, f"{row['passes_clean']:.1f}"]
        cells += [_short(row["attacks"][name]) for name in attacks]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _short(found: dict[str, Any]) -> str:
    if found["rate"] is None:
        return "-"
    low, high = found["interval"]
    return f"{found['rate']:.3f} ({found['hits']}/{found['count']}, {low:.3f}-{high:.3f})"


def _attempts(report: dict[str, Any]) -> Iterator[str]:
    hit = {name: found["count"] for name, found in report["rows"][0]["attacks"].items()}
    words = (
        f"{name} {hit[name]} of {tried} ({flipped} before rounding)"
        for name, (tried, flipped) in report["tried"].items()
    )
    yield f"Files whose answer changed, of those attacked: {'; '.join(words)}."
    yield ""


def _missed(report: dict[str, Any]) -> Iterator[str]:
    """Which targets are not met, in so many words."""
    for name, found in report["rows"][0]["attacks"].items():
        if found["count"] < _LEAST_FILES:
            yield f"- {name} rests on {found['count']} files, not on {_LEAST_FILES}."
    for row in report["rows"]:
        target = _TARGETS.get(row["alpha"]) if row["rule"] in ("as shipped", "ours") else None
        for name, found in row["attacks"].items():
            if target is not None and found["rate"] is not None and found["rate"] < target:
                yield (
                    f"- {row['rule']}, alpha {row['alpha']:g}: **{name} {found['rate']:.3f} is below {target:g}**, by"
                    f" {target - found['rate']:.3f}."
                )
    yield ""


def _cascade(report: dict[str, Any]) -> Iterator[str]:
    yield "TPR that the cascade of the noise check loses against its whole ladder (paired bootstrap, 95 %):"
    yield ""
    for alpha, losses in report["cascade_loss"].items():
        words = (
            f"{name} {100 * loss['loss']:+.1f} ({100 * loss['low']:+.1f} to {100 * loss['high']:+.1f})"
            for name, loss in losses.items()
        )
        yield f"- alpha {alpha}, in points: {'; '.join(words)}"
    yield ""


def _outcomes(report: dict[str, Any]) -> Iterator[str]:
    found = report["certificates"]
    if found is None:
        return
    yield (
        f"The guard of the enrolment (eps {found['eps']:g}, sigma {found['sigma']:g}, alpha {found['alpha']:g}, looks"
        f" {', '.join(map(str, found['looks']))}) on the same files:"
    )
    yield ""
    yield "| files | CERTIFIED | UNCERTIFIED | DISAGREE |"
    yield "|---|---|---|---|"
    for name, outcomes in {"clean": found["clean"], **found["attacks"]}.items():
        cells = [_short(outcomes[o]) for o in ("CERTIFIED", "UNCERTIFIED", "DISAGREE")]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def _certificates(result: dict[str, Any]) -> Iterator[str]:
    yield "## Certified share of clean files against the budget"
    yield ""
    yield f"`{result['command']}`, a guard for each budget, alpha 1e-6. *Shipped*: the enrolment's own."
    yield ""
    yield "| eps | sigma | looks | certified | guard agrees | target (aim) | draws, mean | seconds, mean / p95 |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in result["rows"]:
        target, aim = _CERTIFIED.get(row["eps"], (None, None))
        goal = f"{'-' if target is None else target} ({aim})"
        budget = f"{row['eps']:g}{', shipped' if row['shipped'] else ''}"
        yield (
            f"| {budget} | {row['sigma']:g} | {', '.join(map(str, row['looks']))} | {_short(row['certified'])} |"
            f" {row['agrees']['rate']:.3f} | {goal} | {row['draws_mean']:.0f} |"
            f" {row['seconds_mean']:.3f} / {row['seconds_p95']:.3f} on {row['threads']} thread(s) |"
        )
    yield ""


def _soundness(result: dict[str, Any]) -> Iterator[str]:
    a = result["a"]
    yield "## Soundness: adaptive attacks on the certificates"
    yield ""
    yield (
        f"`{result['command']}`: {result['attempts']} attempts from {sum(result['bases'].values())} clean bases"
        f" ({', '.join(f'{count} {kind}' for kind, count in result['bases'].items())}), budget"
        f" {result['budget']['eps']:g}, every one judged by the node's own procedure."
    )
    yield ""
    yield (
        f"- (a) certificates that contradict the base: **{a['contradicting']} of {a['judged']}**; falsifications:"
        f" **{a['falsifications']}** (by chance {a['expected_by_chance']:.2g} were expected)."
    )
    yield f"- flips of the bundle from agreeing bases: {_short(result['flipped'])}."
    for letter, words in (
        ("b", "flips that are CERTIFIED, from bases where guard and bundle disagreed (not covered)"),
        ("c", "flips that are UNCERTIFIED and pass the default policy"),
        ("undetected", "flips that pass, however"),
    ):
        for unit, found in result[letter].items():
            yield f"- {f'({letter}) ' if len(letter) == 1 else ''}{words}, {unit.replace('_', ' ')}: {_short(found)}."
    yield ""


def _speed(result: dict[str, Any]) -> Iterator[str]:
    rate = result["images_per_second"]
    yield "## Speed"
    yield ""
    yield (
        f"`{result['command']}`: {result['processor']}, {result['threads']} threads, load {result['load']:.1f} at the"
        f" end, {result['images']} images, median of {result['rounds']} rounds in turns."
    )
    yield ""
    yield "| | images a second | ours is faster by |"
    yield "|---|---|---|"
    yield f"| noise check, cascade, {result['mean_passes']:.1f} passes on average | {rate['ours']:.1f} | |"
    for draws in ("41", "9"):
        ratio = result[f"times_as_fast_as_{draws}"]
        yield (
            f"| {draws} eager float32 passes | {rate[f'eager {draws}']:.2f} | {ratio['median']:.1f} times"
            f" ({ratio['low']:.1f}-{ratio['high']:.1f}) |"
        )
    ratio = result["times_as_fast_per_pass"]
    yield f"| one pass, 16 images at once | | {ratio['median']:.1f} times ({ratio['low']:.1f}-{ratio['high']:.1f}) |"
    yield ""
    for found in result["throughput"]:
        yield _throughput(found)
    if "guard" in result:
        guard = result["guard"]
        yield f"The guard at eps {guard['eps']:g}: {guard['mean_s']:.3f} s an image, p95 {guard['p95_s']:.3f} s."
    yield (
        f"With the guard, from pixels to score: {result['one_image_s']:.2f} s for one image,"
        f" {result['study_of_300_s']:.0f} s for a study of 300."
    )
    yield ""


def _throughput(found: dict[str, Any]) -> str:
    ratio = found["of_plain_forward"]
    where = f", {found['card']}, {found['of_bf16_peak']:.0%} of its bfloat16 peak" if "card" in found else ""
    return (
        f"A look with {found['passes']} passes, guard apart: {found['images_per_second']:.1f} images a second,"
        f" {ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f}) of what the passes alone reach{where}."
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench page."""
    parser = argparse.ArgumentParser(prog="scripts/bench page", description="Write docs/promises.md.")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--out", type=Path, default=Path("docs/promises.md"))
    given = parser.parse_args(arguments)
    given.out.write_text(page(given.results, ("chest-xray", "brain-mri")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
