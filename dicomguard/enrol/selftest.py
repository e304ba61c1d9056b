"""Attack the bundle with what every attacker has, before it may be trusted: the noise check fails on some models.

The attacks run on native pixels through the bundle's own preprocessing, and count only where the answer still differs
once the picture has been rounded to stored integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dicomguard.attacks.native import native_margins
from dicomguard.attacks.rounded import rounded
from dicomguard.attacks.suite import SUITE
from dicomguard.enrol import ranks
from dicomguard.pixels.image import Image
from dicomguard.scoring.scorer import Scorer

# The three that the noise-consistency paper's check must see: it saturates on the last two.
ATTACKS = ("early-stopped BIM", "PGD 0.004", "PGD 0.008")
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Forged:
    """What became of one attack: the images whose answer stayed changed, with their places among the tried."""

    attack: str
    tried: int
    images: tuple[Image, ...]
    places: tuple[int, ...]


def forge_all(
    scorer: Scorer, images: Sequence[Image], advance: Callable[[float], None], attacks: Sequence[str] = ATTACKS
) -> list[Forged]:
    """Attack images with each of `attacks`; those with no affine way back to stored values are left out."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        if image.mapping is not None:
            shapes.setdefault(image.pixels.shape, []).append(place)
    tried = sum(map(len, shapes.values()))
    found = []
    for name in attacks:
        kept: dict[int, Image] = {}
        for places in (group[i : i + _CHUNK] for group in shapes.values() for i in range(0, len(group), _CHUNK)):
            forged = forge(scorer, [images[place] for place in places], name, seeds=places)
            kept |= {place: image for place, image in zip(places, forged, strict=True) if image is not None}
            advance(len(places) / (tried * len(attacks)))
        found.append(Forged(name, tried, tuple(kept[place] for place in sorted(kept)), tuple(sorted(kept))))
    return found


def forge(scorer: Scorer, images: Sequence[Image], name: str, *, seeds: Sequence[int]) -> list[Image | None]:
    """Images of one shape attacked with `SUITE[name]` and rounded; None where the answer does not change."""
    pixels = torch.stack([torch.from_numpy(image.pixels) for image in images])
    margins = native_margins(scorer, pixels)
    attacked = SUITE[name](margins, pixels, seeds)
    stored = [rounded(image, found.numpy()) for image, found in zip(images, attacked.pixels, strict=True)]
    with torch.inference_mode():
        left = margins(torch.from_numpy(np.stack([one.pixels for one in stored])), torch.arange(len(images)))
    return [one if flipped else None for one, flipped in zip(stored, (left < 0).tolist(), strict=True)]


def auroc(clean: Sequence[float], attacked: Sequence[float]) -> float | None:
    """`ranks.auroc` of scores, of which NaN is the highest: no number is no innocence. None of none."""
    return ranks.auroc(*(np.nan_to_num(np.asarray(side, np.float64), nan=np.inf) for side in (clean, attacked)))
