"""What of the papers, and of our own claims, reproduces on what was measured; what does not, and why.

Why stands in `lab-reasons.yaml` beside the tables: one sentence for each claim that does not hold, by its id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.suites.adaptive import parted
from dicomguard.lab.report import papers
from dicomguard.lab.report.further_sections import BROKEN, WITHIN, strongest
from dicomguard.lab.report.joel_section import is_in_table_1, taught_as_published
from dicomguard.lab.report.noise_section import PAPER, fixed, means
from dicomguard.lab.report.words import percent, table, who

Result = Mapping[str, Any]
REASONS: Final = "lab-reasons.yaml"
_POINTS = 0.03  # by which a mean may miss the paper's


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
        (theirs, _), (at_rate, _), (own, _) = rates.means
        best = max((one for one in (theirs, at_rate) if one is not None), default=None)
        yield Claim(
            f"ours/{attack.replace(' ', '-')}",
            f"ours finds more of {attack} than the paper's check, at its theta and at our rate; or both find all",
            f"{percent(own)} against {percent(theirs)} and {percent(at_rate)}, mean over victims",
            None if own is None or best is None else own > best or own == best == 1,
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
    attack, eps = found["table_2"]
    for one in (run for run in main if run["protocol"] == "closed"):
        tests = [row["tests"].get(f"{attack} {eps:g}") for row in one["rows"]]
        gains = [(test["combined"]["A1"], test["victim"]["rate"]) for test in tests if test is not None]
        if gains:
            best, nothing = max(a1 for a1, _ in gains if a1 is not None), gains[0][1]
            yield Claim(
                f"joel2023/defence-{one['data_set']}",
                f"under {attack} {eps:g} on {one['data_set']}, detection (A1) is better than doing nothing",
                f"{percent(best)} at best against {percent(nothing)}",
                best > nothing,
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


_CLAIMS: Final[Mapping[str, Callable[[Result], Iterator[Claim]]]] = MappingProxyType(
    {"noise-consistency": _noise_consistency, "joel2023": _joel, "adaptive": _adaptive}
)
