"""`dicomguard lab benchmark`: compute the cells of a suite, in parallel, and write its tables."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomguard.cli.compose import JsonOption
from dicomguard.cli.lab.datasets import DataOption
from dicomguard.cli.output import Bars, console, print_json, print_table
from dicomguard.errors import ConfigError

if TYPE_CHECKING:  # torch, imported when the command runs
    from dicomguard.lab.benchmark.cell import Cell
    from dicomguard.lab.benchmark.runner import Outcome
    from dicomguard.lab.benchmark.suites.planning import Plan

_log = logging.getLogger(__name__)

ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where the benchmarks' tables are kept.")]


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command()(benchmark)


def benchmark(
    suite: Annotated[
        list[str], typer.Option("--suite", help="noise-consistency, joel2023, adaptive, natural or certified; repeat.")
    ],
    profile: Annotated[str, typer.Option("--profile", help="smoke (minutes), cpu (a night) or full (a GPU day).")],
    data: DataOption,
    work: Annotated[Path, typer.Option("--work", help="Where cells are kept; a stopped run goes on there.")] = Path(
        "build/lab"
    ),
    results: ResultsOption = Path("docs/results"),
    finished: Annotated[
        Path | None,
        typer.Option(
            "--finished",
            metavar="DIR",
            help="Keep what the tables are made of here, too, as it is found, and take it from here: to go on on "
            "another machine.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0: one a core.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda, for networks.")] = "cpu",
    instead: Annotated[
        list[str] | None,
        typer.Option(
            "--data-set",
            metavar="NAME=OTHER",
            help="Take another data set where a suite names one, such as lung_ct=lidc_idri; may be repeated.",
        ),
    ] = None,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="Only cells whose name holds this.")] = "",
    list_only: Annotated[
        bool, typer.Option("--list", help="Show the cells and what a run would do with each; compute none.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Regenerate a paper's tables and figures, or go where it did not. Exit 1 where a cell failed.

    Every cell is kept under the hash of its inputs, so that a run goes on where it stopped and nothing is computed
    twice. Tables are written when all cells of a suite are there.
    """
    from dicomguard.lab.benchmark import suites
    from dicomguard.lab.benchmark.cell import in_order
    from dicomguard.lab.benchmark.finished import states
    from dicomguard.lab.benchmark.kinds import KINDS
    from dicomguard.lab.benchmark.profile import named
    from dicomguard.lab.benchmark.runner import Runner, alone_in
    from dicomguard.lab.benchmark.suites.planning import Where
    from dicomguard.lab.command import line
    from dicomguard.scoring.device import usable

    where = Where(data, work, device, _instead(instead or []))
    plans = [suites.plan(name, named(profile), where) for name in suite]
    tables = [cell for plan in plans for cell in plan.cells.values()]
    wanted = in_order([cell for cell in in_order(tables) if only in cell.title])
    if not wanted:
        raise ConfigError(f"no cell has {only!r} in its name.", advice="Run with --list to see the names.")
    if list_only:
        _list(wanted, states(tables, work, finished), as_json=as_json)
        return
    usable(device)  # one that is not there is refused before the first cell
    command = line("dicomguard", sys.argv[1:])
    is_watched = console.is_terminal and not as_json
    with Bars(quiet=not is_watched) as bars:
        show = _on(bars) if is_watched else _in_lines()
        runner = Runner(
            KINDS,
            work,
            data,
            workers=workers or os.cpu_count() or 1,
            device=device,
            show=show if finished is None else _handing_over(show, tables, work, finished),
        )
        with alone_in(work):
            if finished is not None:
                _exchange(tables, work, finished)
            outcome = runner.run(tables, only=only)
    written = [suites.write(plan, work, results, command=command) for plan in plans if _is_complete(plan, work)]
    _tell(outcome, written, as_json=as_json)
    raise typer.Exit(1 if outcome.failed else 0)


def _instead(lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    from dicomguard.lab.benchmark.suites import DATA_SETS

    found: dict[str, str] = {}
    for line in lines:
        task, equals, name = line.partition("=")
        if not equals or task not in DATA_SETS or task in found or not name or "/" in name:
            raise typer.BadParameter(
                f"write one of {', '.join(DATA_SETS)}, each once, and what to take instead: lung_ct=lidc_idri",
                param_hint="--data-set",
            )
        found[task] = name
    if len({found.get(task, task) for task in DATA_SETS}) != len(DATA_SETS):
        raise typer.BadParameter("one data set would be taken twice", param_hint="--data-set")
    return tuple(sorted(found.items()))


def _on(bars: Bars) -> Callable[[Cell, float], None]:
    return lambda cell, share: bars(cell.title, round(100 * share), 100)


def _in_lines() -> Callable[[Cell, float], None]:
    """Where a log or a pipe listens for a night: a line on stderr when a cell begins and when it is done."""
    said: set[tuple[str, float]] = set()

    def show(cell: Cell, share: float) -> None:
        if share in (0.0, 1.0) and (cell.key, share) not in said:
            said.add((cell.key, share))
            _log.info("%s: %s.", cell.title, "done" if share else "begun")

    return show


def _exchange(tables: Sequence[Cell], work: Path, finished: Path) -> None:
    """Take over what is there of the tables' cells, and hand over what is here."""
    from dicomguard.lab.benchmark.finished import hand_over, take_over

    for cell in tables:
        take_over(cell, work, finished)
        hand_over(cell, work, finished)


def _handing_over(
    show: Callable[[Cell, float], None], tables: Sequence[Cell], work: Path, finished: Path
) -> Callable[[Cell, float], None]:
    """Show, and hand over each cell that tables are made of once it is done."""
    from dicomguard.lab.benchmark.finished import hand_over

    keys = {cell.key for cell in tables}

    def shown(cell: Cell, share: float) -> None:
        show(cell, share)
        if share == 1.0 and cell.key in keys:
            hand_over(cell, work, finished)

    return shown


def _is_complete(plan: Plan, work: Path) -> bool:
    """Whether all cells of a suite are there."""
    return all(cell.result(work) is not None for cell in plan.cells.values())


def _list(cells: Sequence[Cell], states: Mapping[str, str], *, as_json: bool) -> None:
    rows = [{"cell": cell.title, "kind": cell.kind, "key": cell.key, "state": states[cell.key]} for cell in cells]
    if as_json:
        print_json(rows)
    else:
        print_table("Cells", ["cell", "kind", "key", "state"], [list(row.values()) for row in rows])


def _tell(outcome: Outcome, written: list[Path], *, as_json: bool) -> None:
    if as_json:
        failed = [{"cell": cell.title, "key": cell.key, "why": why} for cell, why in outcome.failed]
        print_json(
            [
                {
                    "done": len(outcome.done),
                    "kept": len(outcome.kept),
                    "failed": failed,
                    "skipped": [cell.title for cell in outcome.skipped],
                    "written": [str(path) for path in written],
                }
            ]
        )
        return
    console.print(f"{len(outcome.done)} cells computed, {len(outcome.kept)} were kept from before.")
    for cell, why in outcome.failed:
        console.print(f"failed: {cell.title} ({cell.key}): {why}", style="red", markup=False)
    for cell in outcome.skipped:
        console.print(f"skipped, because it needs a failed one: {cell.title}", markup=False)
    for path in written:
        console.print(f"wrote {path}", markup=False)
    if not written:
        console.print("No suite is complete: no table was written. Run the same command again to go on.")
