"""The suites: which cells there are, and how their results become tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from dicomguard.errors import ConfigError, DicomguardError
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites import adaptive, certified, joel2023, natural, noise_consistency
from dicomguard.lab.benchmark.suites.planning import Plan, Where, place_of
from dicomguard.lab.whole import replacing, write_json

FIGURES = "figures"
"""The folder beside the tables for charts of cells."""

SUITES: Mapping[str, Callable[[Profile, Where], Plan]] = MappingProxyType(
    {suite.NAME: suite.plan for suite in (noise_consistency, joel2023, adaptive, natural, certified)}
)


DATA_SETS = tuple(dict.fromkeys((*noise_consistency.DATA_SETS, *joel2023.DATA_SETS)))
"""All that suites name."""


def plan(name: str, profile: Profile, where: Where) -> Plan:
    """The cells of a suite.

    Raises:
        DicomguardError: there is no such suite, or its data are not there.

    """
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name}.", advice=f"Take one of {', '.join(SUITES)}.")
    return SUITES[name](profile, where)


def _versions(results: Iterable[Result]) -> dict[str, str]:
    """What the cells were made with; more than one version where they were not made in one go."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        for name, version in result["versions"].items():
            seen.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in seen.items()}


def write(made: Plan, work: Path, results: Path, *, command: str) -> Path:
    """The tables of a complete suite, whole or not at all.

    Raises:
        DicomguardError: a cell has no result.

    """
    found = {}
    for name, cell in made.cells.items():
        result = cell.result(work)
        if result is None:
            raise DicomguardError(f"{cell.title} is not computed.", advice="Run the benchmark to its end first.")
        found[name] = result
    path = results / f"lab-{made.name}-{made.profile.name}.json"
    facts = {
        "suite": made.name,
        "profile": made.profile.name,
        "reductions": made.profile.reduced(made.name),
        "command": command,
        "versions": _versions(found.values()),
        "cells": {name: cell.key for name, cell in made.cells.items()},
        "charts": _charts(made, found, work, results),
        "victims": _victims(found.values()),
    }
    write_json(path, {**facts, **made.assemble(found)})
    return path


def _victims(found: Iterable[Result]) -> list[dict[str, str]]:
    """What each victim began with, and what was reduced against the papers'; each once."""
    victims: list[dict[str, str]] = []
    for result in found:
        if "victim" in result:
            training = result["victim"]["training"]
            reduction = training["reduction"] or "nothing"
            facts = {"name": training["name"], "weights": training["weights"], "reduction": reduction}
            if facts not in victims:
                victims.append(facts)
    return victims


def _charts(made: Plan, found: Mapping[str, Result], work: Path, results: Path) -> dict[str, list[str]]:
    """Copy the charts of cells beside the tables, and list them by the victim that they are about."""
    charts: dict[str, list[str]] = {}
    for name, result in found.items():
        for chart in result.get("charts", ()):
            _, place, _ = place_of(name)
            file = f"lab-{made.name}-{made.profile.name}-{place.path.replace('/', '-')}--{chart}"
            (results / FIGURES).mkdir(parents=True, exist_ok=True)
            with replacing(results / FIGURES / file) as partial:
                shutil.copyfile(made.cells[name].folder(work) / chart, partial)
            charts.setdefault(place.path, []).append(f"{FIGURES}/{file}")
    return charts
