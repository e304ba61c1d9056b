"""The flight recorder's command: make recorded decisions again, a node's own or one that was handed over."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import Bars, console, plain, print_json
from dicomguard.errors import BundleError, ConfigError, NotFoundError

if TYPE_CHECKING:  # torch and SQLAlchemy, imported by the commands that need them
    from dicomguard.config import Config
    from dicomguard.ledger import Ledger
    from dicomguard.screen.locate import Removal
    from dicomguard.screen.outcome import Reproduction
    from dicomguard.screen.protected import Protected
    from dicomguard.screen.reproduce import Reproducer

# What people type must be enough to name one decision today and next year.
_MIN_PREFIX: Final = 8
_STATEMENT: Final = "enrolment.json"

AnyConfig = Annotated[
    Path | None,
    compose.config_option("The node's configuration file; not with --from."),
]
Bundles = Annotated[
    list[Path] | None,
    typer.Option("--bundle", metavar="DIR", help="A bundle beside those that are configured, such as the one before."),
]
Enrolments = Annotated[
    list[Path] | None,
    typer.Option("--enrolment", metavar="DIR", help="An enrolment of one of the bundles, such as the one before."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(reproduce)


def reproduce(
    decision_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A decision id, or 8 or more characters of one.")
    ] = None,
    config: AnyConfig = None,
    everything: Annotated[bool, typer.Option("--all", help="Every decision, oldest first.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="With --all: only the newest so many.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="With --all: decided at this ISO 8601 time or later; UTC if unsaid.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="How far numbers may lie apart: absolute, plus relative.")
    ] = 0.02,
    from_file: Annotated[
        Path | None, typer.Option("--from", metavar="FILE.zip", help="Exported evidence, instead of a node.")
    ] = None,
    bundle: Bundles = None,
    enrolment: Enrolments = None,
    as_json: JsonOption = False,
) -> None:
    """Make recorded decisions again from the stored instances, and say whether they come out the same.

    Exit 1 when one differs, was altered or is missing; 3 when a model or a seed is not at hand, or nothing could be
    recomputed.
    """
    if (decision_id is not None) + everything + (from_file is not None) != 1:
        raise typer.BadParameter("say one of: a decision id, --all, --from FILE.zip", param_hint="ID")
    if not everything and (limit is not None or since is not None):
        raise typer.BadParameter("--limit and --since go with --all", param_hint="ID")
    if from_file is not None:
        found = _from_file(from_file, bundle or [], enrolment or [], tolerance)
    else:
        others = (bundle or [], enrolment or [])
        found = _from_node(_settings(config), decision_id, limit, _moment(since), *others, tolerance)
    counts: Counter[str] = Counter()
    recomputed = 0
    largest = 0.0
    with Bars(quiet=as_json or not everything) as bars:
        for done, (result, total) in enumerate(found, 1):
            counts[result.outcome] += 1
            recomputed += result.recomputed
            largest = max(largest, result.largest_distance or 0.0)
            if as_json:
                print_json([result.to_json()])
            elif not everything or result.outcome != "agrees":
                _show(result)
            bars("reproduce", done, total)
    summary = {"decisions": counts.total(), "instances_recomputed": recomputed, "largest_distance": largest, **counts}
    if as_json and everything:
        print_json([summary])
    elif everything:
        words = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
        console.print(
            f"{counts['agrees']} of {counts.total()} decisions agree ({words}; {recomputed} instances recomputed,"
            f" largest distance of two numbers {largest:.2g}).",
            markup=False,
            soft_wrap=True,
        )
    if counts["differs"] or counts["altered"] or counts["missing"]:
        raise typer.Exit(1)
    raise typer.Exit(3 if counts["other model"] or counts["not disclosed"] or not recomputed else 0)


def _show(result: Reproduction) -> None:
    styles = {"agrees": "green", "gone": "cyan", "other model": "yellow", "not disclosed": "yellow"}
    style = styles.get(result.outcome, "bold red")
    extent = f"{result.recomputed} of {result.instances} instance(s) recomputed"
    distance = "" if result.largest_distance is None else f", largest distance {result.largest_distance:.2g}"
    console.print(f"Decision {plain(result.decision_id[:12])}: ", end="", markup=False)
    console.print(result.outcome.value, style=style, end="")
    console.print(f" ({extent}{distance})", markup=False)
    for line in (*result.problems, *map(str, result.differences), *result.notes):
        console.print(f"  {plain(line)}", markup=False, soft_wrap=True)


def _from_node(
    settings: Config,
    decision_id: str | None,
    limit: int | None,
    since: datetime | None,
    bundles: Sequence[Path],
    enrolments: Sequence[Path],
    tolerance: float,
) -> Iterator[tuple[Reproduction, int]]:
    from dicomguard.screen.locate import Locator
    from dicomguard.screen.past import past_of

    spool = compose.open_spool(settings, existing=True)
    with compose.open_ledger(settings, "cli", existing=True) as ledger:
        ids = [named(decision_id, ledger)] if decision_id is not None else ledger.decision_ids(since, limit)
        if not ids:
            raise NotFoundError("There is no such decision to make again.", advice="'dicomguard decisions' lists them.")
        configured = [(section.path, section.enrolment) for section in settings.bundles]
        models = _models([*configured, *((path, None) for path in bundles)], enrolments, settings.device)
        locator = Locator(spool, ledger, removals(ledger))
        with compose.decode_worker(settings) as worker:
            reproducer = _reproducer(
                models,
                lambda some: compose.examiner(settings, worker, some),
                compose.rules(settings),
                tolerance,
            )
            for each in ids:
                decision = ledger.decision(each)
                result = reproducer.reproduce(decision, locator.locate(decision), past_of(ledger, decision))
                for uid in result.altered:
                    _alarm(ledger, uid, each)
                yield result, len(ids)


def _from_file(
    path: Path, bundles: Sequence[Path], enrolments: Sequence[Path], tolerance: float
) -> Iterator[tuple[Reproduction, int]]:
    from dicomguard.pixels.sandbox import DecodeWorker
    from dicomguard.screen import dossier, redrawn
    from dicomguard.screen.archive import Archive, EvidenceError
    from dicomguard.screen.examine import Examiner
    from dicomguard.screen.verdicts import Rules

    with Archive(path) as archive, tempfile.TemporaryDirectory(prefix="dicomguard-evidence-") as folder:
        found = dossier.read(archive, Path(folder))
        if not found.has_instances:
            raise EvidenceError(
                f"{path} holds no instances to look at again.",
                advice="Ask for one that was made with 'evidence export --with-instances'.",
            )
        loaded = _models([(bundle, None) for bundle in bundles], enrolments, "cpu", found.enrolments)
        models = redrawn.with_seeds(loaded, found.seeds)
        rules = Rules(found.policy, found.decision.mode, found.decision.destinations, lambda _: "")
        with DecodeWorker() as worker:
            reproducer = _reproducer(models, lambda some: Examiner(worker, some, redrawn.NO_KEY), rules, tolerance)
            result = reproducer.reproduce(found.decision, found.found, None)
            yield (
                result.with_alarms(
                    f"ALARM: {row} was not as it was written when this was exported" for row in found.edited
                ),
                1,
            )


def _reproducer(
    models: Sequence[Protected], examiner_of: Callable[[Sequence[Protected]], Any], rules: Any, tolerance: float
) -> Reproducer:
    from dicomguard.screen.compare import Tolerance
    from dicomguard.screen.reproduce import Reproducer

    return Reproducer(models, examiner_of, rules, Tolerance(tolerance, tolerance))


def _models(
    bundles: Sequence[tuple[Path, Path | None]],
    enrolments: Sequence[Path],
    device: str,
    came_along: Sequence[Path] = (),
) -> list[Protected]:
    """Each bundle with its enrolment, and with each of the others that fits it. To look again, never to enforce.

    Raises BundleError where one cannot be loaded, or an enrolment fits no bundle, unless it just `came_along`.
    """
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.screen.protected import Protected

    scorers = [Scorer.load(path, enrolment, device=device) for path, enrolment in bundles]
    for folder in (*enrolments, *came_along):
        fingerprint = _fingerprint(folder)
        fitting = [path for (path, _), s in zip(bundles, scorers, strict=False) if s.fingerprint == fingerprint]
        if not fitting and folder in came_along:
            continue  # the reproduction says which bundle it would have needed
        if not fitting:
            raise BundleError(
                f"The enrolment in {folder} is of the fingerprint {fingerprint[:16]}, and no bundle that is loaded is.",
                advice="Name the folder of its bundle with --bundle.",
            )
        scorers.append(Scorer.load(fitting[0], folder, device=device))
    return [Protected(scorer, {}, "shadow") for scorer in scorers]


def _fingerprint(enrolment: Path) -> str:
    try:
        return str(json.loads((enrolment / _STATEMENT).read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{enrolment} holds no enrolment.", advice="Name the folder with enrolment.json.") from error


def _settings(path: Path | None) -> Config:
    if path is None:
        raise ConfigError(
            "No configuration was named.", advice="Say -c FILE, or --from FILE.zip for exported evidence."
        )
    return compose.read_config(path)


def named(decision_id: str, ledger: Ledger) -> str:
    """The whole id of the decision that a person named. Raises NotFoundError."""
    if len(decision_id) < _MIN_PREFIX:
        raise NotFoundError(
            f"{decision_id!r} is too short to name a decision: {_MIN_PREFIX} characters or more.",
            advice="'dicomguard decisions' lists them.",
        )
    return ledger.decision(decision_id).decision_id


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            "write a time such as 2026-11-21 or 2026-11-21T08:00+01:00", param_hint="--since"
        ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def removals(ledger: Ledger) -> dict[tuple[str, str, str], Removal]:
    """Every removal on record, by decision or failed claim, instance and digest; the first of several."""
    from dicomguard.ledger import EventKind
    from dicomguard.screen.locate import Removal

    found: dict[tuple[str, str, str], Removal] = {}
    kinds = {
        EventKind.RETENTION_REMOVED: "decision_id",
        EventKind.REJECTED_PURGED: "decision_id",
        EventKind.FAILED_PURGED: "claim_id",
    }
    for kind, about in kinds.items():
        for event in ledger.events(kind):
            for item in event.detail["instances"]:
                key = (str(event.detail[about]), item["sop_instance_uid"], item["sha256"])
                found.setdefault(key, Removal(kind, event.at))
    return found


def _alarm(ledger: Ledger, sop_instance_uid: str, decision_id: str) -> None:
    """Record that an instance of a decision was altered, once."""
    from dicomguard.ledger import EventKind

    detail = {"decision_id": decision_id, "found_by": "reproduce"}
    if not any(
        event.subject_uid == sop_instance_uid and event.detail == detail
        for event in ledger.events(EventKind.ALTERED_IN_SPOOL)
    ):
        ledger.record_event(EventKind.ALTERED_IN_SPOOL, sop_instance_uid, detail)
