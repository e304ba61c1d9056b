"""Attacks on a bundle as it stands in the node: on native presentation pixels, through its own preprocessing."""

from __future__ import annotations

import torch
from torch import Tensor

from dicomguard.attacks.margins import Margins, from_log_odds
from dicomguard.scoring.scorer import Scorer


def native_margins(scorer: Scorer, pixels: Tensor) -> Margins:
    """Margins of presentation pixels (N, C, H, W) towards the answers that the bundle gives to them now."""

    def log_odds(current: Tensor) -> Tensor:
        return scorer.device_log_odds(torch.stack([scorer.preprocess(one) for one in current]))

    return from_log_odds(log_odds, pixels)
