"""The clean distribution of one number, and how surprising a value of it is."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dicomguard.errors import BundleError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_TAIL_SHARE = 0.1  # of the clean values lies in the tail whose mean excess is the scale of what lies beyond
_DIGITS = 6


class Component(BaseModel):
    """Sorted values of clean images (equal ones as often as they came) and the mean excess of their upper tail."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    values: Annotated[tuple[Finite, ...], Field(min_length=2)]
    tail: Positive

    @functools.cached_property
    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distinct values, and how many clean ones lie at or above each."""
        ordered = np.asarray(self.values)
        distinct, first = np.unique(ordered, return_index=True)
        return distinct, (len(ordered) - first).astype(np.float64)

    def __eq__(self, other: object) -> bool:
        """Equal in what is stored; what is derived from it is an array, which does not compare to one truth value."""
        return isinstance(other, Component) and (self.values, self.tail) == (other.values, other.tail)

    def __hash__(self) -> int:
        return hash((self.values, self.tail))

    def surprise(self, value: float) -> float:
        """-log of the conformal p-value (1 + number of clean values >= `value`) / (n + 1), made continuous.

        Between distinct values the rank is interpolated linearly. Beyond the largest p falls like 1 / (1 + excess /
        tail), slower than any exponential: n images say little about what is far rarer than 1 / n, and one component
        that runs away would outshout all others. NaN stays NaN.
        """
        if not math.isfinite(value):
            return math.nan if math.isnan(value) else (math.inf if value > 0 else 0.0)
        distinct, above = self._curve
        n = len(self.values)
        if value > distinct[-1]:
            return math.log((n + 1) / (1 + above[-1])) + math.log1p(float(value - distinct[-1]) / self.tail)
        if value < distinct[0]:
            return 0.0
        return math.log((n + 1) / (1 + float(np.interp(value, distinct, above))))

    @classmethod
    def fit(cls, values: NDArray[np.float64], what: str, *, if_same: float | None = None) -> Component:
        """From the values of clean images; rounded, because the last digits only make the file long.

        `if_same`: the mean excess of a number that may well be the same for every image, as a good guard's share is.

        Raises:
            BundleError: not all finite, or all the same without `if_same`; `what` says which number it is.

        """
        ordered = np.round(np.sort(values), _DIGITS)
        if len(ordered) < 2 or not np.isfinite(ordered).all():
            raise BundleError(
                f"the {what} of a clean image is NaN or infinite.", advice="Check the weights of the bundle."
            )
        if ordered[0] == ordered[-1] and if_same is None:
            raise BundleError(
                f"the {what} of all clean images is the same: the network does not react to its input.",
                advice="Check the weights and the normalisation (mean, std) of the bundle.",
            )
        head = max(int(len(ordered) * _TAIL_SHARE), 2)
        excess = float(np.mean(ordered[-head:] - ordered[-head]))
        spread = float(ordered[-1] - ordered[0]) / len(ordered)
        return cls(values=tuple(map(float, ordered)), tail=max(excess, spread, 1e-6) if spread else if_same or 1e-6)
