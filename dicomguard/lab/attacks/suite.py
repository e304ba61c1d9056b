"""Every attack of the lab that needs margins alone, by the names that reports give them.

Those that need more are functions of their own modules: `deepfool.deepfool_classes`, `transfer`, `noise_eot`,
`matching`, `orthogonal`, `best_of`, `blackbox`; the attack on model and certified guard is `attacks.joint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

from torch import Tensor

from dicomguard.attacks import suite
from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.attacks.suite import Attack
from dicomguard.lab.attacks.apgd import AutoPGD, apgd
from dicomguard.lab.attacks.carlini import KAPPAS, Carlini, carlini_l2
from dicomguard.lab.attacks.deepfool import DeepFool, deepfool
from dicomguard.lab.attacks.fixed import Fixed, fixed_eps_bim, joel_bim, joel_fgsm, joel_pgd
from dicomguard.lab.attacks.square import Square, square

EPS: Final = (0.001, 0.002, 0.004, 0.008, 0.016)
"""Budgets of the attacks at a fixed radius, in fractions of the presentation range."""

STORABLE_KAPPA: Final = 0.5
"""Log-odds past the boundary: what DeepFool needs to outlive rounding to ten bits or more."""


def fgsm_at(eps: float) -> Attack:
    """One step of `eps`: FGSM of Joel et al. 2023 too."""
    return partial(fixed_eps_bim, settings=joel_fgsm(eps))


def bim_at(eps: float) -> Attack:
    """Ten steps of eps / 10, the lowest margin of all."""
    return partial(fixed_eps_bim, settings=Fixed(eps))


def pgd_at(eps: float) -> Attack:
    """Twenty steps of eps / 8 from a random point, the lowest margin of all."""
    return partial(fixed_eps_pgd, settings=FixedEps(eps))


def joel_bim_at(eps: float) -> Attack:
    """BIM of Joel et al. 2023: the last of ten steps of eps / 10."""
    return partial(fixed_eps_bim, settings=joel_bim(eps))


def joel_pgd_at(eps: float) -> Attack:
    """PGD of Joel et al. 2023: ten steps of eps / 4 from five random points."""
    return partial(fixed_eps_pgd, settings=joel_pgd(eps))


def apgd_at(eps: float) -> Attack:
    """Auto-PGD, 50 steps, for the most confident wrong answer."""
    return partial(apgd, settings=AutoPGD(eps))


def carlini_at(kappa: float) -> Attack:
    """Carlini and Wagner's L2 attack for a wrong margin of kappa."""
    return _seedless(partial(carlini_l2, settings=Carlini(kappa=kappa)))


def deepfool_at(kappa: float) -> Attack:
    """DeepFool, 50 steps and an overshoot of .02; kappa 0 is the noise-consistency paper's."""
    return _seedless(partial(deepfool, settings=DeepFool(kappa=kappa)))


def square_at(eps: float) -> Attack:
    """Square with 500 queries."""

    def attack(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        return square(margins, pixels, seeds, Square(eps), chunk=chunk).attacked

    return attack


def _seedless(attack: Callable[..., Attacked]) -> Attack:
    def seeded(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:  # noqa: ARG001 - draws nothing
        return attack(margins, pixels, chunk=chunk)

    return seeded


SUITE: Mapping[str, Attack] = MappingProxyType(
    {
        **suite.SUITE,
        "DeepFool": deepfool_at(0.0),
        f"DeepFool kappa {STORABLE_KAPPA:g}": deepfool_at(STORABLE_KAPPA),
        **{f"CW-L2 kappa {kappa:g}": carlini_at(kappa) for kappa in KAPPAS},
        **{f"FGSM {eps:.3f}": fgsm_at(eps) for eps in EPS},
        **{f"BIM {eps:.3f}": bim_at(eps) for eps in EPS},
        **{f"PGD {eps:.3f}": pgd_at(eps) for eps in EPS},
        **{f"BIM {eps:.3f} (Joel et al. 2023)": joel_bim_at(eps) for eps in EPS},
        **{f"PGD {eps:.3f} (Joel et al. 2023)": joel_pgd_at(eps) for eps in EPS},
        **{f"APGD {eps:.3f}": apgd_at(eps) for eps in EPS},
        **{f"Square {eps:.3f}": square_at(eps) for eps in EPS},
    }
)
"""What the node itself knows (`attacks.suite`), and the attacks of this package."""
