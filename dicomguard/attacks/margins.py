"""What an attack pushes down: how far each image is from losing the answer that it has now.

An attack knows no heads and no classes. It is given `Margins`, and the adaptors here make them of a network's logits.
Margins are differences of logits, never of probabilities: those saturate, and their gradient dies with them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dicomguard.errors import DicomguardError
from dicomguard.scoring import head

Margins = Callable[[Tensor, Tensor], Tensor]
"""`margins(pixels, which)` -> (n,), differentiable in `pixels`; negative where the answer has changed.

`pixels`: (n, C, H, W) in [0, 1], any part of the attacked batch; `which`: (n,) int64, the place of each in that batch.
"""

Logits = Callable[[Tensor], Tensor]
CHUNK = 8
"""Images in one forward pass: on a processor their activations stay in cache. Take more on an accelerator."""


def from_logits(logits: Logits, pixels: Tensor, *, chunk: int = CHUNK) -> Margins:
    """One logit per image, (n,): margin s z with s the sign of the logit at `pixels` (0 counts as positive)."""
    sign = torch.where(_answers(logits, pixels, chunk) >= 0, 1.0, -1.0)
    return lambda current, which: sign[which] * logits(current)


def from_log_odds(log_odds: Logits, pixels: Tensor, *, answers: Tensor | None = None, chunk: int = CHUNK) -> Margins:
    """Log-odds (n, questions, classes) of any head, see `scoring.head`.

    Margin: the log-odds of the answer at `pixels` against the strongest other class, of the question where that is
    least, because one changed finding is a flip. `answers` (N, questions): those to lose, if not its own.
    """
    kept = answers_of(log_odds, pixels, chunk=chunk) if answers is None else answers
    return lambda current, which: head.margins(log_odds(current), kept[which])


def answers_of(log_odds: Logits, pixels: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The answers that log-odds (n, questions, classes) give to `pixels` (N, C, H, W) now: (N, questions)."""
    return head.answers(_answers(log_odds, pixels, chunk))


def values(margins: Margins, pixels: Tensor, which: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Margins (n,) without gradients, in forward passes of at most `chunk` images.

    Raises:
        DicomguardError: a margin is not a finite number.

    """
    with torch.no_grad():
        parts = zip(torch.split(pixels, chunk), torch.split(which, chunk), strict=True)
        return torch.cat([_checked(margins(part, places), part) for part, places in parts])


def slopes(
    margins: Margins, pixels: Tensor, which: Tensor, *, stop: float = -torch.inf, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Margins (n,) and their gradients (n, C, H, W); zeros for a chunk in which every margin is below `stop`.

    Each chunk goes forward and back before the next begins, so memory does not grow with the batch.

    Raises:
        DicomguardError: a margin or a gradient is not a finite number.

    """
    found, gradients = [], []
    for part, places in zip(torch.split(pixels, chunk), torch.split(which, chunk), strict=True):
        # What Scorer.prepare made is an inference tensor; a clone outside of that mode takes gradients.
        with torch.inference_mode(mode=False), torch.enable_grad():
            current = part.detach().clone().requires_grad_()
            margin = _checked(margins(current, places), part)
            if bool((margin.detach() >= stop).any()):
                (gradient,) = torch.autograd.grad(margin.sum(), current)
            else:
                gradient = torch.zeros_like(current, requires_grad=False)
        if not bool(gradient.isfinite().all()):
            raise not_finite("gradient")
        found.append(margin.detach())
        gradients.append(gradient)
    return torch.cat(found), torch.cat(gradients)


def _answers(logits: Logits, pixels: Tensor, chunk: int) -> Tensor:
    with torch.no_grad():
        found = torch.cat([logits(part) for part in torch.split(pixels, chunk)])
    if not bool(found.isfinite().all()):
        raise not_finite("logit")
    return found


def _checked(margin: Tensor, pixels: Tensor) -> Tensor:
    if margin.shape != pixels.shape[:1]:
        raise ValueError(f"margins of {len(pixels)} images have shape {tuple(margin.shape)}, not ({len(pixels)},)")
    if not bool(margin.detach().isfinite().all()):
        raise not_finite("margin")
    return margin


def not_finite(what: str) -> DicomguardError:
    """What a person reads of a network that gives NaN or infinity; `what`: logit, margin or gradient."""
    return DicomguardError(
        f"The network cannot be attacked: a {what} is not a finite number.",
        advice="Check the weights and the transforms of the bundle on the images that were given.",
    )
