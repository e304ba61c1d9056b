"""The report on the noise-consistency paper: its two tables, ours beside them, and what rounding takes away."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicomguard.lab.benchmark.judging import AT_RATE
from dicomguard.lab.benchmark.suites.noise_consistency import EARLY
from dicomguard.lab.report import papers
from dicomguard.lab.report.words import (
    Share,
    area,
    both,
    counted,
    mean,
    of_data_sets,
    percent,
    rate,
    table,
    who,
)

Result = Mapping[str, Any]
PAPER = "noise check of the paper"
_PARTS = (
    "probability drop, level 3",
    "logit drop, level 3",
    "smallest noisy margin",
    "Mahalanobis",
    "guard's vote share",
)
_FIXED = re.compile(r"(FGSM|BIM|PGD|APGD|Square) 0\.\d+")
_LEAST = 10  # successes of an attack whose TPR enters a mean
_COLUMNS = ("paper, its theta", "paper at 5 %", "paper, best level", "ours at 5 %")


def section(found: Result) -> Iterator[str]:
    """Markdown of one run of the suite."""
    grid = found["grid"]
    yield "### Victims (Table 1)\n"
    yield _victims(grid)
    low, high = papers.TABLE_1["AUC"]
    yield f"The paper's victims: accuracy and recall .89 to .99, AUC .{low} to {high / 100:.2f}.\n"
    yield from of_data_sets(one["victim"]["training"] for one in grid)
    yield "### Detection (Table 2)\n"
    yield (
        "TPR on successful attacks, below the FPR on clean files that the victim answers rightly, percent. *Floats*:"
        " before rounding, as the paper counts. *Files*: after rounding to stored bits. The first columns say how many"
        " successes there are of each. *Ours* and *Mahalanobis* at a promised false-alarm rate of 5 %; the paper's"
        " check at its 2 std, level chosen on validation files.\n"
    )
    yield from _detection(grid)
    yield from _means(grid)
    yield (
        "The paper's check at the noise level that is best against each attack, chosen on the very test files, as"
        " the paper reports it: level, and TPR | FPR on files, percent.\n"
    )
    yield _best_levels(grid)
    yield _fixed(grid)
    yield "### What a hospital would meet\n"
    yield (
        "On files. *Undetected success*: of all rightly answered files that were attacked, the share whose answer was"
        " changed without being seen, percent. *PPV*: of images that are flagged, the share that is attacked, if one in"
        " ten thousand is and all attacks succeed. AUROC: clean files answered rightly against successful attacks.\n"
    )
    yield _undetected(grid)
    yield (
        "False alarms by stratum of clean files, and alarms among 2,000 images a day. *Band*: how many files a rate"
        " that is kept flags in 95 of 100 calibrations.\n"
    )
    yield _strata(grid)
    yield "### Every detector on files\n"
    yield from _all(grid)
    yield "### How often attacks succeed, and what they cost\n"
    yield (
        "Files are attacked in their order until enough attacks succeeded; the counts say how many that took. Median"
        " sizes of what flipped as floats, in fractions of the presentation range.\n"
    )
    yield _attacks(grid)
    yield (
        "What checking one image costs, in passes of the victim and in seconds: medians of rounds that took turns, in"
        " batches as the node forms them. Attack and check were timed while other cells ran beside them: compare ratios"
        " within a row, not seconds between machines.\n"
    )
    yield _checking(grid)
    yield "### Is random noise an attack?\n"
    yield _random(grid)
    yield "### What the check sees\n"
    yield (
        "The paper's Figures 3 (sigmoid outputs) and 4 (differences of predictions, by level of noise); and 1 (the"
        " perturbation), 5 and 6 (where the answer is most sensitive) where this page was made with `--pictures` on the"
        " machine that has them.\n"
    )
    yield from _charts(found)


def _victims(grid: Sequence[Result]) -> str:
    rows = []
    for one in grid:
        training = one["victim"]["training"]
        test = training["test"]
        recall = ", ".join(f"{label} {rate(share)}" for label, share in test["recall"].items())
        auc = test.get("auc") or {}
        rows.append(
            [
                who(one),
                one["data_set"],
                rate(test["accuracy"]),
                recall,
                area({"area": auc.get("value"), "interval": auc.get("interval")}),
                armed(one["victim"]),
                training["weights"],
                training["reduction"] or "none",
            ]
        )
    return table(
        ["victim", "data set", "accuracy", "recall", "AUC", "self-test", "begins with", "reduced against the paper"],
        rows,
    )


def armed(victim: Result) -> str:
    """What the node's self-test makes of a victim that was enrolled."""
    if "armed" not in victim:
        return "not enrolled"
    return f"{victim['armed']}: {victim['refusal']}" if victim["refusal"] else str(victim["armed"])


def point(row: Result, kind: str = "files") -> Result:
    """The operating point that a row is judged at: the paper's theta where it has one, else the first rate."""
    found: Result = row[kind]["theta"] or row[kind]["points"][0]
    return found


def named(one: Result, *names: str) -> Result | None:
    """The first of these detectors that could be fitted."""
    for name in names:
        for row in one["rows"]:
            if row["detector"] == name and "files" in row:
                return row  # type: ignore[no-any-return] # JSON
    return None


def ours(one: Result) -> Result | None:
    """With the guard where the victim has one."""
    return named(one, "ours", "ours, without the guard")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of Table 2: a detector's row, and what of the attacks it is counted on."""

    title: str
    row: Result | None
    kind: str

    def point(self) -> Result | None:
        """The operating point; None where there is none."""
        if self.row is None:
            return None
        found = point(self.row, self.kind)
        return found if "attacks" in found else None

    def alarms(self) -> str:
        """FPR on clean files that are answered rightly."""
        found = self.point()
        return "-" if found is None else rate(found["strata"]["correct"])

    def detected(self, attack: str) -> str:
        """TPR on an attack's successes."""
        found = self.point()
        return "-" if found is None else rate(found["attacks"][attack]["detected"])


def _columns(one: Result) -> list[_Column]:
    paper, own, distance = named(one, PAPER), ours(one), named(one, "Mahalanobis")
    return [
        _Column("paper, floats", paper, "floats"),
        _Column("paper, files", paper, "files"),
        _Column("paper at 5 %, files", named(one, AT_RATE), "files"),
        _Column("ours, floats", own, "floats"),
        _Column("ours, files", own, "files"),
        _Column("Mahalanobis, floats", distance, "floats"),
        _Column("Mahalanobis, files", distance, "files"),
        _Column("confidence alone, files", named(one, "low margin"), "files"),
    ]


def _detection(grid: Sequence[Result]) -> Iterator[str]:
    """A table for each victim: its false alarms, then a row for each attack."""
    for one in grid:
        columns = _columns(one)
        own = ours(one)
        which = "" if own is None or own["detector"] == "ours" else f" (*ours* is {own['detector']})"
        yield f"**{who(one)} on {one['data_set']}**{which}\n"
        rows = [["*false alarms (FPR)*", "", "", *(column.alarms() for column in columns)]]
        for attack, sizes in one["attacks"].items():
            found = [column.detected(attack) for column in columns]
            rows.append([attack, sizes["flipped"], sizes["succeeded"], *found])
        yield table(["attack (TPR)", "floats", "files", *(column.title for column in columns)], rows)


def by_family(grid: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Victims of one family together, on whatever data sets."""
    for family in dict.fromkeys(one["family"] for one in grid):
        yield family, [one for one in grid if one["family"] == family]


def means(grid: Sequence[Result], kind: str, name: str = PAPER) -> tuple[float | None, float | None, str]:
    """Mean TPR and FPR of a detector over the attacks of the paper's Table 2, and of how many cells.

    Cells of fewer than ten successes are left out: one file more or less would move the mean by points. So are those
    of victims that the detector has no threshold on; the number of cells says so.
    """
    tpr, fpr = [], []
    for one in grid:
        found = _in_table_2(one, kind, name)
        tpr += [None if share is None or share["count"] < _LEAST else share["rate"] for share in found.values()]
        at = _judged(one, kind, name)
        if at is not None:
            fpr.append(at["strata"]["correct"]["rate"])
    return mean(tpr), mean(fpr), f"{sum(value is not None for value in tpr)} of {len(tpr)}"


def in_common(grid: Sequence[Result], kind: str, first: str, second: str) -> list[tuple[Share, Share]]:
    """Of two detectors the TPR in every cell of the paper's Table 2 in which both have ten successes or more."""
    return [
        (one_share, other_share)
        for one in grid
        for one_share, other_share in zip(
            _in_table_2(one, kind, first).values(), _in_table_2(one, kind, second).values(), strict=True
        )
        if one_share is not None and other_share is not None and min(one_share["count"], other_share["count"]) >= _LEAST
    ]


def _in_table_2(one: Result, kind: str, name: str) -> dict[str, Share | None]:
    """A detector's TPR on each of the paper's attacks that were made on a victim; None where it has no threshold."""
    at = _judged(one, kind, name)
    return {
        attack: None if at is None else at["attacks"].get(attack, {}).get("detected")
        for attack in EARLY
        if attack in one["attacks"]
    }


def _judged(one: Result, kind: str, name: str) -> Result | None:
    row = named(one, name)
    at = None if row is None else point(row, kind)
    return None if at is None or "attacks" not in at else at


def means_at_best(grid: Sequence[Result]) -> tuple[float | None, float | None, str]:
    """The same of the paper's check at the level that is best for each attack, on floats, as the paper reports it."""
    tpr, fpr = [], []
    for one in grid:
        row = named(one, PAPER) or {}
        found = [best_level(row, attack, "floats") for attack in EARLY if attack in one["attacks"]]
        kept = [best for best in found if best is not None and best[1]["count"] >= _LEAST]
        tpr += [best[1]["rate"] for best in kept] + [None] * (len(found) - len(kept))
        fpr += [best[2]["rate"] for best in kept]
    return mean(tpr), mean(fpr), f"{sum(value is not None for value in tpr)} of {len(tpr)}"


def _means(grid: Sequence[Result]) -> Iterator[str]:
    yield (
        f"The paper's own means over Table 2: {papers.MEAN_TPR} | {papers.MEAN_FPR} (best cell {papers.BEST_CELL[0]} |"
        f" {papers.BEST_CELL[1]}; Mahalanobis {papers.MAHALANOBIS[0]} | {papers.MAHALANOBIS[1]:g}).\n"
    )
    rows = []
    for family, members in by_family(grid):
        found = {"floats, best level for each attack": means_at_best(members)}
        found |= {kind: means(members, kind) for kind in ("floats", "files")}
        for kind, (tpr, fpr, cells) in found.items():
            gap = None if tpr is None else 100 * tpr - papers.MEAN_TPR
            row = [family, kind, percent(tpr), percent(fpr), cells, "-" if gap is None else f"{gap:+.1f}"]
            rows.append([*row, _spread(members, kind) if kind in {"floats", "files"} else ""])
    columns = ["victim", "counted on", "mean TPR", "mean FPR", "cells", "points above the paper's mean TPR"]
    yield table([*columns, "std of the mean TPR over seeds"], rows)
    levels = [
        f"{who(one)} on {one['data_set']}: {named(one, PAPER)['level'] + 1} %"  # type: ignore[index]
        for one in grid
        if named(one, PAPER) is not None
    ]
    yield f"Noise level chosen on validation files: {'; '.join(levels)}.\n"


def _spread(members: Sequence[Result], kind: str) -> str:
    seeds = sorted({one["seed"] for one in members})
    found = [means([one for one in members if one["seed"] == seed], kind)[0] for seed in seeds]
    rates = [100 * tpr for tpr in found if tpr is not None]
    return f"{statistics.stdev(rates):.1f} ({len(rates)} seeds)" if len(rates) > 1 else "one seed"


def best_level(row: Result, attack: str, kind: str = "files") -> tuple[int, Share, Share] | None:
    """The paper's level with the largest TPR - FPR for one attack, and both; None where nothing succeeded."""
    levels = enumerate(row.get("levels", ()))
    rates = [(level, one.get(kind, {}).get(attack), one["correct"]) for level, one in levels]
    there = [(level, tpr, fpr) for level, tpr, fpr in rates if tpr is not None and tpr["rate"] is not None]
    return max(there, key=lambda one: one[1]["rate"] - (one[2]["rate"] or 0.0), default=None)


def _best_levels(grid: Sequence[Result]) -> str:
    attacks = list(dict.fromkeys(name for one in grid for name in one["attacks"]))
    rows = []
    for one in grid:
        row = named(one, PAPER)
        if row is None:
            continue
        cells = []
        for attack in attacks:
            found = best_level(row, attack)
            cells.append("-" if found is None else f"{found[0] + 1} %: {both(found[1], found[2])}")
        rows.append([who(one), one["data_set"], f"{row['level'] + 1} %", *cells])
    return table(["victim", "data set", "chosen on validation", *attacks], rows)


@dataclass(frozen=True, slots=True)
class Compared:
    """One attack over the victims that all of these are judged on: the paper's check at its theta, the same at our
    rate, the same at its theta and the level that is best for this attack, and ours.

    `means`: of TPR and FPR, in that order, over the victims with ten successes or more; `pooled`: detected among all
    victims' successes; `more`, `as_many`: on how many of `victims` ours finds more than each of the others, or as
    many. `left_out`: victims that the attack was made on and that one of these cannot be judged on.
    """

    means: tuple[tuple[float | None, float | None], ...]
    pooled: tuple[tuple[int, int], ...]
    more: tuple[int, ...]
    as_many: tuple[int, ...]
    victims: int
    left_out: int


def fixed(grid: Sequence[Result]) -> dict[str, Compared]:
    """Every attack at a fixed budget, on files."""
    found = {}
    for attack in dict.fromkeys(name for one in grid for name in one["attacks"] if _FIXED.fullmatch(name)):
        rows = [_four(one, attack) for one in grid if attack in one["attacks"]]
        points = [four for four in rows if four is not None]
        if not points:
            continue
        columns = list(zip(*points, strict=True))  # what is compared, over victims
        large = [[pair for pair in column if pair[0]["count"] >= _LEAST] for column in columns]
        own = [tpr["rate"] for tpr, _ in columns[-1]]
        others = [[tpr["rate"] for tpr, _ in column] for column in columns[:-1]]
        found[attack] = Compared(
            tuple((mean(tpr["rate"] for tpr, _ in one), mean(fpr["rate"] for _, fpr in one)) for one in large),
            tuple((sum(tpr["hits"] for tpr, _ in one), sum(tpr["count"] for tpr, _ in one)) for one in columns),
            tuple(sum(a > b for a, b in zip(own, other, strict=True)) for other in others),
            tuple(sum(a == b for a, b in zip(own, other, strict=True)) for other in others),
            len(points),
            len(rows) - len(points),
        )
    return found


def _four(one: Result, attack: str) -> list[tuple[Share, Share]] | None:
    """TPR and FPR of what is compared on one victim; None where one of them has none."""
    paper, at_rate, own = named(one, PAPER), named(one, AT_RATE), ours(one)
    best = None if paper is None else best_level(paper, attack)
    if paper is None or at_rate is None or own is None or best is None:
        return None
    points = [point(row) for row in (paper, at_rate, own)]
    if any("attacks" not in at for at in points):
        return None
    rates = [(at["attacks"][attack]["detected"], at["strata"]["correct"]) for at in points]
    rates.insert(2, (best[1], best[2]))
    return None if any(tpr["rate"] is None for tpr, _ in rates) else rates


def against_parts(one: Result) -> Iterator[tuple[str, Share, str, Share]]:
    """For each attack of ten successes or more what ours finds on files, and the best of its parts, by name, alone.

    All at the promised rate of 5 %.
    """
    own, parts = ours(one), {name: row for name in _PARTS if (row := named(one, name)) is not None}
    points = {name: at for name, row in parts.items() if "attacks" in (at := point(row))}
    if own is None or "attacks" not in point(own) or not points:
        return
    for attack, found in point(own)["attacks"].items():
        if found["detected"]["count"] < _LEAST:
            continue
        name = max(points, key=lambda part: points[part]["attacks"][attack]["detected"]["rate"])
        yield attack, found["detected"], name, points[name]["attacks"][attack]["detected"]


def _fixed(grid: Sequence[Result]) -> str:
    """Whether ours beats the paper's check on them, at its theta, at the same rate, and at its best level."""
    rows = [
        [
            attack,
            *(f"{percent(tpr)} | {percent(fpr)}" for tpr, fpr in one.means),
            *(f"{more}, {same} as many, of {one.victims}" for more, same in zip(one.more, one.as_many, strict=True)),
            one.left_out,
        ]
        for attack, one in fixed(grid).items()
    ]
    words = (
        "Attacks at a fixed budget, on files: mean TPR | FPR over victims (of ten successes or more); on how many"
        " victims ours finds more. *Best level*: for this attack, chosen on the test files themselves, which nobody"
        " who defends can do. *Left out*: victims on which the attack never succeeded, or one of the checks has no"
        " threshold.\n\n"
    )
    than = [f"ours more than {name}" for name in _COLUMNS[:-1]]
    return words + table(["attack", *_COLUMNS, *than, "left out"], rows)


def _compared(one: Result) -> Iterator[tuple[str, Result]]:
    own = ours(one)
    called = "ours" if own is None else own["detector"]  # with the guard or without
    for name, row in (("paper", named(one, PAPER)), ("paper at 5 %", named(one, AT_RATE)), (called, own)):
        if row is not None:
            yield name, row


def _undetected(grid: Sequence[Result]) -> str:
    rows = []
    for one in grid:
        for attack in one["attacks"]:
            for name, row in _compared(one):
                at = point(row)
                strict = row["files"]["points"][-1]
                rows.append(
                    [
                        who(one),
                        one["data_set"],
                        attack,
                        name,
                        rate(at["attacks"][attack]["undetected_success"]) if "attacks" in at else "-",
                        rate(at["attacks"][attack]["detected"]) if "attacks" in at else "-",
                        rate(strict["attacks"][attack]["detected"]) if "attacks" in strict else "-",
                        _ppv(at, attack),
                        area(row["files"]["auroc"].get(attack)),
                    ]
                )
    columns = ["victim", "data set", "attack", "detector", "undetected success", "TPR", "TPR at 1 %", "PPV", "AUROC"]
    return table(columns, rows)


def _ppv(at: Result, attack: str) -> str:
    """Without a false alarm among so few clean files nothing can be said of one in ten thousand."""
    found = at["attacks"][attack].get("ppv") if "attacks" in at and at["clean"]["hits"] else None
    return "-" if found is None else f"{found:.4f}"


def _strata(grid: Sequence[Result]) -> str:
    rows = []
    for one in grid:
        for name, row in _compared(one):
            at = point(row)
            if "strata" not in at:
                continue
            strata = [rate(at["strata"][kind]) for kind in ("correct", "misclassified", "low confidence")]
            images = at["alarms_a_day"]["images"]
            alarms = [images * bound for bound in (at["clean"]["rate"] or 0, *(at["clean"]["interval"] or (0, 0)))]
            band = at.get("band") or {}
            inside = "-" if not band else f"{band['low']}-{band['high']}: {'in' if band['inside'] else 'out'}side"
            rows.append(
                [
                    who(one),
                    one["data_set"],
                    name,
                    rate(at["clean"]),
                    inside,
                    *strata,
                    "{:.0f} ({:.0f}-{:.0f})".format(*alarms),
                ]
            )
    columns = [
        "victim",
        "data set",
        "detector",
        "all",
        "band, files",
        "answered rightly",
        "wrongly",
        "least certain fifth",
    ]
    return table([*columns, "alarms a day"], rows)


def _all(grid: Sequence[Result]) -> Iterator[str]:
    for one in grid:
        yield f"**{who(one)} on {one['data_set']}**: FPR on rightly answered files, then TPR, percent\n"
        attacks = list(one["attacks"])
        rows: list[list[object]] = []
        for row in one["rows"]:
            if "files" not in row:
                rows.append([row["detector"], row["none_because"], *[""] * len(attacks)])
                continue
            at = point(row)
            if "none_because" in at:
                rows.append([row["detector"], at["none_because"], *[""] * len(attacks)])
                continue
            cells = [counted(at["attacks"][attack]["detected"]) for attack in attacks]
            rows.append([row["detector"], counted(at["strata"]["correct"]), *cells])
        yield table(["detector", "FPR", *attacks], rows)


def _attacks(grid: Sequence[Result]) -> str:
    rows = []
    for one in grid:
        for name, attack in one["attacks"].items():
            linf, l2, seconds = (attack[key] for key in ("linf_median", "l2_median", "seconds_an_image"))
            rows.append(
                [
                    who(one),
                    one["data_set"],
                    name,
                    f"{attack['flipped']}/{attack['tried']}",
                    f"{attack['succeeded']}/{attack['tried']}",
                    "-" if linf is None else f"{linf:.4f}",
                    "-" if l2 is None else f"{l2:.3f}",
                    "-" if seconds is None else f"{seconds:.2f}",
                ]
            )
    columns = ["victim", "data set", "attack", "floats", "files", "L-inf, median", "L2, median", "seconds an image"]
    return table(columns, rows)


def _checking(grid: Sequence[Result]) -> str:
    ways = list(dict.fromkeys(way for one in grid for way in one["seconds_an_image"]))
    rows = [
        [
            who(one),
            one["data_set"],
            *(
                "-" if found is None else f"{found['times_alone']:.1f} ({found['seconds_an_image']:.3f} s)"
                for found in (one["seconds_an_image"].get(way) for way in ways)
            ),
        ]
        for one in grid
    ]
    return table(["victim", "data set", *ways], rows)


def _random(grid: Sequence[Result]) -> str:
    strengths = list(dict.fromkeys(s for one in grid for s in (one["random_noise"] or {})))
    rows = [
        [who(one), one["data_set"], *(counted((one["random_noise"] or {}).get(s)) for s in strengths)] for one in grid
    ]
    return "Share of right answers that uniform noise alone changes, percent.\n\n" + table(
        ["victim", "data set", *(f"{100 * float(s):g} %" for s in strengths)], rows
    )


def _charts(found: Result) -> Iterator[str]:
    for one in found["grid"]:
        files = found["charts"].get(f"{one['family']}/{one['data_set']}/{one['seed']}", ())
        if files:
            yield f"**{who(one)} on {one['data_set']}**\n"
        for file in files:
            what = file.rpartition("--")[2].removesuffix(".png").replace("-", " ")
            yield f"![{what}: {who(one)} on {one['data_set']}]({file})\n"
        if one["no_pictures"]:
            yield f"No figures of {who(one)} on {one['data_set']}: {one['no_pictures']}.\n"
