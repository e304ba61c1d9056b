"""FGSM and BIM at a fixed budget (Goodfellow et al. 2015; Kurakin et al. 2017), and the settings of Joel et al. 2023.

PGD at a fixed budget is `attacks.pgd`. There and in BIM the lowest margin of all iterates counts, which is what an
attacker would send; `last` gives the last iterate instead, as the Toolbox does, with which Joel et al. worked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dicomguard.attacks.attacked import Attacked, RandomStarts
from dicomguard.attacks.margins import CHUNK, Margins
from dicomguard.attacks.pgd import FixedEps, signed_steps

JOEL_SWEEP = (0.0001, *(round(0.001 * i, 3) for i in range(1, 11)), 0.016)
"""The budgets of Joel et al. 2023 (figure 2), and one that is four times their larger one."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """`eps` in fractions of the presentation range; each step is `relative_step` of it.

    `restarts`: 0 starts at the image itself, else as many uniformly random points of the ball, and the lowest margin
    counts.
    """

    eps: float = 0.004
    steps: int = 10
    relative_step: float = 0.1
    restarts: int = 0
    last: bool = False


def joel_fgsm(eps: float) -> Fixed:
    """One step of eps."""
    return Fixed(eps, steps=1, relative_step=1.0, last=True)


def joel_bim(eps: float) -> Fixed:
    """Ten steps of eps / 10."""
    return Fixed(eps, last=True)


def joel_pgd(eps: float) -> FixedEps:
    """Ten steps of eps / 4 from five random points, for `attacks.pgd.fixed_eps_pgd`."""
    return FixedEps(eps, steps=10, relative_step=0.25, restarts=5)


def fixed_eps_fgsm(margins: Margins, pixels: Tensor, eps: float, *, chunk: int = CHUNK) -> Attacked:
    """One step of `eps` along the sign of the gradient at the image."""
    return fixed_eps_bim(margins, pixels, [], joel_fgsm(eps), chunk=chunk)


def fixed_eps_bim(
    margins: Margins, pixels: Tensor, seeds: Sequence[int], settings: Fixed | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """Steps along the sign of the gradient inside the ball. `seeds`: one for each image, needed for restarts only.

    `strength` of the result is `eps` where it flipped.
    """
    settings = settings or Fixed()
    starts = RandomStarts(list(seeds), pixels) if settings.restarts else None
    budget = FixedEps(settings.eps, settings.steps, settings.relative_step, max(settings.restarts, 1))
    return signed_steps(margins, pixels, starts, budget, last=settings.last, chunk=chunk)
