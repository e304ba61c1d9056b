"""What makes each kind of cell."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dicomguard.lab.benchmark.kinds import (
    adaptive,
    attack,
    certified,
    clean,
    enrolled,
    joel,
    judged,
    looks,
    seconds,
    victims,
)
from dicomguard.lab.benchmark.runner import Make

KINDS: Mapping[str, Make] = MappingProxyType(
    {
        "victim": victims.victim,
        "enrolled": enrolled.enrolled,
        "clean": clean.clean,
        "shift": clean.shift,
        "foreign": clean.foreign,
        "attack": attack.attack,
        "judge": judged.judged,
        "noise": looks.random_noise,
        "pictures": looks.pictures,
        "seconds": seconds.seconds,
        "adaptive": adaptive.adaptive,
        "lessons": certified.lessons,
        "certified": certified.certified,
        "pairs": joel.pairs,
        "taught": joel.taught,
    }
)
"""Functions of modules, so that worker processes find them by name."""
