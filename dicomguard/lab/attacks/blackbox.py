"""A stranger at the door: pictures are sent, the answer comes back, and whether the node let the picture through.

The Square search (`square`) on the margin with a penalty where the detector rejects. Once the answer has changed the
margin counts no more, and the search wanders over wrong answers until one is let through: one bit leads nowhere by
itself, but squares that keep it are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins, values
from dicomguard.lab.attacks.square import Square, search

Accepts = Callable[[Tensor, Tensor], Tensor]
"""`accepts(pixels, which)` -> (n,) bool: what the node would let through. Never called with gradients."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found; `accepted` (N,): flipped and let through; `queries` (N,) that each image took."""

    attacked: Attacked
    accepted: Tensor
    queries: Tensor


def blackbox(
    margins: Margins,
    accepts: Accepts,
    pixels: Tensor,
    seeds: Sequence[int],
    settings: Square | None = None,
    *,
    penalty: float = 1.0,
    chunk: int = CHUNK,
) -> Probed:
    """Search until a flip is let through or the queries are spent. `penalty`: of a rejection, in log-odds."""
    settings = settings or Square()
    through = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)

    def ask(current: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        margin = values(margins, current, which, chunk=chunk)
        with torch.no_grad():
            accepted = accepts(current, which)
        done = (margin < -settings.kappa) & accepted
        through[which] = done
        return (margin + settings.kappa).clamp(min=0) + penalty * ~accepted, margin, done

    found = search(ask, pixels, seeds, settings)
    return Probed(found.attacked, through, found.queries)
