"""`dicomguard lab report`: one page of what the benchmarks found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dicomguard.cli.compose import JsonOption
from dicomguard.cli.lab.benchmark import ResultsOption
from dicomguard.cli.output import console, print_json


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command()(report)


def report(
    profile: Annotated[str, typer.Option("--profile", help="Whose results: smoke, cpu or full.")],
    results: ResultsOption = Path("docs/results"),
    out: Annotated[Path, typer.Option("--out", help="Gets report.md, report.html and figures/.")] = Path(
        "build/lab/report"
    ),
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures",
            metavar="WORK",
            help="Where cells are kept (build/lab): show their pictures, which are of the data sets.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write tables beside the papers' own numbers, with intervals, plots, versions and commands."""
    from dicomguard.lab.command import line
    from dicomguard.lab.report import page

    written = page.write(results, out, profile, command=line("dicomguard", sys.argv[1:]), work=pictures)
    if as_json:
        print_json([{"written": str(path)} for path in written])
        return
    for path in written:
        console.print(f"wrote {path}", markup=False)
