"""The node's scorer without its network: `dicomguard score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import Bars, number, print_json, print_table
from dicomguard.errors import NotFoundError


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(score)


def score(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", exists=True, help="DICOM files or folders.")],
    config: ConfigOption,
    as_json: JsonOption = False,
) -> None:
    """Score files as the node would, without a network. Exit 1 when one of them would be held."""
    from dicomguard.screen.files import find_files, judge_files

    settings = compose.read_config(config)
    held = False
    rows = []
    files = list(find_files(paths))
    if not files:
        raise NotFoundError(
            f"There is no file in {', '.join(map(str, paths))}.",
            advice="Name DICOM files, or a folder that holds some.",
        )
    with compose.decode_worker(settings) as worker, Bars(quiet=as_json or len(files) < 2) as bars:
        examiner = compose.examiner(settings, worker, compose.load_models(settings))
        for done, (path, found) in enumerate(judge_files(files, worker, examiner, compose.rules(settings)), 1):
            held |= found.holds
            if as_json:
                print_json([{"path": str(path), **found.to_json()}])
            worst = (found.scores or {}).get("worst", {})
            rows.append(
                (
                    path.name,
                    found.verdict.value,
                    "quarantine" if found.holds else "forward",
                    worst.get("predicted"),
                    *(number(worst.get(name)) for name in ("probability", "statistic", "p_value")),
                    (found.scores or {}).get("assurance"),
                    ", ".join(found.reasons),
                    found.detail,
                )
            )
            bars("score", done, len(files))
    if not as_json:
        numbers = ("p", "score", "p-value", "assurance")
        print_table("Scores", ("file", "verdict", "alone it would", "answer", *numbers, "reasons", "detail"), rows)
    raise typer.Exit(1 if held else 0)
