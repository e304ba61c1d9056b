"""How a cell says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[float], None]
"""`tell(share)`: how much of the cell is done, from 0 to 1."""
Advance = Callable[[float], None]
"""`advance(share)`: by how much it came nearer to its end."""


def added(tell: Tell) -> Advance:
    """Add up what `advance` is told, and tell the sum, 1 at most."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done = min(done + share, 1.0)
        tell(done)

    return advance
