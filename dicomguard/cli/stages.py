"""Shares of stages, as long computations tell them, on the bars that people see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from dicomguard.cli.output import Bars


def stages(bars: Bars, whole: int = 100) -> Callable[[str, float], None]:
    """`tick(stage, share)`: move the bar of a stage by a share of the whole, which is shown as that number."""
    done: dict[str, float] = defaultdict(float)

    def tick(stage: str, share: float) -> None:
        done[stage] += share
        bars(stage, min(round(done[stage] * whole), whole), whole)

    return tick
