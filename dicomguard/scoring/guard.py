"""The certified guard: a small smoothed network beside the protected one, whose vote is a proof for a pixel budget.

The guard g sees the 64 x 64 miniature under Gaussian noise sigma; G is its majority over the noise (Cohen, Rosenfeld,
Kolter 2019, arXiv 1902.02918). A change of at most eps per stored pixel moves the miniature by at most eps per pixel,
so by at most 64 eps in L2. Let c be the answer that the protected model f gives to the image that arrived, k of n noise
draws vote for c, and pL the one-sided Clopper-Pearson bound of k / n. If pL > Phi(64 eps / sigma), then on every image
within eps of this one, the one that was acquired among them, G answers c: CERTIFIED. The class is fixed before any
noise is drawn, so no selection step is needed.

Not proven: anything where f and G disagreed on the acquired image, larger edits, headers, f being right, or a statement
about a whole study. The noise must be independent of the image: its seed is an HMAC under the site key.

What the header says sets the guard's range, so a header may blank its picture: the same stored values under Bits Stored
16 instead of 12 are a sixteenth of the contrast, which drowns in the noise, and a majority for one class is all that is
left. Or the picture is dimmed, and a window brings it back for the protected model alone. Therefore only images vote
whose range was there among the clean images of the enrolment, and behind a veil no thicker than theirs (`View`): all
others, and those without a plane, are UNENROLLED.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import SIDE, Miniature, averaged
from dicomguard.scoring import head, noise
from dicomguard.scoring.classifier import fast_dtype, fused
from dicomguard.scoring.component import Finite
from dicomguard.scoring.head import Answer

# What float32 costs, paid by the radius and by the bound: averaging and adding noise round (at most 1e-3 in L2), and
# normal numbers made of 24 bits end at 5.9 sigma (at most 1e-4 of all draws would have gone beyond).
_RADIUS_SLACK: Final = 1e-3
_BOUND_SLACK: Final = 1e-4
_CHUNK: Final = 128
_MAX_LOOKS: Final = 3
_MOST_DRAWS: Final = 100_000
# Double precision keeps 2^-52 of the largest number in it. A range beside an intercept a billion times as large still
# moves by less than 1e-6, 64 of which the slack of the radius pays for many times over.
_LARGEST_OFFSET: Final = 1e9
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_PAIRS: Final = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 4))
_FAINT: Final = 0.002  # of the range: steps in a flat background are rounding, and their ratio says nothing
BLANK: Final = np.full((1, SIDE, SIDE), np.nan, np.float32)
"""The plane of what no guard may look at."""

Share = Annotated[float, Field(gt=0, lt=1)]
Kind = tuple[str, float, float]
Veil = tuple[float, float]
Range = tuple[str, Finite, Finite, Finite, Finite]
Window = tuple[float, float]


class Outcome(StrEnum):
    """What the guard's vote says about one image; UNENROLLED: nothing, for no clean image had such a range."""

    CERTIFIED = "CERTIFIED"
    DISAGREE = "DISAGREE"
    UNCERTIFIED = "UNCERTIFIED"
    UNENROLLED = "UNENROLLED"


class GuardSettings(BaseModel):
    """`eps`: the budget, as a fraction of the guard's fixed range; `window`: that range in modality units, None where
    it is what Bits Stored can hold. `looks`: numbers of draws after which the bound is read, each at alpha / looks.
    `ranges`: the (kind, low, high) of the clean images (`range_of`) and how thick a veil one of them had at most
    (`View`, either number); an image that has none of these ranges, or a thicker one, gets no vote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sigma: Annotated[float, Field(gt=0, le=4)]
    eps: Annotated[float, Field(gt=0, le=0.25)]
    alpha: Share = 1e-6
    looks: Annotated[
        tuple[Annotated[int, Field(ge=1, le=_MOST_DRAWS)], ...], Field(min_length=1, max_length=_MAX_LOOKS)
    ]
    window: Window | None = None
    ranges: Annotated[tuple[Range, ...], Field(min_length=1)]
    width: Annotated[int, Field(ge=4, le=256)] = 32

    @model_validator(mode="after")
    def _in_order(self) -> GuardSettings:
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError("looks must increase")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("the window's low end must lie below its high end")
        return self

    def bar(self) -> float:
        """The share of votes that the lower bound must exceed: Phi(64 eps / sigma)."""
        return _bar(self.eps, self.sigma)

    def needed(self) -> tuple[int, ...]:
        """For each look the smallest number of votes that certifies; more than the draws where none does."""
        return tuple(_votes_needed(n, self.alpha / len(self.looks), self.bar()) for n in self.looks)


def _bar(eps: float, sigma: float) -> float:
    return float(stats.norm.cdf((SIDE * eps + _RADIUS_SLACK) / sigma)) + _BOUND_SLACK


def lower_bound(votes: int, draws: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson bound of votes / draws at level `alpha`."""
    return float(stats.beta.ppf(alpha, votes, draws - votes + 1)) if votes else 0.0


def _votes_needed(draws: int, alpha: float, bar: float) -> int:
    low, high = 0, draws + 1  # the bound grows with the votes
    while low < high:
        middle = (low + high) // 2
        if lower_bound(middle, draws, alpha) > bar:
            high = middle
        else:
            low = middle + 1
    return low


def range_of(image: Image, window: Window | None) -> Kind | None:
    """The (kind, low, high) of an image, by which it is enrolled; None where it has no plane that could vote.

    `kind` is the header's photometric interpretation (PS3.3 C.7.6.3.1.2), followed by "/LUT" where a Modality LUT lies
    between stored values and modality units; `low` and `high` are what Bits Stored and Pixel Representation can hold,
    in modality units (stored ones behind a table; 0 and 1 of colour). All three must be equal to those of a clean image
    exactly. None: no miniature (a palette), numbers that are not finite or an intercept that leaves no precision; and,
    where the guard has a `window` in modality units, colour and tables, which are not in them.
    """
    small = image.miniature
    if small is None or (window is not None and (small.has_table or image.pixels.shape[0] != 1)):
        return None
    low, high = float(small.low), float(small.high)
    span = min(high - low, math.inf if window is None else window[1] - window[0])
    is_precise = math.isfinite(span) and span > 0 and max(abs(low), abs(high)) <= _LARGEST_OFFSET * span
    if not is_precise or not np.isfinite(small.values).all():
        return None
    return image.photometric_interpretation + ("/LUT" if small.has_table else ""), low, high


@dataclass(frozen=True, slots=True)
class View:
    """What a guard can see of an image, beside its range as `kind`.

    `plane`: the miniature in the guard's fixed range, clipped: (1, 64, 64) in [0, 1].

    `veil`: how much less than the protected model the guard sees, which a header can bring about. The first number: how
    many times as much contrast the model is shown, at most, anywhere between the shadows and the lights of the picture.
    About 1 where the whole range is shown; 16 where a window shows 8 of 12 bits. Compared are quantiles of both 64 x 64
    pictures, which a bright patch does not move. The second: the share of the picture that lies outside of the guard's
    range (of a `window`) and is shown neither black nor white. Colour is shown as it is: (1, 0).
    """

    kind: Kind
    plane: NDArray[np.float32]
    veil: Veil


def view_of(image: Image, window: Window | None) -> View | None:
    """What a guard with this range sees of an image; None where the image has none (`range_of`)."""
    kind, small = range_of(image, window), image.miniature
    if kind is None or small is None:
        return None
    plane = _plane(small, window)
    return View(kind, plane, _veil(image, plane[0]))


def _plane(small: Miniature, window: Window | None) -> NDArray[np.float32]:
    low, high = window or (small.low, small.high)
    # In double precision to the end: at an intercept of 1e7 float32 knows whole modality units only.
    values = np.asarray(small.values, dtype=np.float64)
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)[None]


def _veil(image: Image, plane: NDArray[np.float32]) -> Veil:
    if image.pixels.shape[0] != 1:
        return 1.0, 0.0
    shown = averaged(image.pixels[0])
    if not np.isfinite(shown).all():
        return 0.0, 0.0  # the score will be no number either, and be held for that
    is_outside = (plane <= 0) | (plane >= 1)
    hidden = float((is_outside & (shown > _FAINT) & (shown < 1 - _FAINT)).mean())
    if ((shown - shown.mean()) * (plane - plane.mean())).sum() < 0:
        shown = 1 - shown
    levels = np.quantile(plane, _QUANTILES)
    pairs = [(i, j) for i, j in _PAIRS if levels[i] > 0 and levels[j] < 1]
    if not pairs:  # all of it at the ends: no picture for the guard, and so much the worse if the model has one
        return (math.inf if hidden else 0.0), hidden
    model = np.quantile(shown, _QUANTILES)
    return float(max((model[j] - model[i]) / (levels[j] - levels[i] + _FAINT) for i, j in pairs)), hidden


def veils(ranges: Sequence[Range]) -> dict[Kind, Veil]:
    """The thickest veil of each (kind, low, high)."""
    return {(kind, low, high): (gain, hidden) for kind, low, high, gain, hidden in ranges}


def is_covered(kind: Kind, veil: Veil, thickest: Mapping[Kind, Veil]) -> bool:
    """Whether an image of this kind and veil is like those that were enrolled. NaN is not."""
    bound = thickest.get(kind)
    return bound is not None and veil[0] <= bound[0] and veil[1] <= bound[1]


@dataclass(frozen=True, slots=True)
class Vote:
    """`votes` of `draws` for the protected model's answer; `first_share` that of the first look, which is scored.

    `majority` is the guard's own answer. What was spent beyond the first look only serves the certificate. Where the
    outcome is UNENROLLED nothing was drawn: no votes, a share of NaN, and the protected model's answer as majority.
    """

    votes: int
    draws: int
    first_share: float
    outcome: Outcome
    majority: Answer


class _Block(nn.Module):
    """Two convolutions with a shortcut (He et al. 2016), halving rows and columns."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class GuardNetwork(nn.Module):
    """64 x 64 planes to outputs like those of a protected model's head; 1.2 M parameters at width 32."""

    def __init__(self, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(_Block(width << i, width << (i + 1)) for i in range(3)))
        self.head = nn.Linear(width << 3, outputs)

    def forward(self, planes: Tensor) -> Tensor:
        """Shape (N, 1, 64, 64) in [0, 1] plus noise -> (N, outputs)."""
        return cast("Tensor", self.head(self.blocks(self.stem(planes)).mean((2, 3))))


class Guard:
    """A trained guard on a device. Deterministic for a plane, an answer and a seed."""

    def __init__(
        self, settings: GuardSettings, network: GuardNetwork, reading: head.Head, device: torch.device
    ) -> None:
        self.settings = settings
        self.head = reading
        self.device = device
        self.dtype = fast_dtype(device)
        self._network = fused(network).to(self.dtype).to(device)
        self._needed = settings.needed()
        self._veils = veils(settings.ranges)

    @classmethod
    def from_tensors(
        cls, settings: GuardSettings, tensors: Mapping[str, Tensor], reading: head.Head, device: torch.device
    ) -> Guard:
        """From what an enrolment stores under `guard.`.

        Raises:
            BundleError: tensors that do not fit the settings, or are not finite.

        """
        network = GuardNetwork(output_count(reading), settings.width)
        state = {name.removeprefix("guard."): t.float() for name, t in tensors.items() if name.startswith("guard.")}
        try:
            counters = {name: t for name, t in network.state_dict().items() if not t.is_floating_point()}
            network.load_state_dict(state | counters, strict=True)
        except RuntimeError as error:
            raise BundleError(
                f"the guard's weights do not fit: {' '.join(str(error).split())[:300]}.", advice="Enrol again."
            ) from error
        if not all(t.isfinite().all() for t in state.values()):
            raise BundleError("the guard's weights hold NaN or infinity.", advice="Enrol again.")
        return cls(settings, network, reading, device)

    def planes(self, images: Sequence[Image]) -> Tensor:
        """Miniatures in the guard's fixed range, clipped: (N, 1, 64, 64) in [0, 1].

        All NaN, which gets no vote, where an image is not like those that were enrolled.
        """
        rows = [self._shown(view_of(image, self.settings.window)) for image in images]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, 1, SIDE, SIDE)

    def _shown(self, view: View | None) -> NDArray[np.float32]:
        """The plane, if clean images of the enrolment had this range, and as thick a veil."""
        return view.plane if view is not None and is_covered(view.kind, view.veil, self._veils) else BLANK

    def logits(self, noisy: Tensor) -> Tensor:
        """Log-odds (n, questions, classes) of planes with their noise on them; gradients flow to the planes."""
        x = noisy.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        return self.head.log_odds(self._network(x).float())

    def answers(self, plane: Tensor, seed: bytes, start: int, stop: int) -> Tensor:
        """The guard's answer under each of the noise draws `start` to `stop`: (draws, questions), on the CPU."""
        found = []
        with torch.inference_mode():
            for first in range(start, stop, _CHUNK):
                streams = range(first, min(first + _CHUNK, stop))
                drawn = noise.normal(seed, streams, (1, SIDE, SIDE), self.device)
                drawn.mul_(self.settings.sigma).add_(plane.to(self.device))
                found.append(head.answers(self.logits(drawn)).cpu())
        return torch.cat(found)

    def vote(self, plane: Tensor, answer: Answer, seed: bytes) -> Vote:
        """Ask the guard about one plane (1, 64, 64) that the protected model answered with `answer`.

        A plane with NaN or infinity gets no vote: it is UNENROLLED, and its share NaN, which no threshold passes.
        """
        if not bool(plane.isfinite().all()):
            return Vote(0, 0, math.nan, Outcome.UNENROLLED, answer)
        wanted = torch.tensor(answer)
        seen = torch.empty(0, len(answer), dtype=torch.int64)
        first_share = math.nan
        for index, draws in enumerate(self.settings.looks):
            seen = torch.cat([seen, self.answers(plane, seed, len(seen), draws)])
            votes = int((seen == wanted).all(1).sum())
            if index == 0:
                first_share = votes / draws
            if votes >= self._needed[index]:
                return Vote(votes, draws, first_share, Outcome.CERTIFIED, answer)
            if not self._may_yet_certify(votes, draws):
                break
        majority = _majority(seen)
        outcome = Outcome.UNCERTIFIED if majority == answer else Outcome.DISAGREE
        return Vote(votes, len(seen), first_share, outcome, majority)

    def _may_yet_certify(self, votes: int, draws: int) -> bool:
        """False where further looks are vain; giving up early can only cost a certificate, never make one."""
        shares = [needed / n for needed, n in zip(self._needed, self.settings.looks, strict=True) if n > draws]
        hope = votes / draws + 3 * math.sqrt(max(votes * (draws - votes), draws) / draws**3)
        return any(share <= min(hope, 1.0) for share in shares)


def output_count(reading: head.Head) -> int:
    """How many outputs a network with this head has, a binary one being given one logit."""
    return 1 if reading.kind is head.HeadKind.SOFTMAX and len(reading.labels) == 2 else len(reading.labels)


def _majority(seen: Tensor) -> Answer:
    """The most frequent answer; of equals the first in order."""
    distinct, counts = torch.unique(seen, dim=0, return_counts=True)
    return tuple(int(c) for c in distinct[counts.argmax()])


def looks_for(eps: float, sigma: float, alpha: float = 1e-6) -> tuple[int, ...]:
    """Three looks: where a unanimous vote certifies, then two that forgive some dissent.

    Empty where that would take more draws than settings may hold: sigma is too small for eps.
    """
    bar = _bar(eps, sigma)
    if bar >= 1:
        return ()
    unanimous = math.ceil(math.log(alpha / _MAX_LOOKS) / math.log(bar)) + 1
    first = max(unanimous, 64)
    return () if 6 * first > _MOST_DRAWS else (first, max(3 * first, 400), max(6 * first, 1200))
