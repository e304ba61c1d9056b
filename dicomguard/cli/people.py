"""Commands for people who look after the node: decisions, quarantine, deliveries, what failed, checks."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import console, print_json, print_table, shorten
from dicomguard.decision import Decision

Actor = Annotated[str, typer.Option("--actor", help="Who rules. Recorded.")]
Why = Annotated[str, typer.Option("--reason", help="Why. Recorded.")]
Item = Annotated[str, typer.Argument(metavar="ID", help="A decision id, its beginning, or a Study Instance UID.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(decisions)
    app.command()(doctor)
    app.command()(verify)
    quarantine = typer.Typer(no_args_is_help=True, help="Studies that are held: look, release, reject.")
    quarantine.command("list")(quarantine_list)
    quarantine.command("show")(quarantine_show)
    quarantine.command("release")(quarantine_release)
    quarantine.command("reject")(quarantine_reject)
    app.add_typer(quarantine, name="quarantine")
    deliveries = typer.Typer(no_args_is_help=True, help="Where forwarded instances stand.")
    deliveries.command("list")(deliveries_list)
    deliveries.command("retry")(deliveries_retry)
    app.add_typer(deliveries, name="deliveries")
    failed = typer.Typer(no_args_is_help=True, help="Claims that could not be screened three times.")
    failed.command("list")(failed_list)
    failed.command("requeue")(failed_requeue)
    app.add_typer(failed, name="failed")


def decisions(
    config: ConfigOption,
    study: Annotated[str | None, typer.Option("--study", help="Only this Study Instance UID.")] = None,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only the newest so many.")] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="One line a decision, for a spreadsheet.")] = False,
) -> None:
    """Show what was decided, oldest first."""
    with compose.open_ledger(compose.read_config(config), "cli") as ledger:
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


def quarantine_list(
    config: ConfigOption,
    everything: Annotated[bool, typer.Option("--all", help="Also what was ruled on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List held studies, oldest first."""
    with _quarantine(config) as (quarantine, _):
        found = quarantine.held(include_ruled=everything)
        if as_json:
            print_json(held.to_json() for held in found)
            return
        print_table(
            "Quarantine",
            ("since", "study", "v", "verdict", "reasons", "images", "from", "state", "decision"),
            (
                (
                    f"{held.decision.decided_at:%Y-%m-%d %H:%M:%S}",
                    shorten(held.decision.study_instance_uid),
                    held.decision.version,
                    held.decision.verdict.value,
                    ", ".join(held.decision.reasons),
                    len(held.decision.instances),
                    held.decision.peer,
                    held.to_json()["state"],
                    held.decision.decision_id[:12],
                )
                for held in found
            ),
        )


def quarantine_show(item: Item, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show one held study: every instance, its scores, and where the evidence lies."""
    with _quarantine(config) as (quarantine, _):
        for held in quarantine.find(item):
            if as_json:
                print_json([held.to_json()])
                continue
            decision = held.decision
            console.print(f"Decision {decision.decision_id}, version {decision.version}", style="bold", markup=False)
            console.print(f"  study    {decision.study_instance_uid}", markup=False)
            console.print(
                f"  from     {decision.peer}, received {decision.received_at:%Y-%m-%d %H:%M:%S} UTC", markup=False
            )
            console.print(f"  verdict  {decision.verdict.value}: {', '.join(decision.reasons)}", markup=False)
            console.print(f"  bundle   {decision.bundle} ({(decision.fingerprint or '')[:16]})", markup=False)
            console.print(f"  goes to  {', '.join(decision.destinations)} when released", markup=False)
            if held.review:
                review = held.review
                console.print(
                    f"  ruled    {review.action} by {review.actor} at {review.at:%Y-%m-%d %H:%M} UTC: {review.reason}",
                    markup=False,
                )
            print_table(
                "Instances",
                ("instance", "verdict", "answer", "probability", "statistic", "threshold", "reasons", "detail"),
                (_instance_row(instance) for instance in held.to_json()["instances"]),
            )
            if held.evidence is not None:
                console.print(f"Evidence: {held.evidence}", markup=False, soft_wrap=True)


def _instance_row(instance: dict[str, Any]) -> tuple[object, ...]:
    scores = instance["scores"] or {}
    worst = scores.get("worst", {})
    threshold = scores.get("thresholds", {}).get("statistic")
    return (
        shorten(instance["sop_instance_uid"]),
        instance["verdict"],
        worst.get("predicted"),
        f"{worst['probability']:.3f}" if worst else "",
        f"{worst['statistic']:.2f}" if worst else "",
        "" if threshold is None else f"{threshold:.2f}",
        ", ".join(instance["reasons"]),
        instance["detail"],
    )


def quarantine_release(
    item: Item, config: ConfigOption, actor: Actor, reason: Why, as_json: JsonOption = False
) -> None:
    """Send a held study to its destinations. Holds for this version only: late images are screened anew."""
    with _quarantine(config) as (quarantine, _):
        _print_ruled(quarantine.release(item, actor=actor, reason=reason), "released", as_json=as_json)


def quarantine_reject(item: Item, config: ConfigOption, actor: Actor, reason: Why, as_json: JsonOption = False) -> None:
    """Keep a held study for good, without sending it."""
    with _quarantine(config) as (quarantine, _):
        _print_ruled(quarantine.reject(item, actor=actor, reason=reason), "rejected", as_json=as_json)


def _print_ruled(ruled: list[Any], word: str, *, as_json: bool) -> None:
    if as_json:
        print_json(held.to_json() for held in ruled)
    for held in [] if as_json else ruled:
        console.print(f"Decision {held.decision.decision_id[:12]} {word}.", markup=False)


class _quarantine:  # noqa: N801  # reads as the `with` statement that it is
    """The quarantine with its ledger, closed afterwards."""

    def __init__(self, config: Path) -> None:
        from dicomguard.quarantine import Quarantine

        settings = compose.read_config(config)
        self._ledger = compose.open_ledger(settings, "review")
        names = [destination.name for destination in settings.destinations]
        self._quarantine = Quarantine(compose.open_spool(settings), self._ledger, names)

    def __enter__(self) -> tuple[Any, Any]:
        return self._quarantine, self._ledger

    def __exit__(self, *_: object) -> None:
        self._ledger.close()


def deliveries_list(
    config: ConfigOption,
    state: Annotated[str | None, typer.Option("--state", help="queued, sending, retry, dead, delivered, ...")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Only this Study Instance UID.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where every forwarded instance stands with every destination."""
    from dicomguard.ledger import DeliveryState

    if state is not None and state not in list(DeliveryState):
        raise typer.BadParameter(f"choose one of {', '.join(DeliveryState)}", param_hint="--state")
    with compose.open_ledger(compose.read_config(config), "cli") as ledger:
        found = ledger.deliveries(state=None if state is None else DeliveryState(state), study_uid=study)
    if as_json:
        print_json(delivery.to_json() for delivery in found)
        return
    print_table(
        "Deliveries",
        ("changed", "destination", "instance", "state", "attempt", "status", "what was said"),
        (
            (
                f"{d.at:%Y-%m-%d %H:%M:%S}",
                d.destination,
                shorten(d.sop_instance_uid),
                d.state.value,
                d.attempt,
                "" if d.status is None else f"0x{d.status:04X}",
                d.error,
            )
            for d in found
        ),
    )


def deliveries_retry(
    config: ConfigOption,
    destination: Annotated[str | None, typer.Option("--destination", help="Only this one.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Only this Study Instance UID.")] = None,
) -> None:
    """Send again what a destination refused for good, after somebody mended the cause."""
    from dicomguard.deliver import retry

    settings = compose.read_config(config)
    with compose.open_ledger(settings, "cli") as ledger:
        count = retry(compose.open_spool(settings), ledger, destination=destination, study_uid=study)
    console.print(f"{count} instance(s) are queued again.")


def failed_list(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List claims that could not be screened three times, and files that are none of this node's."""
    spool = compose.open_spool(compose.read_config(config))
    found: list[dict[str, Any]] = [
        {
            "claim_id": claim.claim_id,
            "studies": sorted({i.study_instance_uid for i in claim.instances}),
            "instances": len(claim.instances),
            "strangers": [path.name for path in claim.strangers],
            "folder": str(claim.folder),
        }
        for claim in spool.failed()
    ]
    if as_json:
        print_json(found)
        return
    print_table(
        "Failed",
        ("claim", "studies", "instances", "unreadable", "folder"),
        ((f["claim_id"], ", ".join(f["studies"]), f["instances"], len(f["strangers"]), f["folder"]) for f in found),
    )


def failed_requeue(
    claim: Annotated[str, typer.Argument(metavar="CLAIM", help="A claim id, or its beginning.")], config: ConfigOption
) -> None:
    """Screen a failed claim again, as if its instances had just come."""
    from dicomguard.spool.store import find_failed

    settings = compose.read_config(config)
    spool = compose.open_spool(settings)
    found = find_failed(spool, claim)
    with compose.open_ledger(settings, "cli") as ledger:
        for uid in sorted({instance.study_instance_uid for instance in found.instances}):
            ledger.record_event("requeued", uid, {"claim_id": found.claim_id})
    console.print(f"{spool.requeue(found)} instance(s) wait to be screened again.")


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
