"""The report on attackers who know the detector, on natural change, and on certificates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicomguard.lab.benchmark.shifts import UNCHANGED
from dicomguard.lab.benchmark.suites.adaptive import parted
from dicomguard.lab.report.curves import Curve, bars, shares
from dicomguard.lab.report.noise_section import PAPER, armed
from dicomguard.lab.report.words import EPS, counted, of_data_sets, rate, table, who

Result = Mapping[str, Any]
_DRAWN = (PAPER, "ours", "ours, without the guard")
_SHOWN = (*_DRAWN, "Mahalanobis", "low margin", "guard's vote share")
_VOTING = ("ours", "guard's vote share")
_KNOWS_NOTHING = "PGD"
BROKEN = 0.9
WITHIN = 0.016
AS_THEY_ARE = "as they are"


def adaptive(found: Result, figures: Path) -> Iterator[str]:
    """Markdown of the adaptive suite."""
    for one in found["grid"]:
        title = f"{who(one)} on {one['data_set']}"
        yield f"### {title}\n"
        yield f"Self-test of the victim: {armed(one['victim'])}\n"
        detectors = {name: row for name, row in one["detectors"].items() if name in _SHOWN}
        yield "Share of all attacked files that are changed and not seen, percent, at the detector's own threshold.\n"
        budgets = [f"{eps:g}" for eps in sorted({parted(name)[1] for name in one["attacks"]})]
        for name, row in detectors.items():
            yield f"**{name}** (false alarms {rate(row['clean'])})\n"
            rows = [*_rates(row["undetected_success"], budgets), _pooled(row["any"], budgets)]
            yield table(["attack", *(f"eps {eps}" for eps in budgets)], rows)
            yield _verdict(name, row["undetected_success"])
            yield _plain(row["detected"])
        for name, why in one["none_because"].items():
            yield f"**{name}** is not judged here: {why}\n"
        yield _costs(one["detectors"])
        panels = {
            name: [
                Curve(
                    attack,
                    [(float(eps), share) for eps, share in points],
                    dashed=attack == _KNOWS_NOTHING,
                    plain=len(points) < len(budgets),
                )
                for attack, points in _by_attack(row["undetected_success"]).items()
            ]
            for name, row in detectors.items()
            if name in _DRAWN
        }
        if panels:
            file = f"adaptive-{one['family']}-{one['data_set']}-{one['seed']}.png"
            path = shares(panels, figures / file, x=EPS, y="undetected success", log=True, bar=(BROKEN, "broken"))
            yield f"![Undetected success against eps: {title}](figures/{path.name})\n"
            yield "Bands are shown for attacks that were made at every budget.\n"
    yield from soundness(found.get("proofs", ()))


def _by_attack(found: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    by_attack: dict[str, list[tuple[str, Any]]] = {}
    for name, share in found.items():
        attack, eps = parted(name)
        by_attack.setdefault(attack, []).append((f"{eps:g}", share))
    return {attack: sorted(points, key=lambda point: float(point[0])) for attack, points in by_attack.items()}


def _rates(found: Mapping[str, Any], budgets: Sequence[str]) -> Iterator[list[str]]:
    for attack, points in _by_attack(found).items():
        at = dict(points)
        yield [attack, *(counted(at.get(eps)) for eps in budgets)]


def _pooled(found: Mapping[str, Any], budgets: Sequence[str]) -> list[str]:
    return ["*any of them at this eps or less, were somebody to say which*", *(counted(found.get(e)) for e in budgets)]


def strongest(found: Mapping[str, Any], within: float = WITHIN, *, knowing: bool = True) -> tuple[str, Any]:
    """Of shares by `ATTACK, eps BUDGET` the name and the share of the one that got furthest unseen within a budget.

    `knowing`: of those that know of a detector, else of all.
    """
    inside = {
        name: share
        for name, share in found.items()
        if parted(name)[1] <= within and not (knowing and parted(name)[0] == _KNOWS_NOTHING)
    }
    name = max(inside, key=lambda one: inside[one]["rate"] or 0.0, default="")
    return name, inside.get(name)


def _verdict(name: str, found: Mapping[str, Any]) -> str:
    budgets = sorted({parted(attack)[1] for attack in found})
    for eps in budgets:
        attack, share = strongest(found, eps, knowing=False)
        if (share["rate"] or 0) >= BROKEN:
            where = "within" if eps <= WITHIN else "beyond"
            return f"Broken ({BROKEN:.0%} undetected) by {attack}, {where} {WITHIN:g}.\n"
    attack, share = strongest(found, math.inf, knowing=False)
    furthest = f" The furthest is {attack}: {rate(share)}." if attack else ""
    weak = (
        f" At {budgets[-1]:g} every check must fall that is no proof: these attacks are too weak to say what {name}"
        " withstands."
        if budgets
        else ""
    )
    return f"No attack reaches an undetected success of {BROKEN:.0%} against {name}.{furthest}{weak}\n"


def too_weak(found: Mapping[str, Any]) -> bool:
    """Whether not even the largest budget breaks a detector: then the attacks say nothing about it."""
    _, share = strongest(found, math.inf, knowing=False)
    return share is None or (share["rate"] or 0) < BROKEN


def _plain(found: Mapping[str, Any]) -> str:
    """An attack that knows of no detector should be the easier to see the larger it is."""
    points = _by_attack(found).get(_KNOWS_NOTHING, [])
    return f"Detected of PGD, which knows of no detector: {'; '.join(f'{eps}: {rate(one)}' for eps, one in points)}.\n"


def _costs(detectors: Mapping[str, Any]) -> str:
    rows = []
    for name, row in detectors.items():
        cost = row["cost"]
        if not cost["files"]:
            rows.append([name, 0, *["-"] * 5])
            continue
        success = "beyond all" if cost["success"] is None else f"{'at most ' * cost['is_least']}{cost['success']:g}"
        undetected = "beyond all" if cost["undetected"] is None else f"{cost['undetected']:g}"
        factors = [factor(one) for one in (cost, cost["pooled"])]
        rows.append([name, cost["files"], success, undetected, cost["attack"] or "-", *factors])
    columns = ["detector", "files", "success at eps", "undetected at eps", "by", "cost factor", "were one told which"]
    return (
        "What being unseen costs: the median smallest budget at which the best single attack succeeds unseen, over that"
        " at which the best single attack succeeds at all; last, the same for the best of all files made. *At most*:"
        " the attack was made at no smaller budget. In brackets 95 % of what other such files would have given, as"
        " coarse as the budgets are.\n\n" + table(columns, rows)
    )


def factor(found: Mapping[str, Any]) -> str:
    """`at least` and `at most` at once say nothing but the number's neighbourhood."""
    if found["factor"] is None:
        words = "cannot be told" if found["success"] is None else f"at least {found['limit'] / found['success']:.1f}"
    else:
        least, most = found["is_least"], found["is_most"]
        words = "about " if least and most else "at least " if least else "at most " if most else ""
        words += f"{found['factor']:.1f}"
    low, high = found.get("interval") or (None, None)
    above = "any" if high is None else f"{high:.1f}"
    return words if low is None else f"{words} ({low:.1f} to {above})"


def soundness(found: Sequence[Result]) -> Iterator[str]:
    """Markdown of what became of attacks on the shipped bundles' certificates."""
    yield "### Attacks on certificates: the shipped bundles\n"
    if not found:
        yield "Not measured here: `scripts/bench soundness` writes them beside these tables.\n"
        return
    yield (
        "Files attacked so that bundle and guard change together (`scripts/bench soundness`). What a certificate is"
        " about: an answer changed within the budget, from a clean file about which guard and bundle agreed, must not"
        " be certified. A certificate may err with its stated probability, so that a changed answer that is certified"
        " is asked again; the binomial test says how likely so many are by chance. What it is not about stands apart:"
        " files about which they disagreed before, and changes that pass all the same: without a certificate, and in"
        " all (a guard that disagrees, not surprisingly enough for the threshold).\n"
    )
    rows = []
    for one in found:
        a, eps = one["a"], f"{one['terms']['eps']:g}"
        beyond = [rate(one[which]["of_flips"]) for which in ("b", "c", "undetected")]
        chance = f"{a['expected_by_chance']:.2g} expected, p {a['binomial_p']:.2g}"
        falsified = f"{a['falsifications']} of {a['judged']}"
        rows.append([one["bundle"], eps, one["attempts"], a["contradicting"], chance, falsified, *beyond])
    columns = [
        "bundle",
        "eps",
        "attempts",
        "flips certified once",
        "by chance",
        "falsified: certified again after a flip",
        "certified flips where guard and bundle disagreed",
        "uncertified flips that pass",
        "flips that pass, whatever the guard said",
    ]
    yield table(columns, rows)


def natural(found: Result, figures: Path) -> Iterator[str]:
    """Markdown of the natural suite."""
    yield (
        "Clean files flagged, percent; in brackets how many were flagged only after the change and only before. Files"
        " that are stored again without a change have other bytes, and so other noise: as many must come as go. Files"
        " of another set have no right answer; *no vote*: of other bits than the guard knows, and so held whatever"
        " else they show, where the guard has a say. All but the paper's check promise 5 % on clean files as they"
        " are.\n"
    )
    for one in found["grid"]:
        title = f"{who(one)} on {one['data_set']}"
        yield f"### {title}\n"
        shown = {name: row for name, row in one["false_alarms"].items() if name in _SHOWN}
        shifts = list(dict.fromkeys(shift for row in shown.values() for shift in row))
        before = [next((s["before"] for s in row.values() if "before" in s), None) for row in shown.values()]
        # Of the same files: the same pixels have the same answers.
        right = one["shifted_accuracy"].get(UNCHANGED) or one["accuracy"]
        rows = [[AS_THEY_ARE, counted(right), *map(counted, before)]]
        rows += [
            [
                shift,
                counted(one["shifted_accuracy"].get(shift)),
                *(_changed(row.get(shift), has_vote=name in _VOTING) for name, row in shown.items()),
            ]
            for shift in shifts
        ]
        yield table(["change", "victim's accuracy", *shown], rows)
        for name, why in one["none_because"].items():
            yield f"**{name}** is not judged here: {why}\n"
        panels = {AS_THEY_ARE: {name: share for name, share in zip(shown, before, strict=True) if share is not None}}
        panels |= {shift: {name: row[shift] for name, row in shown.items() if shift in row} for shift in shifts}
        file = f"natural-{one['family']}-{one['data_set']}-{one['seed']}.png"
        path = bars(
            panels,
            figures / file,
            x="clean files flagged",
            title=title,
            colours=_SHOWN,
            bar=(0.05, "5 %, promised"),
        )
        yield f"![False alarms under natural change: {title}](figures/{path.name})\n"


def _changed(found: Mapping[str, Any] | None, *, has_vote: bool) -> str:
    if found is None:
        return counted(found)
    aside = f" (+{found['gained']} -{found['lost']})" if "gained" in found else ""
    return f"{counted(found)}{aside}{' no vote' * (has_vote and found['without_vote'] == found['count'] > 0)}"


def certified(found: Result, figures: Path) -> Iterator[str]:
    """Markdown of the certified suite."""
    grid = found["grid"]
    rows = [
        [
            who(one),
            one["data_set"],
            f"{one['eps']:g}",
            f"{one['sigma']:g}",
            rate(one["certified"]),
            rate(one["certified_right"]),
            ", ".join(f"{label} {counted(share)}" for label, share in one["by_answer"].items()),
            rate(one["agrees"]),
            counted(one["unenrolled"]),
            f"{one['draws_mean']:.0f}",
            f"{one['seconds_mean']:.2f} / {one['seconds_p95']:.2f}",
        ]
        for one in grid
    ]
    columns = [
        "victim",
        "data set",
        "eps",
        "sigma",
        "certified",
        "certified and right",
        "by answer",
        "guard agrees",
        "not looked at",
        "draws, mean",
    ]
    yield (
        "Share of clean test files with a certificate at 1e-6, percent: a guard of its own for each budget. That nobody"
        " changed the answer by a change within eps is what a certificate says; not that the answer is right. *Not"
        " looked at*: of other bits than the guard knows; they count as not certified. Seconds were taken while other"
        " cells ran beside: compare rows, not machines.\n"
    )
    yield from of_data_sets(one["training"] for one in grid)
    yield table([*columns, "seconds, mean / p95"], rows)
    panels: dict[str, list[Curve]] = {}
    for data_set in dict.fromkeys(one["data_set"] for one in grid):
        members = [one for one in grid if one["data_set"] == data_set]
        for victim in dict.fromkeys(who(one) for one in members):
            points = [(one["eps"], one["certified"]) for one in members if who(one) == victim]
            panels.setdefault(data_set, []).append(Curve(victim, sorted(points, key=lambda point: point[0])))
    path = shares(panels, figures / "certified.png", x=EPS, y="certified share of clean files", log=True)
    yield f"![Certified share against the budget](figures/{path.name})\n"
