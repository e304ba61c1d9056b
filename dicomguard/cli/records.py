"""Commands that show what the ledger holds, and those that check the node against it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import console, print_json, print_table, shorten
from dicomguard.decision import Decision

Last = Annotated[int | None, typer.Option("--last", min=1, help="Only the newest so many.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    for command in (decisions, events, associations, doctor, verify):
        app.command()(command)


def decisions(
    config: ConfigOption,
    study: Annotated[str | None, typer.Option("--study", help="Only this Study Instance UID.")] = None,
    last: Last = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="One line a decision, for a spreadsheet.")] = False,
) -> None:
    """Show what was decided, oldest first."""
    with compose.open_ledger(compose.read_config(config), "cli", existing=True) as ledger:
        found = ledger.decisions(study_uid=study, limit=last)
        if as_json:
            print_json(decision.to_json() for decision in found)
        elif as_csv:
            _print_csv(found)
        else:
            columns = ("decided", "study", "v", "verdict", "disposition", "reasons", "images", "bundle", "decision")
            print_table("Decisions", columns, (_row(decision) for decision in found))


def _row(decision: Decision) -> tuple[object, ...]:
    return (
        f"{decision.decided_at:%Y-%m-%d %H:%M:%S}",
        shorten(decision.study_instance_uid),
        decision.version,
        decision.verdict.value,
        decision.disposition.value,
        ", ".join(decision.reasons),
        len(decision.instances),
        decision.bundle,
        decision.decision_id[:12],
    )


def _print_csv(found: Iterator[Decision]) -> None:
    names = (
        "decision_id",
        "version",
        "study_instance_uid",
        "disposition",
        "verdict",
        "reasons",
        "bundle",
        "fingerprint",
        "mode",
        "peer",
        "received_at",
        "decided_at",
        "instances",
    )
    writer = csv.DictWriter(sys.stdout, names)
    writer.writeheader()
    for decision in found:
        row = decision.to_json()
        row["reasons"] = " ".join(row["reasons"])
        row["instances"] = len(row["instances"])
        writer.writerow({name: _harmless(row[name]) for name in names})


def _harmless(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is quoted: peers choose their own AE titles and UIDs."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def events(
    config: ConfigOption,
    kind: Annotated[str | None, typer.Option("--kind", help="Only these, such as uid_conflict.")] = None,
    last: Last = None,
    as_json: JsonOption = False,
) -> None:
    """Show alarms, removals and failures, oldest first."""
    with compose.open_ledger(compose.read_config(config), "cli", existing=True) as ledger:
        found = ledger.events(kind, last)
    if as_json:
        print_json(event.to_json() for event in found)
        return
    print_table(
        "Events",
        ("at", "alarm", "event", "about", "detail"),
        (
            (
                f"{event.at:%Y-%m-%d %H:%M:%S}",
                "ALARM" if event.is_alarm else "",
                event.kind,
                shorten(event.subject_uid),
                json.dumps(event.detail),
            )
            for event in found
        ),
    )


def associations(config: ConfigOption, last: Last = None, as_json: JsonOption = False) -> None:
    """Show who asked for an association and what came of it, accepted and rejected alike, oldest first."""
    with compose.open_ledger(compose.read_config(config), "cli", existing=True) as ledger:
        found = ledger.associations(last)
    if as_json:
        print_json(event.to_json() for event in found)
        return
    print_table(
        "Associations",
        ("at", "event", "calling", "address", "called", "contexts", "instances", "detail"),
        (
            (
                f"{event.at:%Y-%m-%d %H:%M:%S}",
                event.kind.value,
                event.calling_ae,
                event.address,
                event.called_ae,
                f"{event.contexts_accepted}/{event.contexts_proposed}",
                event.instances,
                event.detail,
            )
            for event in found
        ),
    )


def doctor(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Check the configuration and everything that it points to; each failure by name, with what to do."""
    from dicomguard.cli.doctor import checks

    results = []
    for result in checks(config):
        results.append(result)
        if as_json:
            print_json([result.to_json()])
        else:
            mark = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}[result.state]
            console.print(f"{mark:>6}  ", end="")
            console.print(f"{result.name}: {result.message}", markup=False, soft_wrap=True)
    raise typer.Exit(1 if any(result.state == "fail" for result in results) else 0)


def verify(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Re-check the ledger's chains, the bytes of every kept instance, and the bundles' checksums."""
    from dicomguard.cli.verification import problems

    count = 0
    for problem in problems(compose.read_config(config)):
        count += 1
        if as_json:
            print_json([problem])
        else:
            console.print(f"{problem['what']}: {problem['message']}", markup=False, soft_wrap=True)
    if not as_json:
        console.print("Nothing is wrong." if count == 0 else f"{count} problem(s).")
    raise typer.Exit(1 if count else 0)
