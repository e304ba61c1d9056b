"""Commands about held studies: look, rule, remove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import console, print_json, print_table, shorten
from dicomguard.decision import Reason

if TYPE_CHECKING:  # SQLAlchemy, imported by the commands that need it
    from dicomguard.quarantine import Held, Quarantine

Actor = Annotated[str, typer.Option("--actor", help="Who rules. Recorded.")]
Why = Annotated[str, typer.Option("--reason", help="Why. Recorded.")]
AllVersions = Annotated[bool, typer.Option("--all-versions", help="All that wait, where a study has several.")]
Item = Annotated[
    str, typer.Argument(metavar="ID", help="A decision id, 8 or more characters of one, or a Study Instance UID.")
]
_SIZE_ADVICE = (
    "  advice   more images than the enrolled clean studies can speak for. Look at the images with the highest scores"
    " (pictures below), then release or reject. To judge such studies, enrol clean ones of their size."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    quarantine = typer.Typer(no_args_is_help=True, help="Studies that are held: look, release, reject, mark, purge.")
    quarantine.command("list")(quarantine_list)
    quarantine.command("show")(quarantine_show)
    quarantine.command("release")(quarantine_release)
    quarantine.command("reject")(quarantine_reject)
    quarantine.command("mark-false")(quarantine_mark_false)
    quarantine.command("purge")(quarantine_purge)
    app.add_typer(quarantine, name="quarantine")


def quarantine_list(
    config: ConfigOption,
    everything: Annotated[bool, typer.Option("--all", help="Also what was ruled on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List held studies, oldest first."""
    with _quarantine(config) as quarantine:
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
                    held.state_in_words,
                    held.decision.decision_id[:12],
                )
                for held in found
            ),
        )


def quarantine_show(item: Item, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show one held study: every instance, its scores, and where the evidence lies."""
    with _quarantine(config) as quarantine:
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
            if Reason.UNKNOWN_STUDY_SIZE in decision.reasons:
                console.print(_SIZE_ADVICE, markup=False)
            console.print(f"  bundle   {decision.bundle} ({(decision.fingerprint or '')[:16]})", markup=False)
            console.print(
                f"  goes to  {', '.join(decision.destinations) or 'what is configured'} when released", markup=False
            )
            console.print(f"  state    {held.state_in_words}", markup=False)
            if held.review:
                review = held.review
                console.print(
                    f"  ruled    {review.action} by {review.actor} at {review.at:%Y-%m-%d %H:%M} UTC: {review.reason}",
                    markup=False,
                )
            print_table(
                "Instances",
                ("instance", "verdict", "answer", "sure", "likely", "score", "limit", "guard", "reasons", "detail"),
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
        worst.get("likely"),
        f"{worst['statistic']:.2f}" if worst else "",
        "" if threshold is None else f"{threshold:.2f}",
        (worst.get("guard") or {}).get("outcome"),
        ", ".join(instance["reasons"]),
        instance["detail"],
    )


def quarantine_release(
    item: Item,
    config: ConfigOption,
    actor: Actor,
    reason: Why,
    all_versions: AllVersions = False,
    false_hold: Annotated[
        bool, typer.Option("--false-hold", help="And record that it should never have been held: it is clean.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a held study to its destinations. Holds for this version only: late images are screened anew."""
    with _quarantine(config) as quarantine:
        ruled = quarantine.release(item, actor=actor, reason=reason, all_versions=all_versions, false_hold=false_hold)
        _print_ruled(ruled, "released", as_json=as_json)


def quarantine_reject(
    item: Item,
    config: ConfigOption,
    actor: Actor,
    reason: Why,
    all_versions: AllVersions = False,
    as_json: JsonOption = False,
) -> None:
    """Keep a held study for good, without sending it."""
    with _quarantine(config) as quarantine:
        ruled = quarantine.reject(item, actor=actor, reason=reason, all_versions=all_versions)
        _print_ruled(ruled, "rejected", as_json=as_json)


def quarantine_mark_false(
    item: Item, config: ConfigOption, actor: Actor, reason: Why, as_json: JsonOption = False
) -> None:
    """Record that a released study should never have been held. Counts against its bundle's false-hold budget."""
    with _quarantine(config) as quarantine:
        _print_ruled(quarantine.mark_false(item, actor=actor, reason=reason), "marked a false hold", as_json=as_json)


def quarantine_purge(item: Item, config: ConfigOption, actor: Actor, reason: Why, as_json: JsonOption = False) -> None:
    """Remove the files of a rejected study from the disk, for good. The ledger keeps what was decided."""
    with _quarantine(config) as quarantine:
        held, count = quarantine.purge(item, actor=actor, reason=reason)
    if as_json:
        print_json([{**held.to_json(), "removed": count}])
    else:
        console.print(f"Decision {held.decision.decision_id[:12]}: {count} file(s) removed.", markup=False)


def _print_ruled(ruled: list[Held], word: str, *, as_json: bool) -> None:
    if as_json:
        print_json(held.to_json() for held in ruled)
    for held in [] if as_json else ruled:
        console.print(f"Decision {held.decision.decision_id[:12]} {word}.", markup=False)


@contextmanager
def _quarantine(config: Path) -> Iterator[Quarantine]:
    from dicomguard.quarantine import Quarantine

    settings = compose.read_config(config)
    spool = compose.open_spool(settings, existing=True)
    names = [destination.name for destination in settings.destinations]
    with compose.open_ledger(settings, "review", existing=True) as ledger:
        yield Quarantine(spool, ledger, names)
