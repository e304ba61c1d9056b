"""The command that shows whether the images are still like those of the enrolment, and what is left of the budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import console, print_json, print_table
from dicomguard.errors import NotFoundError

if TYPE_CHECKING:  # SQLAlchemy, imported by the commands that need it
    from dicomguard.ledger import Ledger
    from dicomguard.screen.budget import FalseHoldBudget
    from dicomguard.screen.watch import Stream

_FEW_PATIENTS = "few_patients"
_ALARMING = frozenset({"moved", "more_alarms", "spent", _FEW_PATIENTS})


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(drift)


def drift(
    config: ConfigOption,
    bundle: Annotated[str | None, typer.Option("--bundle", help="Only this protected model.")] = None,
    peer: Annotated[str | None, typer.Option("--peer", help="Only this sender's AE title.")] = None,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Draw the p-values beside what is expected of them.")
    ] = None,
) -> None:
    """Show whether p-values are still uniform, for each bundle and sender. Exit 1 where they are not."""
    from dicomguard.screen.watch import Streams

    settings = compose.read_config(config)
    with compose.open_ledger(settings, "cli", existing=True) as ledger:
        shown = [
            stream
            for stream in Streams(ledger, settings.drift.window_studies, compose.enrolments(settings))
            if bundle in {None, stream.bundle} and peer in {None, stream.sender}
        ]
        rows = [_row(ledger, stream, settings.drift.level) for stream in shown]
        used = {stream.bundle for stream in shown}
        budget = [] if peer else _budget(ledger, compose.false_hold_budget(settings), used, bundle)
    if not (rows or budget) and (bundle is not None or peer is not None):
        raise NotFoundError(
            "Nothing was drawn for this bundle and sender.",
            advice="'dicomguard drift' without --bundle and --peer shows all that there are.",
        )
    if as_json:
        print_json([*rows, *budget])
    else:
        _print(rows, budget)
    if plot is not None:
        from dicomguard.cli.drift_plot import draw

        draw(shown, plot)
    raise typer.Exit(1 if any(row["state"] in _ALARMING for row in [*rows, *budget]) else 0)


def _row(ledger: Ledger, stream: Stream, level: float) -> dict[str, Any]:
    from dicomguard.screen import drift as tests
    from dicomguard.screen import watch

    looks = stream.looks()
    state = tests.State.COLLECTING
    if looks:
        state = tests.judge(looks, level, watch.standing(ledger, stream))
    # What moved is said first; that nothing new can be seen, where all else would be well.
    is_blind = stream.has_few_patients and state.value not in _ALARMING
    return {
        "bundle": stream.bundle,
        "model": stream.model,
        "sender": stream.sender or None,
        "enrolment": stream.baseline.enrolment,
        "calibration_images": stream.baseline.images,
        "alpha": stream.baseline.alpha,
        "studies": stream.drawn,
        "window": stream.window,
        "unfinished": stream.unfinished,
        "through": None if stream.through_at is None else stream.through_at.isoformat(),
        "looks": [watch.look_json(look) for look in looks],
        "state": _FEW_PATIENTS if is_blind else state.value,
        "advice": watch.advice(stream, tests.State.COLLECTING if is_blind else state),
    }


def _budget(ledger: Ledger, budget: FalseHoldBudget, used: set[str], only: str | None) -> list[dict[str, Any]]:
    from dicomguard.study import utc_now

    found = []
    for bundle, count in sorted(budget.counts(ledger, utc_now()).items()):
        # A bundle that scored nothing, and held nothing wrongly of late, has nothing to say.
        if (bundle in used or count) and only in {None, bundle}:
            is_spent = count > budget.holds
            row = {"bundle": bundle, "false_holds": count, "budget": budget.holds, "days": budget.days}
            advice = budget.proposal(bundle) if is_spent else ""
            found.append({**row, "state": "spent" if is_spent else "within", "advice": advice})
    return found


def _print(rows: list[dict[str, Any]], budget: list[dict[str, Any]]) -> None:
    print_table(
        "P-values against the enrolment",
        ("bundle", "sender", "studies", "to come", "m", "newest", "distance", "shift", "flagged", "p", "state"),
        (cells for row in rows for cells in _cells(row)),
    )
    if not rows:
        console.print("P-values come with decisions of an enrolled bundle; one is drawn from each study.", markup=False)
    if budget:
        print_table(
            "False holds",
            ("bundle", "marked", "budget", "state"),
            ((b["bundle"], b["false_holds"], f"{b['budget']} in {b['days']:g} days", b["state"]) for b in budget),
        )
    for row in (*rows, *budget):
        if row["state"] in _ALARMING:
            model = row.get("model", row["bundle"])
            whose = f"{model} from {row['sender']}" if row.get("sender") else model
            console.print(f"{whose}, {row['state']}: {row['advice']}", markup=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[tuple[object, ...]]:
    """A line for each scale, the stream's own words on the first."""
    left = row["window"] - row["unfinished"]
    head = (row["model"], row["sender"] or "(all)", row["studies"], left, row["calibration_images"])
    looks = [
        (
            look["images"],
            f"{look['distance']:.3f}",
            f"{look['shift']:+.1f}",
            "{} ({} to {})".format(look["flags"], *look["expected_flags"]),
            f"{look['p']:.2g}",
        )
        for look in row["looks"]
    ] or [("", "", "", "", "")]
    return [
        (*(head if place == 0 else ("",) * len(head)), *cells, row["state"] if place == 0 else "")
        for place, cells in enumerate(looks)
    ]
