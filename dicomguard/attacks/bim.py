"""The early-stopped BIM on a network with one logit; see `ladder` for the attack and for other heads."""

from __future__ import annotations

from torch import Tensor

from dicomguard.attacks import ladder as ladders
from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.ladder import LADDER, Ladder
from dicomguard.attacks.margins import Logits, from_logits

__all__ = ["LADDER", "Attacked", "Ladder", "early_stopped_bim"]


def early_stopped_bim(logits: Logits, pixels: Tensor, ladder: Ladder | None = None) -> Attacked:
    """Attack every image of a batch away from the class that `logits` (n,) gives it now."""
    return ladders.early_stopped_bim(from_logits(logits, pixels), pixels, ladder)
