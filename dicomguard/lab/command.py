"""What the commands of scripts/bench about one bundle have in common: options, threads, and how an error looks."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from dicomguard.errors import DicomguardError
from dicomguard.lab.recipes import RECIPES, Recipe
from dicomguard.scoring import memory

Run = Callable[[Recipe, Path, argparse.Namespace, Console], object]


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every one of them takes."""
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=description)
    made.add_argument("recipe", choices=sorted(RECIPES))
    made.add_argument("--bundle", type=Path, help="bundle folder (default config/bundles/NAME)")
    made.add_argument("--data", type=Path, default=Path(os.environ.get("DICOMGUARD_TEST_DATA", "../shared/data")))
    made.add_argument("--work", type=Path, default=Path("build/bench") / name, help="where outcomes are kept")
    made.add_argument("--results", type=Path, default=Path("docs/results"))
    made.add_argument("--threads", type=int, default=2)
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options as given, and under `command` the line that gave them, for the result to name."""
    given = made.parse_args(arguments)
    given.command = line(made.prog, sys.argv[1:] if arguments is None else arguments)
    return given


def line(program: str, arguments: Sequence[str]) -> str:
    """A command line as it goes into a result; of absolute paths the last part only, for they name a machine."""
    return shlex.join([*program.split(), *(_local(one) for one in arguments)])


def _local(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def shardable(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same with --shard, for work that several processes may share."""
    made.add_argument("--shard", default="", help="I/N: every Nth from I on, no report; a later run reports")
    return made


def shard(text: str) -> tuple[int, int]:
    """`1/3` -> (1, 3): every third from the second on; nothing -> (0, 1).

    Raises:
        DicomguardError: it is no shard.

    """
    if not text:
        return 0, 1
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and int(first) < int(step)):
        raise DicomguardError(
            f"--shard {text} is not I/N with I below N.", advice="For three processes: 0/3, 1/3, 2/3."
        )
    return int(first), int(step)


def execute(run: Run, given: argparse.Namespace) -> int:
    """Run it; an error that a person can act on is printed, and the exit status 1."""
    torch.set_num_threads(given.threads)
    memory.keep_buffers()
    console = Console()
    try:
        run(RECIPES[given.recipe], given.bundle or Path("config/bundles") / given.recipe, given, console)
    except DicomguardError as error:
        console.print(f"[red]{error}")
        return 1
    return 0
