"""DeepFool: to the nearest point of the linearised boundary, again and again (Moosavi-Dezfooli et al. 2016).

Always on log-odds: on probabilities the gradient dies with saturation. The overshoot multiplies the sum of all steps,
and what is looked at is the overshot picture, as foolbox does it; the Toolbox overshoots once, at the end. What is
found lies so close to the boundary that rounding to stored bits mostly undoes it: `kappa` goes on until the wrong
margin exceeds it, which is another attack, to be named as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Logits, Margins, not_finite, slopes
from dicomguard.lab.attacks.found import measured, wide
from dicomguard.scoring import head

_LEAST = 1e-5  # log-odds: a margin of zero asks for no step, but has not changed sides either
_FLAT = 1e-20  # squared length of a gradient that leads nowhere


@dataclass(frozen=True, slots=True)
class DeepFool:
    """The noise-consistency paper's settings. `nearest`: other classes that are looked at, the likeliest ones."""

    steps: int = 50
    overshoot: float = 0.02
    kappa: float = 0.0
    nearest: int = 10


_Faces = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of pixels (n, C, H, W) and places (n,): the margin (n,), and of the nearest face its value (n,) and gradient."""


def deepfool(margins: Margins, pixels: Tensor, settings: DeepFool | None = None, *, chunk: int = CHUNK) -> Attacked:
    """The closed form for two classes: each step is -(m / |grad m|^2) grad m, until the margin m is below -kappa.

    With more classes the face is that of the strongest other class; `deepfool_classes` compares their distances.
    `strength` of the result is the L-inf distance, whatever the L2 norm is that the attack makes small.
    """
    settings = settings or DeepFool()

    def faces(current: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        margin, gradient = slopes(margins, current, which, stop=-settings.kappa, chunk=chunk)
        return margin, margin, gradient

    return _walk(faces, pixels, settings)


def deepfool_classes(
    log_odds: Logits, pixels: Tensor, settings: DeepFool | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """Algorithm 2: of all pairs of an answer and another class, across the one whose boundary is nearest.

    `log_odds`: (n, C, H, W) -> (n, questions, classes); one changed finding is a flip. The pairs are chosen once, at
    the image itself, by their log-odds; two classes give what `deepfool` gives.

    Raises:
        DicomguardError: log-odds or a gradient are not finite.

    """
    settings = settings or DeepFool()
    if not len(pixels):
        return Attacked.untried(pixels)
    with torch.no_grad():
        clean = torch.cat([_finite(log_odds(part)) for part in torch.split(pixels, chunk)])
    kept = head.answers(clean)
    order = _pairs(clean, kept).argsort(1)[:, : min(settings.nearest, clean.shape[1] * (clean.shape[2] - 1))]

    def faces(current: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = zip(torch.split(current, chunk), torch.split(which, chunk), strict=True)
        found = [_nearest(log_odds, part, kept[places], order[places], settings.kappa) for part, places in parts]
        margin, value, gradient = zip(*found, strict=True)
        return torch.cat(margin), torch.cat(value), torch.cat(gradient)

    return _walk(faces, pixels, settings)


def _walk(faces: _Faces, pixels: Tensor, settings: DeepFool) -> Attacked:
    """Steps of the images that have not flipped and still have a slope to follow."""
    found = Attacked.untried(pixels)
    which = found.unflipped()
    total = torch.zeros_like(found.pixels)
    current = pixels.detach()
    for taken in range(settings.steps + 1):
        if not len(which):
            break
        margin, value, gradient = faces(current, which)
        left = found.record(which, current, margin, radius=0.0, kappa=settings.kappa)
        steepness = gradient.square().sum((1, 2, 3))
        left &= steepness > _FLAT
        if taken == settings.steps:
            break
        which, value, gradient, steepness = which[left], value[left], gradient[left], steepness[left]
        total[which] -= wide((value + settings.kappa).clamp(min=_LEAST) / steepness) * gradient
        current = (pixels[which] + (1 + settings.overshoot) * total[which]).clamp(0, 1)
    return measured(found, pixels)


def _pairs(log_odds: Tensor, kept: Tensor) -> Tensor:
    """Log-odds of the answers against every class, (n, questions x classes); infinite against themselves."""
    own = kept.unsqueeze(-1)
    pairs: Tensor = log_odds.gather(-1, own) - log_odds
    return pairs.scatter(-1, own, torch.inf).flatten(1)


def _nearest(
    log_odds: Logits, pixels: Tensor, kept: Tensor, order: Tensor, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(mode=False), torch.enable_grad():
        current = pixels.detach().clone().requires_grad_()
        pairs = _pairs(_finite(log_odds(current)), kept)
        values = pairs.gather(1, order)
        last = order.shape[1] - 1
        gradients = torch.stack(
            [torch.autograd.grad(values[:, i].sum(), current, retain_graph=i < last)[0] for i in range(last + 1)], 1
        )
    if not bool(gradients.isfinite().all()):
        raise not_finite("gradient")
    values = values.detach()
    distance = (values + kappa).abs() / gradients.flatten(2).norm(dim=2).clamp(min=_FLAT)
    rows, chosen = torch.arange(len(pixels), device=pixels.device), distance.argmin(1)
    return pairs.detach().amin(1), values[rows, chosen], gradients[rows, chosen]


def _finite(log_odds: Tensor) -> Tensor:
    if not bool(log_odds.detach().isfinite().all()):
        raise not_finite("logit")
    return log_odds
