"""The attacks that a set can be forged with, by name, and what a manifest says of their settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

from dicomguard.attacks.suite import Attack
from dicomguard.lab.attacks.suite import SUITE

SOURCES = ("attacks", "lab/attacks")
"""The parts of dicomguard that decide what an attack does."""


def available() -> Mapping[str, Attack]:
    """Every attack that needs nothing but margins."""
    return SUITE


def settings_of(attack: Any) -> dict[str, Any]:
    """What an attack was bound to, by `partial` or by a closure; empty where it runs on its own defaults."""
    bound: Mapping[str, Any] = {}
    if isinstance(attack, partial):
        bound = attack.keywords
    elif inspect.isfunction(attack):
        bound = inspect.getclosurevars(attack).nonlocals
    found: dict[str, Any] = {}
    for name, value in bound.items():
        if is_dataclass(value) and not isinstance(value, type):
            found |= asdict(value)
        elif callable(value):
            found |= settings_of(value)
        else:
            found[name] = value
    return {name: value for name, value in found.items() if isinstance(value, str | int | float | bool | None)}


def folder_of(kind: str) -> str:
    """A name for files that is safe everywhere: `pgd-0.004-joel-et-al.-2023`."""
    return re.sub(r"[^a-z0-9.]+", "-", kind.lower()).strip("-.")
