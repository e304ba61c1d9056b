"""What of the papers, and of our own claims, reproduces on what was measured; what does not, and why.

Why stands in `lab-reasons.yaml` beside the tables: one sentence for each claim that does not hold, by its id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.suites.adaptive import parted
from dicomguard.lab.report import papers
from dicomguard.lab.report.further_sections import BROKEN, WITHIN, factor, strongest
from dicomguard.lab.report.joel_section import is_in_table_1, taught_as_published
from dicomguard.lab.report.noise_section import PAPER, fixed, means, ours, point
from dicomguard.lab.report.words import percent, table, who

Result = Mapping[str, Any]
REASONS: Final = "lab-reasons.yaml"
_POINTS = 0.03  # by which a mean may miss the paper's
_RANDOM_UP_TO = 0.16  # of the presentation range, as in the noise-consistency paper
_HARMLESS = 0.05
_COST = 2  # times the budget that an attack on the victim alone needs
_CERTIFIED = {0.004: 0.85, 0.008: 0.76, 0.012: 0.62}  # docs/promises.md


@dataclass(frozen=True, slots=True)
class Claim:
    """`id`: for its reason; `words`: what is claimed; `measured` in words; `holds`: None where it cannot be told."""

    id: str
    words: str
    measured: str
    holds: bool | None


def section(there: Mapping[str, Result], reasons: Mapping[str, str]) -> Iterator[str]:
    """Markdown: every claim that the suites at hand speak to."""
    rows = []
    for suite, found in there.items():
        for claim in _CLAIMS[suite](found) if suite in _CLAIMS else ():
            verdict = {None: "cannot be told", True: "yes"}.get(claim.holds)
            why = reasons.get(claim.id, "reason not written yet")
            rows.append([claim.words, claim.measured, verdict or f"**no**: {why} ({claim.id})"])
    if rows:
        yield "## What reproduces\n"
        yield table(["claim", "measured here", "holds"], rows)


def read_reasons(results: Path) -> dict[str, str]:
    """Sentences by id; none where the file is absent.

    Raises:
        DicomguardError: it cannot be read as such.

    """
    path = results / REASONS
    try:
        found = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, yaml.YAMLError) as error:
        raise DicomguardError(f"{path} cannot be read: {error}.", advice="Write one 'id: sentence' a line.") from error
    if not isinstance(found or {}, dict):
        raise DicomguardError(f"{path} is no list of reasons by id.", advice="Write one 'id: sentence' a line.")
    return {str(key): str(value) for key, value in (found or {}).items()}


def _noise_consistency(found: Result) -> Iterator[Claim]:
    grid = found["grid"]
    yield from _victims(grid)
    least, most = papers.MEAN_TPR / 100 - _POINTS, papers.MEAN_FPR / 100 + _POINTS
    for family in dict.fromkeys(one["family"] for one in grid):
        members = [one for one in grid if one["family"] == family]
        for kind, words in (("floats", "as the paper counts"), ("files", "once pictures are files")):
            tpr, fpr, cells = means(members, kind)
            yield Claim(
                f"noise-consistency/{kind}-{family}",
                f"the paper's check on {family}, {words}: mean TPR | FPR over its four attacks within 3 points of"
                f" {papers.MEAN_TPR} | {papers.MEAN_FPR}, or better",
                f"{percent(tpr)} | {percent(fpr)} ({cells} cells)",
                None if tpr is None or fpr is None else tpr >= least and fpr <= most,
            )
    theirs, distance = (means(grid, "floats", name)[0] for name in (PAPER, "Mahalanobis"))
    yield Claim(
        "noise-consistency/mahalanobis",
        f"the paper's check finds more of its four attacks than Mahalanobis ({papers.MAHALANOBIS[0]})",
        f"{percent(theirs)} against {percent(distance)}, floats",
        None if theirs is None or distance is None else theirs > distance,
    )
    for attack, rates in fixed(grid).items():
        *others, own = [tpr for tpr, _ in rates.means]
        best = max((one for one in others if one is not None), default=None)
        yield Claim(
            f"ours/{attack.replace(' ', '-')}",
            f"ours finds more of {attack} than the paper's check at its theta, at our rate, and at the noise level that"
            " is best for this attack; or all find all",
            f"{percent(own)} against {', '.join(map(percent, others))}, mean over victims",
            None if own is None or best is None else own > best or own == best == 1,
        )


def _victims(grid: Sequence[Result]) -> Iterator[Claim]:
    low, _ = papers.TABLE_1["accuracy"]
    for family in dict.fromkeys(one["family"] for one in grid):
        rates = [one["victim"]["training"]["test"]["accuracy"]["rate"] for one in grid if one["family"] == family]
        yield Claim(
            f"noise-consistency/accuracy-{family}",
            f"{family} answers as well as the paper's victims: accuracy of {low} or more on each data set",
            f"{percent(min(rates))} to {percent(max(rates))}",
            min(rates) >= low / 100,
        )
    strengths = [
        (share["rate"], one)
        for one in grid
        for strength, share in (one["random_noise"] or {}).items()
        if float(strength) <= _RANDOM_UP_TO and share["rate"] is not None
    ]
    if strengths:
        most, worst = max(strengths, key=lambda pair: pair[0])
        yield Claim(
            "noise-consistency/random-noise",
            f"uniform noise up to {_RANDOM_UP_TO:.0%} changes {_HARMLESS:.0%} of right answers at most",
            f"{percent(most)} at most ({who(worst)}, {worst['data_set']})",
            most <= _HARMLESS,
        )
    bands = [
        (one, band) for one in grid if (own := ours(one)) is not None and (band := point(own).get("band")) is not None
    ]
    if bands:
        outside = [f"{who(one)} on {one['data_set']}" for one, band in bands if not band["inside"]]
        yield Claim(
            "ours/promised-rate",
            "ours keeps the false-alarm rate that it promises: the count lies in the 95 % band on every victim",
            f"{len(bands) - len(outside)} of {len(bands)} inside{': not ' * bool(outside)}{', '.join(outside)}",
            not outside,
        )


def _joel(found: Result) -> Iterator[Claim]:
    main = [one for one in found["grid"] if one["victim"] == "plain" and taught_as_published(found, one)]
    for protocol, words in (("paper", "as published"), ("closed", "leaks closed")):
        runs = [one for one in main if one["protocol"] == protocol]
        for name, (low, high) in papers.JOEL_TABLE_1.items():
            rates = [
                row["tests"][test]["accuracy"]["rate"]
                for one in runs
                for row in one["rows"]
                if row["detector"].startswith(name)
                for test in row["tests"]
                if is_in_table_1(test)
            ]
            if rates:
                yield Claim(
                    f"joel2023/{protocol}-{name.replace(' ', '-')}",
                    f"{name}, {words}: accuracy at eps .004 and .008 from {low:g} to {high:g}, or better",
                    f"{percent(min(rates))} to {percent(max(rates))}",
                    min(rates) >= low / 100,
                )
    yield from _defences(found, main)


def _defences(found: Result, main: Sequence[Result]) -> Iterator[Claim]:
    attack, eps = found["table_2"]
    name = f"{attack} {eps:g}"
    hardened = {
        (one["data_set"], one["seed"]): one["rows"][0]["tests"][name]["victim"]["rate"]
        for one in found["grid"]
        if one["victim"] == "hardened" and name in one["rows"][0]["tests"]
    }
    for one in (run for run in main if run["protocol"] == "closed"):
        tests = [row["tests"].get(name) for row in one["rows"]]
        gains = [(test["combined"]["A1"], test["victim"]["rate"]) for test in tests if test is not None]
        if gains:
            best, nothing = max(a1 for a1, _ in gains if a1 is not None), gains[0][1]
            yield Claim(
                f"joel2023/defence-{one['data_set']}",
                f"under {name} on {one['data_set']}, detection (A1) is better than doing nothing",
                f"{percent(best)} at best against {percent(nothing)}",
                best > nothing,
            )
            trained = hardened.get((one["data_set"], one["seed"]))
            if trained is not None:
                yield Claim(
                    f"joel2023/hardened-{one['data_set']}",
                    f"under {name} on {one['data_set']}, adversarial training is better than doing nothing",
                    f"{percent(trained)} against {percent(nothing)}",
                    trained > nothing,
                )


def _adaptive(found: Result) -> Iterator[Claim]:
    for one in found["grid"]:
        row = one["detectors"].get(PAPER)
        if row is None:
            continue
        attack, share = strongest(row["undetected_success"])
        largest = None if share is None else share["rate"]
        changed = max(
            (
                each["succeeded"] / each["tried"]
                for name, each in one["attacks"].items()
                if parted(name)[1] <= WITHIN and each["tried"]
            ),
            default=0.0,
        )
        # Nobody passes unseen more often than answers change: what changes too seldom says nothing about the check.
        holds = None if largest is None or changed < BROKEN else largest >= BROKEN
        yield Claim(
            f"adaptive/broken-{one['family']}-{one['data_set']}",
            f"whoever knows the paper's check on {who(one)}, {one['data_set']}, passes it unseen with {BROKEN:.0%} of"
            f" files at an eps of {WITHIN:g} or less, with one attack",
            f"{percent(largest)} ({attack}); {percent(changed)} can be changed at all",
            holds,
        )
        own = one["detectors"].get("ours") or one["detectors"].get("ours, without the guard")
        if own is not None and own["cost"]["files"]:
            cost = own["cost"]
            yield Claim(
                f"adaptive/cost-{one['family']}-{one['data_set']}",
                f"to pass ours on {who(one)}, {one['data_set']}, costs an attacker at least {_COST} times the budget",
                factor(cost),
                _costs_enough(cost),
            )


def _costs_enough(cost: Mapping[str, Any]) -> bool | None:
    """None where the factor is a bound on the wrong side."""
    if cost["factor"] is None:
        return True
    is_enough: bool = cost["factor"] >= _COST
    return None if cost["is_most" if is_enough else "is_least"] else is_enough


def _certified(found: Result) -> Iterator[Claim]:
    """The shares that a shipped bundle must reach, of each victim's own small guards."""
    for (family, data_set), members in _by_victim(found["grid"]).items():
        shares = {
            eps: sum(rates) / len(rates)
            for eps in _CERTIFIED
            if (rates := [one["certified"]["rate"] for one in members if one["eps"] == eps])
        }
        if shares:
            yield Claim(
                f"certified/{family}-{data_set}",
                f"guards certify as many clean files of {family}, {data_set}, as asked of shipped bundles: "
                + ", ".join(f"{_CERTIFIED[eps]:.0%} at {eps:g}" for eps in shares),
                ", ".join(percent(rate) for rate in shares.values()),
                all(rate >= _CERTIFIED[eps] for eps, rate in shares.items()),
            )


def _by_victim(grid: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    found: dict[tuple[str, str], list[Result]] = {}
    for one in grid:
        found.setdefault((one["family"], one["data_set"]), []).append(one)
    return found


_CLAIMS: Final[Mapping[str, Callable[[Result], Iterator[Claim]]]] = MappingProxyType(
    {"noise-consistency": _noise_consistency, "joel2023": _joel, "adaptive": _adaptive, "certified": _certified}
)
