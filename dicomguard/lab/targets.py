"""Every target that was set, beside what was measured: reached, or missed by how much and why.

Why stands in docs/results/reasons.yaml, one sentence for each target that is missed, by the id that is given here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dicomguard.lab.recipes import RECIPES

TPR = {0.05: 0.97, 0.01: 0.90}
CERTIFIED = {0.004: (0.85, 0.92), 0.008: (0.76, 0.85), 0.012: (0.62, 0.75), 0.016: (None, 0.65)}
LEAST_FILES = 300  # attacked files that a figure should rest on
ATTEMPTS = 2000
_DECISIONS = 1000  # to be made again
SIZES = {1: None, 10: 2, 100: 5, 500: 12}  # images of a study, and how few attacked ones should be found
NOT_MEASURED = "not measured yet"
LACKING = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    StopIteration,
)  # what a result of an earlier format makes of a reader

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured, in words; `missed`: by how much, empty where it is reached, None where there is no target."""

    measured: str
    missed: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """`id` as reasons are filed; `words`: what was asked; `found` raises one of `LACKING` where it was not measured."""

    id: str
    words: str
    found: Callable[[], Found]


def table(targets: Iterator[Target], reasons: Mapping[str, str], absent: Mapping[str, str]) -> Iterator[str]:
    """Markdown. `absent`: by the last part of a target's id before its first dash, why its result is not read."""
    yield "| target | measured | reached |"
    yield "|---|---|---|"
    for target in targets:
        kind = target.id.rpartition("/")[2].partition("-")[0]
        try:
            found = target.found()
        except LACKING:
            found = Found(absent.get(kind, NOT_MEASURED))
        reached = {None: "", "": "yes"}.get(found.missed, f"**no**, {found.missed}")
        if found.missed:
            reached += f"; {reasons.get(target.id, 'reason not written yet')} ({target.id})"
        yield f"| {target.words} | {found.measured} | {reached} |"
    yield ""


def of_bundle(name: str, results: Mapping[str, Result]) -> Iterator[Target]:
    """Of rates, certificates and speed; `results` by kind, those that cannot be read left out."""
    yield from _files(name, results.get("score"))
    yield from _certificates(name, results.get("certificates"))
    yield from _speed(name, results)


def _files(name: str, result: Result | None) -> Iterator[Target]:
    reports: Mapping[int, Result] = {report["bits"]: report for report in (result or {}).get("reports", ())}
    yield Target(f"{name}/score-fpr", "clean files flagged as shipped, in the band of alpha", lambda: _in_turn(result))
    for bits in sorted(set(RECIPES[name].bits) - set(reports)) if reports and name in RECIPES else ():
        yield Target(
            f"{name}/score-tpr-{bits}",
            f"each attack flagged, {bits} bits",
            lambda bits=bits: _flagged(reports[bits], 0.05),  # type: ignore[misc]
        )
    for bits in sorted(reports) or (0,):
        depth, end = (f", {bits} bits", f"-{bits}") if bits else ("", "")
        for alpha, aim in TPR.items():
            yield Target(
                f"{name}/score-fpr-{alpha:g}{end}",
                f"clean files flagged, calibrated at alpha {alpha:g}{depth}, in the band",
                lambda bits=bits, alpha=alpha: _inside(_row(reports[bits], "ours", alpha)),  # type: ignore[misc]
            )
            yield Target(
                f"{name}/score-tpr-{alpha:g}{end}",
                f"each attack flagged at alpha {alpha:g}{depth}, >= {aim:g}",
                lambda bits=bits, alpha=alpha: _flagged(reports[bits], alpha),  # type: ignore[misc]
            )
        yield Target(
            f"{name}/score-files{end}",
            f"attacked files, each attack{depth}, >= {LEAST_FILES}",
            lambda bits=bits: _counted(reports[bits]),  # type: ignore[misc]
        )
        yield Target(
            f"{name}/score-passes{end}",
            f"passes of the noise check alone for a clean file{depth}, <= 7 on average",
            lambda bits=bits: _at_most(_row(reports[bits], "noise check alone", 0.05)["passes_clean"], 7),  # type: ignore[misc]
        )
        yield Target(
            f"{name}/score-cascade{end}",
            f"TPR that its early exits lose{depth}, <= 1 point",
            lambda bits=bits: _loss(reports[bits]),  # type: ignore[misc]
        )


def _row(report: Result, rule: str, alpha: float) -> Result:
    return next(row for row in report["rows"] if row["rule"] == rule and row["alpha"] == alpha)


def _in_turn(result: Result | None) -> Found:
    _require(result)
    row = result.get("in_turn")  # type: ignore[union-attr]
    if row is None:  # one depth, for which the threshold was fitted
        (report,) = result["reports"]  # type: ignore[index]
        row = report["rows"][0]
    return _inside(row)


def _require(result: Result | None) -> None:
    """Raises KeyError where there is no result."""
    if result is None:
        raise KeyError(NOT_MEASURED)


def _inside(row: Result) -> Found:
    clean, band = row["clean"], row["band"]
    low, high, hits = band["low"], band["high"], clean["hits"]
    over = hits - high if hits > high else low - hits
    missed = "" if low <= hits <= high else f"{over} files {'above' if hits > high else 'below'}"
    return Found(f"{clean['rate']:.3f}: {hits} of {clean['count']}, band {low}-{high}", missed)


def _flagged(report: Result, alpha: float) -> Found:
    shipped = report["rows"][0]
    row = shipped if shipped["alpha"] == alpha else _row(report, "ours", alpha)
    rates = {attack: found["rate"] for attack, found in row["attacks"].items() if found["rate"] is not None}
    lacking = [f"{attack} by {TPR[alpha] - rate:.3f}" for attack, rate in rates.items() if rate < TPR[alpha]]
    lacking += [f"{attack} never changed an answer" for attack in row["attacks"] if attack not in rates]
    words = ", ".join(f"{attack} {rate:.3f}" for attack, rate in rates.items())
    return Found(f"{row['rule']}: {words}", "; ".join(lacking))


def _counted(report: Result) -> Found:
    counts = {attack: found["count"] for attack, found in report["rows"][0]["attacks"].items()}
    lacking = [f"{attack} by {LEAST_FILES - count}" for attack, count in counts.items() if count < LEAST_FILES]
    return Found(", ".join(f"{attack} {count}" for attack, count in counts.items()), "; ".join(lacking))


def _loss(report: Result) -> Found:
    worst, high, low, words = max(
        (loss["loss"], loss["high"], loss["low"], f"{attack}, alpha {alpha}")
        for alpha, losses in report["cascade_loss"].items()
        for attack, loss in losses.items()
    )
    measured = f"at worst {100 * worst:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}; {words})"
    return Found(measured, "" if worst <= 0.01 else f"by {100 * worst - 1:.1f} points")


def _certificates(name: str, result: Result | None) -> Iterator[Target]:
    for eps, (target, aim) in CERTIFIED.items():
        words = f"certified clean files at eps {eps:g}, " + (
            f">= {target:g} (aim {aim:g})" if target else f"aim {aim:g}"
        )
        yield Target(
            f"{name}/certificates-{eps:g}",
            words,
            lambda eps=eps, target=target: _certified(_budget(result, eps), target),  # type: ignore[misc]
        )
    yield Target(
        f"{name}/certificates-seconds",
        "seconds of the guard for a clean file at eps 0.004, two cores, <= .3 on average",
        lambda: _seconds(_budget(result, 0.004)),
    )


def _budget(result: Result | None, eps: float) -> Result:
    _require(result)
    return next(row for row in result["rows"] if row["eps"] == eps)  # type: ignore[index]


def _certified(row: Result, target: float | None) -> Found:
    found = row["certified"]
    low, high = found["interval"]
    words = f"{found['rate']:.3f} ({found['hits']}/{found['count']}, {low:.3f}-{high:.3f})"
    if target is None:
        return Found(words)
    return Found(words, "" if found["rate"] >= target else f"by {target - found['rate']:.3f}")


def _seconds(row: Result) -> Found:
    mean = row["seconds_mean"]
    words = f"{mean:.3f}, p95 {row['seconds_p95']:.3f}, on {row['threads']} thread(s)"
    return Found(words, "" if mean <= 0.3 else f"by {mean - 0.3:.3f} s")


def _at_most(value: float, limit: float) -> Found:
    return Found(f"{value:.1f}", "" if value <= limit else f"by {value - limit:.1f}")


def _speed(name: str, results: Mapping[str, Result]) -> Iterator[Target]:
    soundness, speed, card, again = (results.get(kind) for kind in ("soundness", "speed", "card", "reproduce"))
    yield Target(
        f"{name}/soundness-attempts", f"adaptive attempts on certificates, >= {ATTEMPTS}", lambda: _many(soundness)
    )
    yield Target(f"{name}/soundness-falsified", "falsified certificates, none", lambda: _falsified(soundness))
    for key, id_, words, least in (
        ("times_as_fast_as_41", "41", "41 eager float32 passes", 8.0),
        ("times_as_fast_as_9", "9", "9 eager float32 passes", 2.0),
        ("times_as_fast_per_pass", "pass", "an eager float32 pass at equal batch, each pass", 1.5),
    ):
        yield Target(
            f"{name}/speed-{id_}",
            f"noise check as fast as {words}, >= {least:g} times",
            lambda key=key, least=least: _ratio(speed, key, least),  # type: ignore[misc]
        )
    yield Target(f"{name}/reproduce-agree", "1,000 recorded decisions made again, all agree", lambda: _agree(again))
    yield Target(
        f"{name}/card-throughput",
        "on a card, of the plain model's forward at as many passes, >= .80",
        lambda: _on_card(card),
    )


def _agree(result: Result | None) -> Found:
    _require(result)
    count, agrees = result["decisions"], result["agrees"]  # type: ignore[index]
    short = max(_DECISIONS - agrees, count - agrees)
    return Found(f"{agrees} of {count}", "" if short <= 0 else f"by {short}")


def _many(result: Result | None) -> Found:
    _require(result)
    count = result["attempts"]  # type: ignore[index]
    could = result["a"]["judged"]  # type: ignore[index]
    words = f"{count}, of which {could} changed the model's answer on agreeing bases and could contradict"
    return Found(words, "" if count >= ATTEMPTS else f"by {ATTEMPTS - count}")


def _falsified(result: Result | None) -> Found:
    _require(result)
    count, judged = result["a"]["falsifications"], result["a"]["judged"]  # type: ignore[index]
    words = f"{count} of {judged} attempts that were judged"
    if count is None or not judged:
        return Found(words)
    if result.get("sound", True):  # type: ignore[union-attr]
        return Found(words, "" if count == 0 else f"by {count}")
    return Found(words, f"by {count}, or more contradictions than chance makes")


def _ratio(result: Result | None, key: str, least: float) -> Found:
    _require(result)
    found = result[key]  # type: ignore[index]
    words = f"{found['median']:.1f} times ({found['low']:.1f}-{found['high']:.1f})"
    return Found(words, "" if found["median"] >= least else f"by {least - found['median']:.1f}")


def _on_card(result: Result | None) -> Found:
    _require(result)
    rows = sorted(result["throughput"], key=lambda row: row["batch"])  # type: ignore[index]
    words = ", ".join(f"{row['of_plain_forward']['median']:.2f} in batches of {row['batch']}" for row in rows)
    short = [row for row in rows if row["of_plain_forward"]["median"] < 0.8]
    lacking = [f"by {0.8 - row['of_plain_forward']['median']:.2f} in batches of {row['batch']}" for row in short]
    return Found(f"{words} on {rows[0]['card']}", "; ".join(lacking))


def of_studies(results: Mapping[float, Result]) -> Iterator[Target]:
    """Of false holds and power of studies; `results` by alpha."""
    for alpha in (0.1, 0.05):
        for size, aim in SIZES.items():
            yield Target(
                f"studies/hold-{alpha:g}-{size}",
                f"clean studies of {size} held at alpha {alpha:g}, in the band",
                lambda alpha=alpha, size=size: _held(results[alpha]["sizes"][str(size)]),  # type: ignore[misc]
            )
            if aim is not None:
                yield Target(
                    f"studies/power-{alpha:g}-{size}",
                    f"fewest attacked of {size} images found with power .9 at alpha {alpha:g}, aim <= {aim}",
                    lambda alpha=alpha, size=size, aim=aim: _fewest(results[alpha]["sizes"][str(size)], aim),  # type: ignore[misc]
                )


def _held(row: Result) -> Found:
    held = row["false_holds"]
    if not held["promise"]:
        return Found(f"{held['studies']} studies are too few to promise anything")
    (low, high), found = held["band"], held["one_split"]
    over = found["hits"] - high if found["hits"] > high else low - found["hits"]
    words = f"{found['hits']} of {found['count']}, band {low}-{high}; mean of splits {held['mean_of_splits']:.3f}"
    return Found(words, "" if low <= found["hits"] <= high else f"by {over} stud{'y' if over == 1 else 'ies'}")


def _fewest(row: Result, aim: int) -> Found:
    counts = {name: count for name, count in row["fewest"].items() if name != "loud"}
    lacking = [
        f"{name} never" if count is None else f"{name} by {count - aim}"
        for name, count in counts.items()
        if count is None or count > aim
    ]
    words = ", ".join(f"{name} {'none' if count is None else count}" for name, count in counts.items())
    at = row.get("power_alpha")
    return Found(words + ("" if at is None else f" (alpha {at:g})"), "; ".join(lacking))
