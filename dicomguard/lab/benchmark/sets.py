"""Data sets as cells use them, opened once in each process: reading thousands of pictures takes its time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dicomguard.lab.data import Collection, open_collection

INVENTORY = "inventory"
"""The folder beside the cells where sets keep what was learnt by reading every picture once."""


@cache
def opened_set(name: str, data: Path, side: int | None, inventory: Path) -> Collection:
    """As `open_collection`.

    Raises:
        DicomguardError: as `open_collection`.

    """
    return open_collection(name, data, side=side, cache=inventory)
