"""Attacks that climb a ladder of strengths and stop at the first flip (the noise-consistency paper, section 2.2).

For each strength a, in order: FGSM adds a times the sign of the gradient (Goodfellow et al. 2015); BIM takes ten steps
of .001 along that sign, projected onto the L-inf ball of radius a around the image (Kurakin et al. 2017); PGD does so
from a uniformly random point of the ball (Madry et al. 2018). Every picture is looked at, and the first that has
flipped is the answer. The gradient is that of the margin, which has the sign of the cross-entropy's without its
saturation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dicomguard.attacks.attacked import Attacked, RandomStarts, into_ball
from dicomguard.attacks.margins import CHUNK, Margins, slopes, values

LADDER = tuple(round(0.001 * rung, 3) for rung in range(1, 11))


@dataclass(frozen=True, slots=True)
class Ladder:
    """Strengths, ascending, and step as fractions of the presentation range.

    The paper's attacks have kappa 0. A larger `kappa` goes on until the wrong margin exceeds it, so that the flip
    survives rounding to stored bits: another attack, to be named as such.
    """

    strengths: tuple[float, ...] = LADDER
    step: float = 0.001
    steps: int = 10
    kappa: float = 0.0


def early_stopped_fgsm(
    margins: Margins, pixels: Tensor, ladder: Ladder | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """The first strength a at which x - a sign(gradient of the margin) flips. One gradient, at the image itself."""
    ladder = ladder or Ladder()
    found = Attacked.untried(pixels)
    which = found.unflipped()
    if not len(which):
        return found
    direction = -slopes(margins, pixels, which, chunk=chunk)[1].sign()
    for radius in ladder.strengths:
        which = found.unflipped()
        if not len(which):
            break
        # Read from `pixels` at every rung: what `found` holds is the rung before.
        current = into_ball(pixels[which] + radius * direction[which], pixels[which], radius)
        margin = values(margins, current, which, chunk=chunk)
        found.record(which, current, margin, radius=radius, kappa=ladder.kappa)
    return found


def early_stopped_bim(
    margins: Margins, pixels: Tensor, ladder: Ladder | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """Steps from the image itself, once for each rung.

    Rungs differ only where the ball cuts a step off. The steps before that are taken once and every later rung branches
    off from them, which halves the work on images that flip late.
    """
    ladder = ladder or Ladder()
    climb = _Climb(margins, pixels, ladder, chunk)
    trunk = _Place(climb.found.unflipped(), pixels, None, 0)
    for radius in ladder.strengths:
        free = int(radius / ladder.step + 1e-6)  # steps that stay inside this ball by themselves
        trunk = climb.go(trunk, radius, until=free)
        climb.go(trunk, radius, until=ladder.steps)
    return climb.found


def early_stopped_pgd(
    margins: Margins, pixels: Tensor, seeds: Sequence[int], ladder: Ladder | None = None, *, chunk: int = CHUNK
) -> Attacked:
    """Steps from a fresh random point of each rung's ball, which is looked at too. `seeds`: one for each image."""
    ladder = ladder or Ladder()
    starts = RandomStarts(list(seeds), pixels)
    climb = _Climb(margins, pixels, ladder, chunk)
    for radius in ladder.strengths:
        which = climb.found.unflipped()
        start = _Place(which, starts.inside(which, radius), None, 0)
        climb.go(climb.look(start, radius), radius, until=ladder.steps)
    return climb.found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where some images of the batch stand: pixels and gradient (None: not computed) after `taken` steps."""

    which: Tensor
    pixels: Tensor
    gradient: Tensor | None
    taken: int


class _Climb:
    """Steps of the images that have not flipped; only those are computed."""

    def __init__(self, margins: Margins, clean: Tensor, ladder: Ladder, chunk: int) -> None:
        self.found = Attacked.untried(clean)
        self._margins = margins
        self._clean = clean
        self._ladder = ladder
        self._chunk = chunk

    def go(self, place: _Place, radius: float, *, until: int) -> _Place:
        """Take steps until there are `until` of them, looking after each; returns where those left over stand."""
        place = self._still(place)
        while place.taken < min(until, self._ladder.steps) and len(place.which):
            place = self.look(self._step(self._with_gradient(place), radius), radius)
        return place

    def look(self, place: _Place, radius: float) -> _Place:
        """Record the margins here. One forward pass serves this and the gradient for the next step, if there is one."""
        if not len(place.which):
            return place
        gradient = None
        if place.taken < self._ladder.steps:
            margin, gradient = slopes(
                self._margins, place.pixels, place.which, stop=-self._ladder.kappa, chunk=self._chunk
            )
        else:
            margin = values(self._margins, place.pixels, place.which, chunk=self._chunk)
        self.found.record(place.which, place.pixels, margin, radius=radius, kappa=self._ladder.kappa)
        return self._still(_Place(place.which, place.pixels, gradient, place.taken))

    def _with_gradient(self, place: _Place) -> _Place:
        if place.gradient is not None:
            return place
        gradient = slopes(self._margins, place.pixels, place.which, chunk=self._chunk)[1]
        return _Place(place.which, place.pixels, gradient, place.taken)

    def _step(self, place: _Place, radius: float) -> _Place:
        assert place.gradient is not None
        moved = place.pixels - self._ladder.step * place.gradient.sign()
        return _Place(place.which, into_ball(moved, self._clean[place.which], radius), None, place.taken + 1)

    def _still(self, place: _Place) -> _Place:
        """Leave out what has flipped."""
        left = ~self.found.flipped[place.which]
        gradient = None if place.gradient is None else place.gradient[left]
        return _Place(place.which[left], place.pixels[left], gradient, place.taken)
