"""Attacks on a bundle as it stands in the node: on native presentation pixels, through its own preprocessing."""

from __future__ import annotations

import torch
from torch import Tensor

from dicomguard.attacks.margins import Logits, Margins, from_log_odds
from dicomguard.scoring.scorer import Scorer


def native_log_odds(scorer: Scorer) -> Logits:
    """Log-odds (n, questions, classes) as a function of presentation pixels (n, C, H, W)."""
    return lambda current: scorer.device_log_odds(torch.stack([scorer.preprocess(one) for one in current]))


def native_margins(scorer: Scorer, pixels: Tensor, *, answers: Tensor | None = None) -> Margins:
    """Margins of presentation pixels (N, C, H, W) towards the answers that the bundle gives to them now.

    `answers` (N, questions): towards these, another bundle's.
    """
    return from_log_odds(native_log_odds(scorer), pixels, answers=answers)
