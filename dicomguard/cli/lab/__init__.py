"""`dicomguard lab`: the offline commands, for researchers. Each module adds its own."""

from __future__ import annotations

import typer

from dicomguard.cli.lab import benchmark, datasets, forge, join, offline, report, train


def register(app: typer.Typer) -> None:
    """Add the group to the tree."""
    lab = typer.Typer(
        help="Offline: data sets, victims, attacks, detectors, benchmarks and their report.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for part in (datasets, train, benchmark, report, forge, join, offline):
        part.register(lab)
    app.add_typer(lab, name="lab")
