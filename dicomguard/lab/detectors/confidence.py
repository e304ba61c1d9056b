"""How near the answer is to being another one: the baseline that every paper on detection should print.

Attacks that stop at the class border sit on it, and this sees them for no forward pass at all; confident attacks it
takes for the cleanest files of all.
"""

from __future__ import annotations

from dicomguard.lab.detectors.sight import Scores, Sight, failed_closed
from dicomguard.scoring import head


class Confidence:
    """Score: minus the smallest log-odds margin over the questions."""

    def __init__(self) -> None:
        self.name = "low margin"

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:
        """Nothing is learned."""

    def scores(self, sight: Sight) -> Scores:
        """See `sight.Detector`."""
        return failed_closed(-head.smallest_margins(sight.log_odds))
