"""An attack that knows everything: it moves a model's answer and takes the guard's noisy vote along, within a budget.

The model is pushed towards a target class and, with a weight, the guard towards the same class under its own noise
(expectation over transformation, Athalye et al. 2018; the loss is that of SmoothAdv, Salman et al. 2019: minus the log
of the mean probability over noise draws). Gradients are scaled to mean absolute value 1 before they are weighed and go
into a momentum (MI-FGSM, Dong et al. 2018). A side that has what it wants is left alone as long as the other has not
(selective descent, Bryniarski et al. 2021). Every picture that is looked at is one that a file can hold: the forward
passes see rounded stored values, the steps add up in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from dicomguard.attacks.margins import Logits
from dicomguard.errors import DicomguardError
from dicomguard.pixels.miniature import area_weights


def miniatures(pixels: Tensor) -> Tensor:
    """The averaging of `pixels.miniature`, differentiable: (n, 1, H, W) -> (n, 1, 64, 64).

    Not `adaptive_avg_pool2d`, whose cells overlap where a side is no multiple of 64.
    """
    # A copy, because the weights are shared and read-only.
    rows, columns = (torch.from_numpy(area_weights(size).copy()).to(pixels) for size in pixels.shape[-2:])
    return rows @ pixels @ columns.T


@dataclass(frozen=True, slots=True)
class Pair:
    """A protected model and its guard, as differentiable functions of pixels in the guard's fixed range.

    `model`: (n, 1, H, W) -> log-odds (n, questions, classes), see `scoring.head`; `planes`: (n, 1, H, W) ->
    (n, P, S, S); `guard`: planes -> (n, questions, classes). Precision is theirs: attack what the node computes.
    """

    model: Logits
    guard: Logits
    sigma: float
    planes: Callable[[Tensor], Tensor] = miniatures


@dataclass(frozen=True, slots=True)
class Tactic:
    """What one attempt tries.

    `weight`: share of the push that goes to the guard, 0 (the model alone) to 1 (the guard alone). `confidence`: how
    far past the boundary the model is pushed, in multiples of its margin on the clean image. `noise`: half the range of
    uniform noise under which the model shall keep its new answer too, against a noise-consistency check; 0 for none.
    """

    weight: float
    confidence: float = 0.0
    noise: float = 0.0
    random_start: bool = False
    momentum: float = 0.9


TACTICS = tuple(
    Tactic(weight, confidence, noise, random_start, momentum)
    for (random_start, momentum), (confidence, noise), weight in product(
        ((False, 0.9), (True, 0.0)), ((0.0, 0.0), (0.5, 0.0), (1.0, 0.03)), (0.5, 0.0, 0.8, 0.2, 1.0)
    )
)


@dataclass(frozen=True, slots=True)
class Budget:
    """`eps` as a fraction of the fixed range, which spans `levels` grey levels (2^bits - 1 for stored bits).

    `step`: of the radius; `draws`: noise draws of the guard for each step; `model_every`: steps between two looks at
    the model, whose direction is kept meanwhile.
    """

    eps: float
    levels: int
    steps: int = 20
    step: float = 0.2
    draws: int = 8
    model_every: int = 2

    @property
    def grey_levels(self) -> int:
        """The largest change of a stored value that stays within eps.

        Raises:
            DicomguardError: eps is less than one grey level, so no file can be attacked.

        """
        whole = int(self.eps * self.levels + 1e-9)
        if whole < 1:
            raise DicomguardError(
                f"A budget of {self.eps:g} is less than one of {self.levels} grey levels: no file can be attacked.",
                advice="Take images with more stored bits, or a larger budget.",
            )
        return whole


@dataclass(frozen=True, slots=True)
class Evasion:
    """Result for a batch. `stored` (n, 1, H, W) int64: the best file; `flipped` (n,): the model gives the target.

    `margin` (n,) of the model against the target, negative where it flipped; `vote` (n,) the guard's mean probability
    of the target over a step's draws, 0 where the tactic leaves the guard alone.
    """

    stored: Tensor
    flipped: Tensor
    margin: Tensor
    vote: Tensor


def log_vote(pair: Pair, planes: Tensor, noise: Tensor, targets: Tensor) -> Tensor:
    """The log of the guard's mean probability of `targets` (n, questions) over draws: (n,); gradients flow.

    `planes`: (n, P, S, S); `noise`: (n, draws, P, S, S), standard normal.
    """
    draws = noise.shape[1]
    noisy = (planes.unsqueeze(1) + pair.sigma * noise).flatten(0, 1)
    logs = pair.guard(noisy).float().log_softmax(2).view(len(planes), draws, *targets.shape[1:], -1)
    wanted = targets[:, None, :, None].expand(-1, draws, -1, -1)
    chosen = logs.gather(3, wanted)[..., 0].sum(2)  # the log-probability of all answers together
    return chosen.logsumexp(1) - torch.log(torch.tensor(float(draws)))


def joint_attack(
    pair: Pair, stored: Tensor, targets: Tensor, tactics: Sequence[Tactic], seeds: Sequence[int], budget: Budget
) -> Evasion:
    """Attack every image of a batch towards its target answer, each with its own tactic and seed.

    `stored`: (n, 1, H, W) int64 grey levels above the low end of the fixed range; `targets`: (n, questions) int64. The
    best file of all that were looked at has the model's target answer, then the confidence asked for, then the vote.

    Raises:
        DicomguardError: see `Budget.grey_levels`.

    """
    return _Run(pair, stored, targets, tactics, seeds, budget).run()


class _Run:
    """One batch; rows do not depend on each other."""

    def __init__(
        self,
        pair: Pair,
        stored: Tensor,
        targets: Tensor,
        tactics: Sequence[Tactic],
        seeds: Sequence[int],
        budget: Budget,
    ) -> None:
        self.pair = pair
        self.stored = stored
        self.targets = targets
        self.budget = budget
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        whole = budget.grey_levels
        # A value that lies outside of the fixed range already may stay there.
        self.low = (stored - whole).maximum(stored.clamp(max=0))
        self.high = (stored + whole).minimum(stored.clamp(min=budget.levels))
        self.radius = whole / budget.levels
        self.weight = self._column([tactic.weight for tactic in tactics])
        self.noise = self._column([tactic.noise for tactic in tactics])
        self.momentum = self._column([tactic.momentum for tactic in tactics])
        self.random = self._column([float(tactic.random_start) for tactic in tactics])
        self.led = (self.weight > 0).nonzero()[:, 0]
        self.hidden = (self.noise > 0).nonzero()[:, 0]
        with torch.no_grad():
            clean = self._margin(pair.model(stored / budget.levels), targets)
        self.scale = clean.abs().clamp(min=1e-6)
        self.kappa = self._column([tactic.confidence for tactic in tactics]) * self.scale
        self.found = Evasion(
            stored.clone(),
            torch.zeros(len(stored), dtype=torch.bool, device=stored.device),
            clean.clone(),
            torch.zeros_like(clean),
        )
        self.merit = torch.full_like(clean, -torch.inf)

    def run(self) -> Evasion:
        """Steps, and a look at the model on every `model_every`th and on the last."""
        start = self._random(self.stored.shape[1:], uniform=True) * self.radius * _wide(self.random)
        low, high = self.low / self.budget.levels, self.high / self.budget.levels
        current = (self.stored / self.budget.levels + start).clamp(low, high)
        speed = torch.zeros_like(current)
        margin, towards = self.found.margin, torch.zeros_like(current)
        for taken in range(self.budget.steps + 1):
            last = taken == self.budget.steps
            files = self._rounded(current)
            vote, along = self._look_at_guard(files)
            if last or taken % self.budget.model_every == 0:
                margin, towards = self._look_at_model(files)
                self._keep(files, margin, vote)
            if last:
                break
            push = self._weighed(margin, towards, vote, along)
            speed = _wide(self.momentum) * speed + push
            current = (current - self.budget.step * self.radius * speed.sign()).clamp(low, high)
        return self.found

    def _weighed(self, margin: Tensor, towards: Tensor, vote: Tensor, along: Tensor) -> Tensor:
        """Both sides by their weights, or only the one that has not got what it wants."""
        model_wants, guard_wants = margin > -self.kappa, vote < _SURE
        both = model_wants == guard_wants
        model = (1 - self.weight) * (both | model_wants | (self.weight == 0))
        guard = self.weight * (both | guard_wants | (self.weight == 1))
        return _wide(model) * towards + _wide(guard) * along

    def _look_at_model(self, files: Tensor) -> tuple[Tensor, Tensor]:
        """Margins on the files (n,) and the scaled gradient, also through noise where the tactic says so."""
        with torch.enable_grad():
            pixels = (files / self.budget.levels).requires_grad_()
            spread = self._random(files.shape[1:], uniform=True)[self.hidden] * _wide(self.noise[self.hidden])
            seen = torch.cat([pixels, (pixels[self.hidden] + spread).clamp(0, 1)])
            targets = torch.cat([self.targets, self.targets[self.hidden]])
            margins = self._margin(self.pair.model(seen), targets)
            (gradient,) = torch.autograd.grad(margins.sum(), pixels)
        return margins.detach()[: len(files)], _scaled(gradient)

    def _look_at_guard(self, files: Tensor) -> tuple[Tensor, Tensor]:
        """Mean probability of the target under the guard's noise (n,), and the scaled gradient of minus its log."""
        vote = torch.zeros_like(self.merit)
        scaled = torch.zeros(files.shape, device=files.device)
        if not len(self.led):
            return vote, scaled
        draws = self.budget.draws
        with torch.enable_grad():
            pixels = (files[self.led] / self.budget.levels).requires_grad_()
            planes = self.pair.planes(pixels)
            noise = self._random((draws, *planes.shape[1:]), uniform=False)[self.led]
            log_mean = log_vote(self.pair, planes, noise, self.targets[self.led])
            (gradient,) = torch.autograd.grad(-log_mean.sum(), pixels)
        vote[self.led] = log_mean.detach().exp()
        scaled[self.led] = _scaled(gradient)
        return vote, scaled

    def _keep(self, files: Tensor, margin: Tensor, vote: Tensor) -> None:
        flipped = margin < 0
        merit = vote - (margin + self.kappa).clamp(min=0) / self.scale
        merit = torch.where(self.weight == 0, -margin / self.scale, merit)
        better = (flipped & ~self.found.flipped) | ((flipped == self.found.flipped) & (merit > self.merit))
        self.merit[better] = merit[better]
        self.found.stored[better] = files[better]
        self.found.flipped[better] = flipped[better]
        self.found.margin[better] = margin[better]
        self.found.vote[better] = vote[better]

    def _rounded(self, current: Tensor) -> Tensor:
        return (current * self.budget.levels).round().long().maximum(self.low).minimum(self.high)

    def _margin(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The best other class less the target, at the worst question, (n,): negative where the target is given."""
        logits = logits.float()
        own = targets.unsqueeze(2)
        return (logits.scatter(2, own, -torch.inf).amax(2) - logits.gather(2, own)[..., 0]).amax(1)

    def _random(self, shape: Sequence[int], *, uniform: bool) -> Tensor:
        """One draw for every row from the row's own generator: uniform in [-1, 1), or standard normal."""
        if uniform:
            rows = [2 * torch.rand(tuple(shape), generator=one) - 1 for one in self.generators]
        else:
            rows = [torch.randn(tuple(shape), generator=one) for one in self.generators]
        return torch.stack(rows).to(self.stored.device)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.stored.device)


_SURE = 0.98  # a mean probability at which nearly every draw votes for the target


def _scaled(gradient: Tensor) -> Tensor:
    return gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)


def _wide(column: Tensor) -> Tensor:
    return column.view(-1, 1, 1, 1)
