"""Files to a node as they are: `dicomguard replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import Bars, console, print_json, print_table, shorten
from dicomguard.errors import NotFoundError


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(replay)


def replay(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[PATH...]", default_factory=list, show_default=False, exists=True, help="DICOM files or folders."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to send.")],
    called: Annotated[str, typer.Option("--called", metavar="AE", help="AE title of the node.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="AE title to send as.")] = "REPLAY",
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="Truth about the files; copied with results. Without PATH: sends what it lists."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send files to a node as they are. DCMTK's and pynetdicom's storescu do just as well."""
    from dicomguard.replay import send
    from dicomguard.study import AeTitle, Peer

    if not paths and manifest is None:
        raise typer.BadParameter("name files or folders, or a manifest with --manifest", param_hint="PATH")
    host, _, port = to.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter("write HOST:PORT, such as 127.0.0.1:11112", param_hint="--to")
    with Bars(quiet=as_json) as bars:
        sent = send(
            paths,
            Peer(AeTitle(called), host.strip("[]"), int(port)),
            calling=AeTitle(calling),
            manifest=manifest,
            progress=lambda done, total: bars("send", done, total),
        )
    if not sent:
        raise NotFoundError(
            "There was no file to send.",
            advice="Name DICOM files, a folder that holds some, or a manifest that lists some.",
        )
    if as_json:
        print_json(item.to_json() for item in sent)
    else:
        bad = [item for item in sent if not item.is_stored]
        print_table(
            "Not stored",
            ("file", "instance", "what was said"),
            ((i.path, shorten(i.sop_instance_uid), i.error) for i in bad),
        )
        console.print(f"{len(sent) - len(bad)} of {len(sent)} instances were stored.")
    raise typer.Exit(0 if all(item.is_stored for item in sent) else 1)
