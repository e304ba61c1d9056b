"""The certified guard as a plain statistic: the share of its votes that goes to another answer than the victim's."""

from __future__ import annotations

import math

import numpy as np

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.sight import Scores, Sight


class GuardShare:
    """Score: 1 - share of the first look's votes; infinite for a file that gets no vote. Nothing is learned."""

    def __init__(self) -> None:
        self.name = "guard's vote share"

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:  # noqa: ARG002 - as any Detector
        """See `sight.Detector`; raises DicomguardError where the victim was not enrolled with a guard."""
        self.scores(calibration)

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`; raises as `fit`."""
        shares = [one.guard_share for one in sight.evidence]
        if any(share is None for share in shares):
            raise DicomguardError(
                "the files were looked at without a guard.",
                advice="Enrol the victim with an eps ('dicomguard enrol'), or leave this detector out.",
            )
        return np.array([math.inf if share is None or math.isnan(share) else 1 - share for share in shares])
