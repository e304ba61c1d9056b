"""`dicomguard lab offline`: the files of a manifest scored without the node, and held against what it decided."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import JsonOption
from dicomguard.cli.lab.join import KeyFile, LedgerFile, Manifest, NodeConfig, records
from dicomguard.cli.output import Bars, console, print_json, print_table
from dicomguard.decision import Decision, Fault, InstanceDecision, Policy
from dicomguard.errors import ConfigError, DicomguardError

if TYPE_CHECKING:  # torch and SQLAlchemy, imported by the command
    from dicomguard.cli.lab.join import Records
    from dicomguard.pixels.sandbox import DecodeWorker
    from dicomguard.screen.locate import Altered, Located, Lost
    from dicomguard.screen.outcome import Reproduction
    from dicomguard.screen.reproduce import Reproducer


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command()(offline)


def offline(
    manifest: Manifest,
    config: NodeConfig = None,
    ledger: LedgerFile = None,
    site_key: KeyFile = None,
    bundle: Annotated[
        list[Path] | None,
        typer.Option("--bundle", metavar="DIR", help="What the node protects, beside the configured ones."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="How far numbers may lie apart: absolute, plus relative.")
    ] = 0.02,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="For offline.json (default: joined/ beside the manifest)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a manifest's files here, with the node's key and the one scorer, and hold that against its ledger.

    Exit 1 when a decision comes out differently, or a file has none.
    """
    from dicomguard.lab import whole
    from dicomguard.lab.command import line
    from dicomguard.lab.live import manifest as manifests
    from dicomguard.lab.live.accounts import account
    from dicomguard.screen.past import past_of

    rows = manifests.read(manifest)
    with records(config, ledger, site_key) as node:
        accounts = list(account(rows, node.ledger))
        paths = {
            (one.row.sop_instance_uid, one.instance.sha256): manifest.parent / one.row.path
            for one in accounts
            if one.is_decided and one.instance is not None and one.row.path
        }
        decisions = {one.decision.decision_id: one.decision for one in accounts if one.is_decided and one.decision}
        if not decisions:
            raise DicomguardError(
                "The ledger has no decision about a file of this manifest.",
                advice="Send them first, and wait until they are decided; see 'dicomguard lab join'.",
            )
        made: list[tuple[Decision, Reproduction]] = []
        with compose.plain_decode_worker(config) as worker, Bars(quiet=as_json) as bars:
            reproducer = _reproducer(node, bundle or [], worker, tolerance)
            for done, decision in enumerate(decisions.values(), 1):
                found = [_find(recorded, worker, paths) for recorded in decision.instances]
                made.append((decision, reproducer.reproduce(decision, found, past_of(node.ledger, decision))))
                bars("score offline", done, len(decisions))
    counts = Counter(result.outcome.value for _, result in made)
    undecided = [one for one in accounts if not one.is_decided]
    summary = {
        "command": line("dicomguard", sys.argv[1:]),
        "files": len(accounts),
        "not_decided_by_the_node": len(undecided),
        "decisions": len(made),
        "agree": counts["agrees"],
        "outcomes": dict(counts),
        "instances_recomputed": sum(result.recomputed for _, result in made),
        "largest_distance": max((r.largest_distance for _, r in made if r.largest_distance is not None), default=None),
        "tolerance": tolerance,
    }
    results = [{"study_instance_uid": d.study_instance_uid, **r.to_json()} for d, r in made]
    path = (out or manifest.parent / "joined") / "offline.json"
    whole.write_json(path, {**summary, "of_decisions": results})
    if as_json:
        print_json([summary])
    else:
        _show(made, summary)
    agrees = counts["agrees"] == len(made) and not undecided
    raise typer.Exit(0 if agrees else 1)


def _reproducer(node: Records, bundles: Sequence[Path], worker: DecodeWorker, tolerance: float) -> Reproducer:
    """The node's own examination with the node's key, for the configured bundles and those that were named."""
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.screen.compare import Tolerance
    from dicomguard.screen.examine import Examiner
    from dicomguard.screen.protected import Protected
    from dicomguard.screen.reproduce import Reproducer
    from dicomguard.screen.verdicts import Rules

    settings = node.settings
    configured = [] if settings is None else [(section.path, section.enrolment) for section in settings.bundles]
    chosen = [*configured, *((path, None) for path in bundles)]
    if not chosen:
        raise ConfigError("No bundle was named.", advice="Name what the node protects with --bundle.")
    models = [Protected(Scorer.load(path, enrolment), {}, "shadow") for path, enrolment in chosen]
    rules = Rules(Policy(), "enforce", (), lambda _: "") if settings is None else compose.rules(settings)
    noise_key = node.key.for_purpose("noise")
    return Reproducer(models, lambda some: Examiner(worker, some, noise_key), rules, Tolerance(tolerance, tolerance))


def _find(
    recorded: InstanceDecision, worker: DecodeWorker, paths: Mapping[tuple[str, str], Path]
) -> Located | Altered | Lost:
    """The file of the set that the node recorded as this instance, to the last byte."""
    from dicomguard.screen.files import opened
    from dicomguard.screen.locate import Altered, Located, Lost

    path = paths.get((str(recorded.sop_instance_uid), recorded.sha256))
    if path is None or not path.is_file():
        return Lost(recorded, None)
    found = opened(path.absolute(), worker)  # the sandbox works in a folder of its own
    if isinstance(found, Fault):
        return Altered(recorded, str(path.parent), f"{found.reason.value}: {found.detail}")
    if found.receipt.sha256 != recorded.sha256:
        return Altered(recorded, str(path.parent), "it is not the data set that the node recorded")
    return Located(recorded, found)


def _show(made: Sequence[tuple[Decision, Reproduction]], summary: Mapping[str, Any]) -> None:
    different = [(decision, result) for decision, result in made if result.outcome.value != "agrees"]
    if different:
        print_table(
            "Not the same offline",
            ("decision", "outcome", "what"),
            (
                (d.decision_id[:12], r.outcome.value, "; ".join([*r.problems, *map(str, r.differences)][:3]))
                for d, r in different
            ),
        )
    distance = summary["largest_distance"]
    console.print(
        f"{summary['agree']} of {summary['decisions']} decisions agree; {summary['instances_recomputed']} instances"
        f" were scored here, the largest distance of two numbers is {distance or 0.0:.2g}."
        f" {summary['not_decided_by_the_node']} of {summary['files']} files have no decision.",
        markup=False,
        soft_wrap=True,
    )
