"""Commands about what is on its way: deliveries to destinations, and claims that could not be screened."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import console, print_json, print_table, shorten
from dicomguard.config import Config
from dicomguard.errors import ReviewError

Destination = Annotated[str | None, typer.Option("--destination", help="Only this one.")]
Claim = Annotated[str, typer.Argument(metavar="CLAIM", help="A claim id, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    deliveries = typer.Typer(no_args_is_help=True, help="Where forwarded instances stand.")
    deliveries.command("list")(deliveries_list)
    deliveries.command("retry")(deliveries_retry)
    deliveries.command("resend")(deliveries_resend)
    app.add_typer(deliveries, name="deliveries")
    failed = typer.Typer(no_args_is_help=True, help="Claims that could not be screened three times.")
    failed.command("list")(failed_list)
    failed.command("requeue")(failed_requeue)
    failed.command("purge")(failed_purge)
    app.add_typer(failed, name="failed")


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
    with compose.open_ledger(compose.read_config(config), "cli", existing=True) as ledger:
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
    destination: Destination = None,
    study: Annotated[str | None, typer.Option("--study", help="Only this Study Instance UID.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send again what a destination refused for good, after somebody mended the cause."""
    from dicomguard.deliver import retry

    settings = compose.read_config(config)
    _check_destination(settings, destination)
    spool = compose.open_spool(settings, existing=True)
    with compose.open_ledger(settings, "cli", existing=True) as ledger:
        count = retry(spool, ledger, destination=destination, study_uid=study)
    _print_queued(count, as_json=as_json)


def deliveries_resend(
    study: Annotated[str, typer.Option("--study", help="The Study Instance UID.")],
    config: ConfigOption,
    destination: Destination = None,
    as_json: JsonOption = False,
) -> None:
    """Send a forwarded study once more, for a destination that lost it, as long as it is in the store."""
    from dicomguard.deliver import resend

    settings = compose.read_config(config)
    _check_destination(settings, destination)
    spool = compose.open_spool(settings, existing=True)
    names = [section.name for section in settings.destinations]
    with compose.open_ledger(settings, "cli", existing=True) as ledger:
        count = resend(spool, ledger, study, configured=names, destination=destination)
    _print_queued(count, as_json=as_json)


def _check_destination(config: Config, name: str | None) -> None:
    known = [destination.name for destination in config.destinations]
    if name is not None and name not in known:
        raise typer.BadParameter(
            f"no destination is called {name}; configured: {', '.join(known) or 'none'}", param_hint="--destination"
        )


def _print_queued(count: int, *, as_json: bool) -> None:
    if as_json:
        print_json([{"queued": count}])
    else:
        console.print(f"{count} instance(s) are queued again.")


def failed_list(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List claims that could not be screened three times, and files that are none of this node's."""
    spool = compose.open_spool(compose.read_config(config), existing=True)
    found: list[dict[str, Any]] = [
        {
            "claim_id": claim.claim_id,
            "studies": sorted({i.study_instance_uid for i in claim.instances}),
            "instances": len(claim.instances),
            "strangers": [path.name for path in (*claim.strangers, *claim.unreadable)],
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


def failed_requeue(claim: Claim, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Screen a failed claim again, as if its instances had just come."""
    from dicomguard.ledger import EventKind
    from dicomguard.spool.store import find_failed

    settings = compose.read_config(config)
    spool = compose.open_spool(settings, existing=True)
    found = find_failed(spool, claim)
    with compose.open_ledger(settings, "cli", existing=True) as ledger:
        for uid in sorted({instance.study_instance_uid for instance in found.instances}):
            ledger.record_event(EventKind.REQUEUED, uid, {"claim_id": found.claim_id})
    count = spool.requeue(found)
    if as_json:
        print_json([{"claim_id": found.claim_id, "queued": count}])
    else:
        console.print(f"{count} instance(s) wait to be screened again.")


def failed_purge(
    claim: Claim,
    config: ConfigOption,
    actor: Annotated[str, typer.Option("--actor", help="Who removes it. Recorded.")],
    reason: Annotated[str, typer.Option("--reason", help="Why. Recorded.")],
    as_json: JsonOption = False,
) -> None:
    """Remove the files of a failed claim from the disk, for good. The ledger keeps what they were."""
    from dicomguard.ledger import EventKind
    from dicomguard.spool.store import find_failed

    actor, reason = actor.strip(), reason.strip()
    if not actor or not reason:
        raise ReviewError("A removal needs an actor and a reason.", advice="Give both; they are recorded.")
    settings = compose.read_config(config)
    spool = compose.open_spool(settings, existing=True)
    found = find_failed(spool, claim)
    studies = sorted({instance.study_instance_uid for instance in found.instances})
    detail = {
        "claim_id": found.claim_id,
        "actor": actor,
        "reason": reason,
        "studies": studies,
        "instances": [{"sop_instance_uid": i.sop_instance_uid, "sha256": i.receipt.sha256} for i in found.instances],
        "strangers": len(found.files) - len(found.instances),
    }
    with compose.open_ledger(settings, "cli", existing=True) as ledger:
        # Before anything goes: a crash in between leaves a record that saying it again makes true.
        ledger.record_event(EventKind.FAILED_PURGED, studies[0] if len(studies) == 1 else "", detail)
    count = spool.purge_failed(found)
    if as_json:
        print_json([{"claim_id": found.claim_id, "removed": count}])
    else:
        console.print(f"{count} file(s) of claim {found.claim_id} removed.", markup=False)
