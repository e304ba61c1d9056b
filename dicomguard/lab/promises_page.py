"""docs/promises.md: what the shipped enrolments reach, written from docs/results and nothing else."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicomguard.lab import reasons as reasons_file
from dicomguard.lab import targets
from dicomguard.lab.figures import worded
from dicomguard.lab.recipes import RECIPES
from dicomguard.scoring.calibration import STATISTIC
from dicomguard.scoring.enrolment import FOLDER, STATEMENT

_INTRODUCTION = (
    "Every figure comes from a file under docs/results, written by the command named beside it. This page is made by",
    "`scripts/bench page`, and by `scripts/bench score`, which measures studies, files, certificates, soundness and",
    "speed first; the rest is measured by its own command. Intervals are exact, 95 %.",
    "*Flagged*: the file alone would be quarantined. Attacked files count only where the answer still differs once the",
    "picture is rounded to stored bits and read back.",
)
_STUDIES = {0.1: "study-power-alpha-0.1.json", 0.05: "study-power-alpha-0.05.json"}
REASONS = "reasons.yaml"
_COMMANDS = {
    "score": "files {}",
    "certificates": "certificates {}",
    "soundness": "soundness {}",
    "speed": "speed {}",
    "card": "speed {} --device cuda",
    "reproduce": "reproduce config/bundles/{}",
}


def page(results: Path, bundles: Path, names: Sequence[str]) -> str:
    """Markdown from the result files that are there, as far as they belong to the enrolments below `bundles`.

    What was not measured, or with another enrolment, is named, and no figure of it is shown.
    """
    return "\n".join(_lines(results, bundles, names)) + "\n"


def _lines(results: Path, bundles: Path, names: Sequence[str]) -> Iterator[str]:
    reasons = reasons_file.read(results / REASONS)
    yield "# What is promised, measured"
    yield ""
    yield from _INTRODUCTION
    yield ""
    yield from _studies(results, reasons)
    for name in names:
        yield from _bundle(results, bundles / name, name, reasons)


def _studies(results: Path, reasons: Mapping[str, str]) -> Iterator[str]:
    yield "# Whole studies"
    yield ""
    found: dict[float, dict[str, Any]] = {}
    absent = targets.NOT_MEASURED
    for alpha, name in _STUDIES.items():
        if (results / name).exists():
            result = json.loads((results / name).read_text())
            if result.get("statistic") == STATISTIC:
                found[alpha] = result
            else:
                absent = "measured with another definition of the score"
    yield "## Targets"
    yield ""
    kinds = dict.fromkeys(("hold", "power"), absent)
    yield from targets.table(targets.of_studies(found), reasons, kinds)
    if not found:
        yield f"*studies: {absent} (`scripts/bench studies`).*"
        yield ""
    else:
        yield from _whole("studies", "scripts/bench studies", lambda: _study_sections(found.values()))


def _study_sections(found: Collection[dict[str, Any]]) -> Iterator[str]:
    commands = " and ".join(f"`{result['command']}`" for result in found)
    yield f"On CT phantoms; how, and on real CT, in [study-level.md](study-level.md). By {commands}."
    yield "*Fewest*: attacked images of a study that are found with power .9."
    yield ""
    yield (
        "**This is about the test, not about a shipped enrolment**: the network was made for it. The shipped enrolments"
        " know no clean studies of several images, so they promise nothing above one image, judge small studies by"
        " extrapolation and hold larger ones ([study-level.md](study-level.md) tells the sizes)."
    )
    yield ""
    yield "| images | alpha | clean studies held, one split | band | mean of splits | fewest, by attack | aim |"
    yield "|---|---|---|---|---|---|---|"
    for result in found:
        for size, row in result["sizes"].items():
            yield _study_row(result["alpha"], size, row)
    yield ""
    for result in found:
        yield from _references(result)
    for result in found:
        yield f"![Power at alpha {result['alpha']:g}](figures/study-power-alpha-{result['alpha']:g}.png)"
    yield ""


def _references(result: dict[str, Any]) -> Iterator[str]:
    """What is found with fewer reference images than these studies had."""
    yield (
        f"A surprise hardly rises above the log of the number of reference images, {result['reference_images']} here."
        f" With as few as small enrolments have, at alpha {result['alpha']:g}:"
    )
    yield ""
    yield "| images | reference images | fewest, by attack | aim |"
    yield "|---|---|---|---|"
    for size, row in result["sizes"].items():
        for count, fewest in row.get("fewest_by_reference", {}).items():
            yield f"| {size} | {count} | {_fewest(fewest)} | {row['aim']} |"
    yield ""


def _fewest(counts: dict[str, int | None]) -> str:
    return ", ".join(f"{name} {count or 'none'}" for name, count in counts.items())


def _whole(kind: str, command: str, section: Callable[[], Iterator[str]]) -> list[str]:
    """All lines of a section, or none of them where the result lacks a figure."""
    try:
        return list(section())
    except targets.LACKING as error:
        return [f"*{kind}: not measured yet as this page needs it, {error} is missing (`{command}`).*", ""]


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
        cells[5] = _fewest(row["fewest"])
        cells[6] = str(row["aim"])
    return f"| {' | '.join(cells)} |"


def enrolled(folder: Path) -> tuple[str, str] | None:
    """Fingerprint and SHA-256 of the enrolment that is in a bundle's folder now."""
    path = folder / FOLDER / STATEMENT
    if not path.exists():
        return None
    data = path.read_bytes()
    return json.loads(data)["fingerprint"], hashlib.sha256(data).hexdigest()


def _bundle(results: Path, folder: Path, name: str, reasons: Mapping[str, str]) -> Iterator[str]:
    yield f"# {name}"
    yield ""
    if name in RECIPES:
        of = RECIPES[name]
        yield f"Test files: {of.data_source} Divided {of.splits} {' '.join(of.limits)}".rstrip()
        yield ""
    now = enrolled(folder)
    found: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for kind, pattern in _COMMANDS.items():
        command = f"scripts/bench {pattern.format(name)}"
        path = results / (f"speed-{name}-cuda.json" if kind == "card" else f"{kind}-{name}.json")
        if not path.exists():
            absent[kind] = f"not measured yet (`{command}`)"
            continue
        result = json.loads(path.read_text())
        made_with = result.get("fingerprint"), result.get("enrolment")
        # A card has an enrolment of its own, made on it: its path of computation is another one.
        if now is not None and (made_with == now or (kind == "card" and made_with[0] == now[0])):
            found[kind] = result
        else:
            absent[kind] = f"measured with another enrolment: run `{command}` again"
    yield "## Targets"
    yield ""
    yield from targets.table(targets.of_bundle(name, found), reasons, absent)
    parts = (
        ("score", _files),
        ("certificates", _certificates),
        ("soundness", _soundness),
        ("speed", _speed),
        ("card", _card),
    )
    for kind, section in parts:
        if kind in found:
            command = f"scripts/bench {_COMMANDS[kind].format(name)}"
            yield from _whole(kind, command, functools.partial(section, found[kind]))
        else:
            yield f"*{kind}: {absent[kind]}.*"
            yield ""


def _files(result: dict[str, Any]) -> Iterator[str]:
    for report in result["reports"]:
        yield f"## False alarms and detection, {report['bits']} stored bits"
        yield ""
        yield f"`{result['command']}`. Accuracy on clean test files {worded(report['accuracy'])}."
        yield ""
        yield from _rules(report)
        yield from _attempts(report)
        yield from _cascade(report)
        yield from _outcomes(report)
    row = result["in_turn"]
    if row is not None:
        yield "The threshold as shipped was fitted on several depths in turn, so its band is for files like those: of"
        yield (
            f"clean test files of {' and '.join(map(str, row['bits']))} stored bits in turn {_short(row['clean'])} are"
            f" flagged, band {_band(row['band'])}."
        )
        yield ""


def _band(band: dict[str, Any] | None) -> str:
    return "" if band is None else f"{band['low']}-{band['high']}{'' if band['inside'] else ' **outside**'}"


def _rules(report: dict[str, Any]) -> Iterator[str]:
    attacks = list(report["rows"][0]["attacks"])
    yield f"| rule | alpha | clean flagged | band | passes | {' | '.join(attacks)} |"
    yield "|---" * (5 + len(attacks)) + "|"
    for row in report["rows"]:
        alpha = "" if row["alpha"] is None else f"{row['alpha']:g}"
        cells = [row["rule"], alpha, _short(row["clean"]), _band(row["band"]), f"{row['passes_clean']:.1f}"]
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
    kinds = list(found["clean"])
    yield f"| files | {' | '.join(kinds)} |"
    yield "|---" * (1 + len(kinds)) + "|"
    for name, outcomes in {"clean": found["clean"], **found["attacks"]}.items():
        cells = [_short(outcomes[o]) for o in kinds]
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
        target, aim = targets.CERTIFIED.get(row["eps"], (None, None))
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
        f" {result['budget']['eps']:g}. Those that changed the model's answer,"
        f" {a['judged']} from agreeing bases and {result['from_disagreeing']['judged']} from others, were judged by the"
        " node's own procedure; the others cannot contradict."
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
    yield (
        f"| noise check alone, a cascade calibrated on {result['calibrating']} images for this, in batches of"
        f" {result['batch']}: {result['mean_passes']:.1f} passes on average | {rate['ours']:.1f} | |"
    )
    for draws in ("41", "9"):
        ratio = result[f"times_as_fast_as_{draws}"]
        yield (
            f"| {draws} eager float32 passes | {rate[f'eager {draws}']:.2f} | {ratio['median']:.1f} times"
            f" ({ratio['low']:.1f}-{ratio['high']:.1f}) |"
        )
    ratio = result["times_as_fast_per_pass"]
    yield f"| one pass, 16 images at once | | {ratio['median']:.1f} times ({ratio['low']:.1f}-{ratio['high']:.1f}) |"
    yield ""
    yield from map(_throughput, result["throughput"])
    yield f"The whole rule of the enrolment takes {result['mean_passes_whole']:.1f} passes on average beside its guard."
    if "guard" in result:
        guard = result["guard"]
        yield f"The guard at eps {guard['eps']:g}: {guard['mean_s']:.3f} s an image, p95 {guard['p95_s']:.3f} s."
    yield (
        f"With the guard, from pixels to score: {result['one_image_s']:.2f} s for one image,"
        f" {result['study_of_300_s']:.0f} s for a study of 300."
    )
    yield ""


def _card(result: dict[str, Any]) -> Iterator[str]:
    yield "## Speed on a card"
    yield ""
    yield f"`{result['command']}`, with an enrolment made on it:"
    yield ""
    for found in result["throughput"]:
        yield f"- {_throughput(found)}"
    yield ""


def _throughput(found: dict[str, Any]) -> str:
    ratio = found["of_plain_forward"]
    where = f", {found['card']}, {found['of_bf16_peak']:.0%} of its bfloat16 peak" if "card" in found else ""
    return (
        f"Scoring in batches of {found['batch']}, {found['passes']:.1f} passes on average:"
        f" {found['images_per_second']:.1f} images a second, {ratio['median']:.2f}"
        f" ({ratio['low']:.2f}-{ratio['high']:.2f}) of what as many passes alone reach{where}. Left out:"
        f" {found['left_out']}."
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench page."""
    parser = argparse.ArgumentParser(prog="scripts/bench page", description="Write docs/promises.md.")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--out", type=Path, default=Path("docs/promises.md"))
    parser.add_argument("--bundles", type=Path, default=Path("config/bundles"))
    given = parser.parse_args(arguments)
    given.out.write_text(page(given.results, given.bundles, ("chest-xray", "brain-mri")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
