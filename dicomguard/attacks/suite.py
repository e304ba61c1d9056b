"""The attacks that a detector is tested on, by the names that reports give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.ladder import early_stopped_bim, early_stopped_fgsm, early_stopped_pgd
from dicomguard.attacks.margins import CHUNK, Margins
from dicomguard.attacks.pgd import BUDGETS, FixedEps, fixed_eps_pgd


class Attack(Protocol):
    """One attack with its settings. `pixels` (N, C, H, W) in [0, 1]; `seeds`: one for each image."""

    def __call__(self, margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        """Attack every image of the batch; the others in it make no difference."""
        ...


def _fgsm(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:  # noqa: ARG001 - draws nothing
    return early_stopped_fgsm(margins, pixels, chunk=chunk)


def _bim(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:  # noqa: ARG001 - draws nothing
    return early_stopped_bim(margins, pixels, chunk=chunk)


def _fixed(eps: float) -> Attack:
    return partial(fixed_eps_pgd, settings=FixedEps(eps=eps))


SUITE: Mapping[str, Attack] = MappingProxyType(
    {
        "early-stopped FGSM": _fgsm,
        "early-stopped BIM": _bim,
        "early-stopped PGD": early_stopped_pgd,
        **{f"PGD {eps:.3f}": _fixed(eps) for eps in BUDGETS},
    }
)
"""Early-stopped FGSM, BIM and PGD; `PGD 0.004`, `PGD 0.008`, `PGD 0.016`."""
