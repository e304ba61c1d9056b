"""The attacks that a set can be forged with, by name, and what a manifest says of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

from dicomguard.attacks.suite import SUITE, Attack


def available() -> Mapping[str, Attack]:
    """Every attack that needs nothing but margins."""
    return SUITE


def settings_of(attack: Attack) -> dict[str, Any]:
    """What an attack was bound to; empty where it runs on its own defaults."""
    found: dict[str, Any] = {}
    if isinstance(attack, partial):
        for name, value in attack.keywords.items():
            found |= asdict(value) if is_dataclass(value) and not isinstance(value, type) else {name: value}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float | bool | None)}
