"""What of the papers, and of our own claims, reproduces on what was measured; what does not, and why.

Why stands in `lab-reasons.yaml` beside the tables: one sentence for each claim that does not hold, by its id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from scipy import stats

from dicomguard.lab.benchmark.judging import AT_RATE
from dicomguard.lab.benchmark.suites.adaptive import parted
from dicomguard.lab.figures import beta_binomial_band
from dicomguard.lab.report import papers
from dicomguard.lab.report.further_sections import BROKEN, WITHIN, factor, strongest, too_weak
from dicomguard.lab.report.joel_section import called, is_in_table_1, set_of, taught_as_published
from dicomguard.lab.report.noise_section import (
    PAPER,
    against_parts,
    by_family,
    fixed,
    in_common,
    means,
    means_at_best,
    ours,
    point,
)
from dicomguard.lab.report.words import counted, difference, percent, rate, table, who
from dicomguard.lab.targets import CERTIFIED

Result = Mapping[str, Any]
REASONS: Final = "lab-reasons.yaml"
_POINTS = 0.03  # by which a mean may miss the paper's
_HARMLESS = 0.05  # of right answers; our bound, the papers name none
_ALL_TOGETHER = 0.05  # the chance that a rate that is kept on all victims is found broken on one
_AS_OFTEN = 0.05
_WORTH_DEFENDING = 0.05  # of clean and attacked pictures together: what an attack must take before a defence is judged
_COST = 2  # times the budget that an attack on the victim alone needs
_FIVE = stats.norm.ppf(1 - 0.025 / 5) / stats.norm.ppf(1 - 0.025)  # how much wider intervals of five at once are


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
        yield (
            "Which of two detectors finds more is told by the 95 % interval of the difference, as if of other files:"
            " where it holds nothing at all, it cannot be told. *At its best level*: for this attack, chosen on the"
            " test files; ours must beat the paper's check in all three ways, or all find all.\n"
        )
        yield table(["claim", "measured here", "holds"], rows)


def _noise_consistency(found: Result) -> Iterator[Claim]:
    grid = found["grid"]
    yield from _victims(grid)
    least, most = papers.MEAN_TPR / 100 - _POINTS, papers.MEAN_FPR / 100 + _POINTS
    for family, members in by_family(grid):
        ways = (
            ("best", "on floats, at the noise level that is best for each attack on the test files (its own way)"),
            ("floats", "on floats, at one level that validation files chose"),
            ("files", "once pictures are files, at that level"),
        )
        for kind, words in ways:
            tpr, fpr, cells = means_at_best(members) if kind == "best" else means(members, kind)
            yield Claim(
                f"noise-consistency/{kind}-{family}",
                f"the paper's check on {family}, {words}: mean TPR | FPR over its four attacks within 3 points of"
                f" {papers.MEAN_TPR} | {papers.MEAN_FPR}, or better",
                f"{percent(tpr)} | {percent(fpr)} ({cells} cells)",
                None if tpr is None or fpr is None else tpr >= least and fpr <= most,
            )
    yield from _against_mahalanobis(grid)
    for family, members in by_family(grid):
        for seed in dict.fromkeys(one["seed"] for one in members):
            # Files of another seed's victim are the same files, and no further evidence.
            of_seed = [one for one in members if one["seed"] == seed]
            yield from _ours(of_seed, family + f"-{seed}" * bool(seed))
            yield from _parts(of_seed, family + f"-{seed}" * bool(seed))


def _against_mahalanobis(grid: Sequence[Result]) -> Iterator[Claim]:
    cells = in_common(grid, "floats", AT_RATE, "Mahalanobis")
    if not cells:
        return
    theirs, distance = (
        (sum(pair[place]["hits"] for pair in cells), sum(pair[place]["count"] for pair in cells)) for place in (0, 1)
    )
    (_, alarms, of), (_, false, _) = (means(grid, "floats", name) for name in (AT_RATE, "Mahalanobis"))
    low, high = difference(theirs, distance)
    yield Claim(
        "noise-consistency/mahalanobis",
        f"the paper's score finds more of its four attacks than Mahalanobis ({papers.MAHALANOBIS[0]}), both at a"
        " promised rate of 5 %",
        f"{percent(theirs[0] / theirs[1])} | {percent(alarms)} against {percent(distance[0] / distance[1])} |"
        f" {percent(false)} of {theirs[1]} successes, floats ({len(cells)} cells of {of.rpartition(' ')[2]})",
        True if low > 0 else False if high < 0 else None,
    )


def _ours(members: Sequence[Result], family: str) -> Iterator[Claim]:
    """Against the paper's check on one family of victims; those that a node would not arm are named."""
    refused = [one["data_set"] for one in members if one["victim"].get("armed", "enforce") != "enforce"]
    aside = f"; a node would not arm it for {', '.join(refused)}" if refused else ""
    for attack, rates in fixed(members).items():
        *others, own = rates.pooled
        yield Claim(
            f"ours/{family}-{attack.replace(' ', '-')}",
            f"ours finds more of {attack} on {family} than the paper's check: at its theta, at our rate, at its best"
            " level",
            f"{_rates(rates.means[-1])} against {', '.join(map(_rates, rates.means[:-1]))}, mean over data sets;"
            f" {own[1]} files of {rates.victims} of {rates.victims + rates.left_out} victims{aside}",
            _finds_more(own, others),
        )


def _parts(members: Sequence[Result], family: str) -> Iterator[Claim]:
    """Whether fusing costs what a part alone would have found: three points at most, of any attack on any victim."""
    gaps = [
        (
            own["rate"] - best["rate"],
            difference(_pair(own), _pair(best)),
            own,
            best,
            f"{attack} on {one['data_set']}, {name}",
        )
        for one in members
        for attack, own, name, best in against_parts(one)
    ]
    if not gaps:
        return
    worst, _, own, best, words = min(gaps, key=lambda gap: gap[0])
    kept = sum(gap >= -_POINTS for gap, *_ in gaps)
    certain = any(high < -_POINTS for _, (_, high), *_ in gaps)
    yield Claim(
        f"ours/parts-{family}",
        f"ours on {family} finds of every attack as much as the best single score among its parts, or at most"
        f" {100 * _POINTS:.0f} points less",
        f"{kept} of {len(gaps)} cells; at worst {counted(own)} against {counted(best)} ({words})",
        False if certain else True if worst >= -_POINTS else None,
    )


def _pair(found: Mapping[str, Any]) -> tuple[int, int]:
    return found["hits"], found["count"]


def _rates(found: tuple[float | None, float | None]) -> str:
    return f"{percent(found[0])} | {percent(found[1])}"


def _finds_more(own: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool | None:
    """None where an interval of a difference holds nothing at all, and not all find all."""
    apart = [difference(own, other) for other in others if not own[0] == own[1] == other[0] == other[1]]
    if any(high < 0 for _, high in apart):
        return False
    return True if all(low > 0 for low, _ in apart) else None


def _victims(grid: Sequence[Result]) -> Iterator[Claim]:
    low, least, area = (papers.TABLE_1[what][0] for what in ("accuracy", "recall", "AUC"))
    for family, members in by_family(grid):
        tests = [one["victim"]["training"]["test"] for one in members]
        rates = [test["accuracy"]["rate"] for test in tests]
        recalls = [share["rate"] for test in tests for share in test["recall"].values() if share["rate"] is not None]
        areas = [test["auc"]["value"] for test in tests if test["auc"]["value"] is not None]
        yield Claim(
            f"noise-consistency/accuracy-{family}",
            f"{family} answers as well as the paper's victims: accuracy of {low} or more on each data set, recall of"
            f" {least} or more of each class, and an AUC of .{area} or more",
            f"accuracy {percent(min(rates))} to {percent(max(rates))}, smallest recall {percent(min(recalls))},"
            f" smallest AUC {min(areas, default=math.nan):.3f}",
            min(rates) >= low / 100 and min(recalls) >= least / 100 and min(areas, default=0) >= area / 100,
        )
    strengths = [
        (share["rate"], one)
        for one in grid
        for strength, share in (one["random_noise"] or {}).items()
        if float(strength) <= papers.RANDOM_NOISE and share["rate"] is not None
    ]
    if strengths:
        most, worst = max(strengths, key=lambda pair: pair[0])
        yield Claim(
            "noise-consistency/random-noise",
            f"uniform noise up to {papers.RANDOM_NOISE:.0%}, as far as the paper goes, is no attack: it changes"
            f" {_HARMLESS:.0%} of right answers at most (our bound)",
            f"{percent(most)} at most ({who(worst)}, {worst['data_set']})",
            most <= _HARMLESS,
        )
    yield from _promised(grid)


def _promised(grid: Sequence[Result]) -> Iterator[Claim]:
    """Ours over all victims at once: too many false alarms on one of them, at 5 % for all together."""
    points = [(one, point(own)) for one in grid if (own := ours(one)) is not None and point(own).get("band")]
    above = []
    for one, at in points:
        _, high = beta_binomial_band(
            at["calibrated_on"], at["alpha"], at["clean"]["count"], confidence=1 - 2 * _ALL_TOGETHER / len(points)
        )
        if at["clean"]["hits"] > high:
            above.append(f"{who(one)} on {one['data_set']}")
    if points:
        yield Claim(
            "ours/promised-rate",
            "ours raises no more false alarms than it promises, on any victim (exact bounds, 5 % for all together)",
            f"{len(points) - len(above)} of {len(points)}{': not ' * bool(above)}{', '.join(above)}"
            + f"; {len(grid) - len(points)} more have no threshold" * (len(points) < len(grid)),
            not above,
        )


def _joel(found: Result) -> Iterator[Claim]:
    main = [one for one in found["grid"] if one["victim"] == "plain" and taught_as_published(found, one)]
    published = [one for one in main if one["protocol"] == "paper"]
    for name, (low, high) in papers.JOEL_TABLE_1.items():
        rows = [row for one in published for row in one["rows"] if row["detector"].startswith(name)]
        rates = [row["tests"][test]["accuracy"]["rate"] for row in rows for test in row["tests"] if is_in_table_1(test)]
        if rates:
            yield Claim(
                f"joel2023/paper-{name.replace(' ', '-')}",
                f"{called(rows[0])}, as published: accuracy at eps .004 and .008 between {low:g} and {high:g} (within 3"
                " points)",
                f"{percent(min(rates))} to {percent(max(rates))} ({len(rates)} cells)",
                min(rates) >= low / 100 - _POINTS and max(rates) <= high / 100 + _POINTS,
            )
    closed = [one for one in main if one["protocol"] == "closed"]
    yield from _noise_is_not_attack(closed)
    yield from _defences(found, closed)


def _noise_is_not_attack(closed: Sequence[Result]) -> Iterator[Claim]:
    """The falsifier: clean pictures with noise of the attack's strength must not be flagged more than clean ones.

    By intervals over patients of the difference by picture: none of the five may lie above nothing (wider, because
    five are asked at once), and all must lie within five points.
    """
    for one in closed:
        name = f"random noise {one['taught_on']['eps']:g}"
        rows = [row for row in one["rows"] if name in row["tests"]]
        if rows:
            found = [row["tests"][name]["more"] for row in rows]
            is_worse = any(more["mean"] > _FIVE * (more["mean"] - more["interval"][0]) for more in found)
            is_shown = all(more["interval"][1] <= _AS_OFTEN for more in found)
            seen = ", ".join(
                f"{called(row)} {percent(row['tests'][name]['flagged']['rate'])} against"
                f" {percent(row['clean_flagged']['rate'])}"
                for row in rows
            )
            yield Claim(
                f"joel2023/noise-{_id(one)}",
                f"with the leaks closed, no detector flags {name} on {set_of(one)} more often than clean pictures",
                seen,
                False if is_worse else True if is_shown else None,
            )


def _defences(found: Result, closed: Sequence[Result]) -> Iterator[Claim]:
    attack, eps = found["table_2"]
    name = f"{attack} {eps:g}"
    hardened = {
        (one["data_set"], one["seed"]): one["rows"][0]["tests"][name]["victim"]
        for one in found["grid"]
        if one["victim"] == "hardened" and name in one["rows"][0]["tests"]
    }
    for one in closed:
        tests = [row["tests"][name] for row in one["rows"] if name in row["tests"]]
        if not tests:
            continue
        data_set, label, nothing = set_of(one), _id(one), tests[0]["victim"]
        printed = papers.JOEL_TABLE_2.get(one["task"], {}).get("baseline")
        if printed is not None:
            yield Claim(
                f"joel2023/baseline-{label}",
                f"{name} brings the victim on {data_set} to {printed:g} or less of clean and attacked pictures together"
                " (within 3 points)",
                rate(nothing),
                nothing["rate"] <= printed / 100 + _POINTS,
            )
        # Of what the attack did not turn round nothing can be won back.
        has_much = nothing["rate"] <= one["clean_accuracy"]["rate"] - _WORTH_DEFENDING
        (low, high), found_by = nothing["interval"], [test["combined"]["A1"] for test in tests]
        reached = [accuracy for accuracy in found_by if accuracy is not None]
        better = len(reached) == len(tests) and min(reached) > high
        yield Claim(
            f"joel2023/defence-{label}",
            f"under {name} on {data_set}, detection (A1) is better than doing nothing, by any of the detectors",
            f"{percent(min(reached, default=None))} to {percent(max(reached, default=None))} by {len(reached)} of"
            f" {len(tests)} detectors against {rate(nothing)}",
            None if not has_much else True if better else False if max(reached, default=0) < low else None,
        )
        trained = hardened.get((one["data_set"], one["seed"]))
        if trained is not None:
            (low, high), (below, above) = trained["interval"], nothing["interval"]
            yield Claim(
                f"joel2023/hardened-{label}",
                f"under {name} on {data_set}, adversarial training is better than doing nothing",
                f"{rate(trained)} against {rate(nothing)}",
                True if low > above else False if high < below else None,
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
            f"adaptive/broken-{one['family']}-{_id(one)}",
            f"whoever knows the paper's check on {who(one)}, {one['data_set']}, passes it unseen with {BROKEN:.0%} of"
            f" files at an eps of {WITHIN:g} or less, with one attack",
            f"{rate(share)} of {0 if share is None else share['count']} ({attack}, the strongest on these files);"
            f" {percent(changed)} can be changed at all",
            holds,
        )
        own = one["detectors"].get("ours") or one["detectors"].get("ours, without the guard")
        if own is not None and own["cost"]["files"]:
            cost = own["cost"]
            is_weak = too_weak(own["undetected_success"])
            aside = "; a node would not arm it" if one["victim"].get("armed", "enforce") != "enforce" else ""
            yield Claim(
                f"adaptive/cost-{one['family']}-{_id(one)}",
                f"to pass ours on {who(one)}, {one['data_set']}, costs an attacker at least {_COST} times the budget",
                f"{factor(cost)}{'; not even the largest budget breaks it' * is_weak}{aside}",
                None if is_weak else _costs_enough(cost),
            )


def _costs_enough(cost: Mapping[str, Any]) -> bool | None:
    """None where the interval has both."""
    low, high = cost["interval"]
    return True if low >= _COST else False if high is not None and high < _COST else None


def _certified(found: Result) -> Iterator[Claim]:
    """The shares that shipped bundles aim at, of each victim's own small guards."""
    for (family, data_set), members in _by_victim(found["grid"]).items():
        shares = {
            eps: sum(rates) / len(rates)
            for eps in CERTIFIED
            if (rates := [one["certified"]["rate"] for one in members if one["eps"] == eps])
        }
        if shares:
            yield Claim(
                f"certified/{family}-{data_set}",
                f"guards certify as many clean files of {family}, {data_set}, as shipped bundles aim at: "
                + ", ".join(f"{CERTIFIED[eps][1]:.0%} at {eps:g}" for eps in shares),
                ", ".join(percent(rate) for rate in shares.values()),
                all(rate >= CERTIFIED[eps][1] for eps, rate in shares.items()),
            )


def _id(one: Result) -> str:
    return f"{one['data_set']}-{one['seed']}" if one["seed"] else str(one["data_set"])


def _by_victim(grid: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    found: dict[tuple[str, str], list[Result]] = {}
    for one in grid:
        found.setdefault((one["family"], one["data_set"]), []).append(one)
    return found


_CLAIMS: Final[Mapping[str, Callable[[Result], Iterator[Claim]]]] = MappingProxyType(
    {"noise-consistency": _noise_consistency, "joel2023": _joel, "adaptive": _adaptive, "certified": _certified}
)
