"""Hands what a decision rested on to somebody without this node."""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import console, plain, print_json
from dicomguard.cli.reproduce import named, removals

if TYPE_CHECKING:  # imported by the command that needs it
    from dicomguard.config import Config
    from dicomguard.decision import Decision, InstanceDecision
    from dicomguard.pixels.sandbox import DecodeWorker
    from dicomguard.screen.locate import Whereabouts

# The record of an export has a chain of its own: so the next export of the same decision gives the same bytes.
_WRITER: Final = "evidence"
_STATEMENT: Final = "enrolment.json"
_TENSORS: Final = "enrolment.safetensors"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    evidence = typer.Typer(no_args_is_help=True, help="What a decision rested on, for somebody outside this node.")
    evidence.command("export")(evidence_export)
    app.add_typer(evidence, name="evidence")


def evidence_export(
    decision_id: Annotated[str, typer.Argument(metavar="ID", help="A decision id, or 8 or more characters of one.")],
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.zip", help="The file to make; it must not be there yet.")],
    with_instances: Annotated[
        bool, typer.Option("--with-instances", help="Put the DICOM instances in: the patient's data.")
    ] = False,
    without_pictures: Annotated[
        bool, typer.Option("--without-pictures", help="Leave out the pictures that show the image itself.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a decision rested on into one file, for somebody without this node. The site key stays here.

    Who did so, and which file came of it, is recorded as the event evidence_exported.

    Exit 1 when an instance was altered, or a row of the ledger is not as it was written; the file says which.
    """
    from dicomguard.ledger import EventKind
    from dicomguard.screen import dossier, redrawn
    from dicomguard.screen.locate import Altered, Located, Locator

    settings = compose.read_config(config)
    spool = compose.open_spool(settings, existing=True)
    with compose.open_ledger(settings, _WRITER, existing=True) as ledger:
        decision = ledger.decision(named(decision_id, ledger))
        found = Locator(spool, ledger, removals(ledger)).locate(decision)
        excerpt = ledger.excerpt(decision.decision_id)
        noise_key = compose.site_key(settings).for_purpose("noise")
        with compose.decode_worker(settings) as worker:
            seeds = tuple(redrawn.frame_seeds(noise_key, decision.instances, _counter(found, worker)))
        folder = spool.evidence(decision.decision_id)
        shown = sorted(folder.glob("*.png")) if folder is not None else []
        contents = dossier.Contents(
            decision,
            excerpt,
            found,
            seeds,
            compose.rules(settings).policy,
            _enrolments_of(decision, settings),
            {p.name: p.read_bytes() for p in shown if not (without_pictures and p.name.endswith(".saliency.png"))},
            with_instances,
            has_hashed_ids=settings.patient_id == "hashed",
        )
        located = sum(isinstance(one, Located) for one in found) if with_instances else 0

        def record(sha256: str) -> None:
            what = {"instances": located, "pictures": len(contents.pictures), "sha256": sha256}
            who = {"decision_id": decision.decision_id, "actor": _actor(), "with_instances": with_instances}
            ledger.record_event(EventKind.EVIDENCE_EXPORTED, decision.study_instance_uid, {**who, **what})

        digest = dossier.write(out, contents, record)
    altered = [str(one.recorded.sop_instance_uid) for one in found if isinstance(one, Altered)]
    edited = [
        f"{row['table']} seq {row['seq']} of {row['writer']}" for row in excerpt["rows"] if not row["mac_is_right"]
    ]
    result = {
        "decision_id": decision.decision_id,
        "file": str(out),
        "sha256": digest,
        "instances": located,
        "of": len(found),
        "seeds": len(contents.seeds),
        "pictures": len(contents.pictures),
        "altered": altered,
        "edited": edited,
    }
    if as_json:
        print_json([result])
    else:
        console.print(f"{out}, SHA-256 {digest}", markup=False, soft_wrap=True, highlight=False)
        console.print(
            f"{result['instances']} of {len(found)} instance(s), {len(contents.seeds)} noise seed(s),"
            f" {len(contents.pictures)} picture(s). Look at README.txt and the pictures before you hand it on.",
            markup=False,
            soft_wrap=True,
        )
        for uid in altered:
            console.print(f"ALARM: {plain(uid)} was altered since it was recorded.", markup=False, soft_wrap=True)
        for row in edited:
            console.print(f"ALARM: {plain(row)} is not as it was written; see 'dicomguard verify'.", markup=False)
    raise typer.Exit(1 if altered or edited else 0)


def _counter(found: Sequence[Whereabouts], worker: DecodeWorker) -> Callable[[InstanceDecision], int]:
    """Counts the frames of instances that are there; 0 for one that is not there, or cannot be read."""
    from dicomguard.decision import Fault
    from dicomguard.screen.locate import Located

    there = {one.recorded.file_name: one.instance for one in found if isinstance(one, Located)}

    def count(recorded: InstanceDecision) -> int:
        instance = there.get(recorded.file_name)
        if instance is None:
            return 0
        syntax = instance.receipt.transfer_syntax_uid
        header = worker.header(instance.path, instance.data_offset, syntax, keywords=())
        return 0 if isinstance(header, Fault) else header.frames

    return count


def _actor() -> str:
    """The login name of whoever runs the command; in a container, where nobody may have one, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _enrolments_of(decision: Decision, settings: Config) -> dict[str, bytes]:
    """The enrolments that a decision was made with, where they are still where the node has them: name -> content."""
    wanted = {str(i.scores["enrolment"]) for i in decision.instances if i.scores and i.scores.get("enrolment")}
    found: dict[str, bytes] = {}
    for section in settings.bundles:
        folder = section.enrolment or section.path / "enrolment"
        try:
            statement = (folder / _STATEMENT).read_bytes()
            name = hashlib.sha256(statement).hexdigest()
            if name in wanted:
                found |= {f"{name[:16]}/{file}": (folder / file).read_bytes() for file in (_STATEMENT, _TENSORS)}
        except OSError:
            continue  # somewhere else now: its name is on record
    return found
