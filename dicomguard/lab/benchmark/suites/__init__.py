"""The suites: which cells there are, and how their results become tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.kinds.files import versions
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites import adaptive, certified, joel2023, natural, noise_consistency
from dicomguard.lab.benchmark.suites.planning import Plan, Where

SUITES: Mapping[str, Callable[[Profile, Where], Plan]] = MappingProxyType(
    {suite.NAME: suite.plan for suite in (noise_consistency, joel2023, adaptive, natural, certified)}
)


def plan(name: str, profile: Profile, where: Where) -> Plan:
    """The cells of a suite.

    Raises:
        DicomguardError: there is no such suite, or its data are not there.

    """
    if name not in SUITES:
        raise DicomguardError(f"there is no suite {name}.", advice=f"Take one of {', '.join(SUITES)}.")
    return SUITES[name](profile, where)


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
    text = json.dumps(
        {
            "suite": made.name,
            "profile": made.profile.name,
            "reductions": made.profile.reductions,
            "command": command,
            "versions": versions(),
            "cells": {name: cell.key for name, cell in made.cells.items()},
            **made.assemble(found),
        },
        indent=1,
    )
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"lab-{made.name}-{made.profile.name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.rename(path)
    return path
