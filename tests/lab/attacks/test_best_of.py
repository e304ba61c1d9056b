from __future__ import annotations

from functools import partial

import pytest
import torch

from dicomguard.attacks.margins import from_logits
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.best_of import best_of
from tests.attacks.toys import curved, linear, noise_pictures, picture

ATTACK = partial(fixed_eps_pgd, settings=FixedEps(0.03, steps=4))


def brightness(pixels, which):
    return pixels.mean((1, 2, 3))


def test_of_more_attempts_the_least_suspicious_flip_is_sent() -> None:
    clean = noise_pictures(12)
    margins = from_logits(curved, clean)
    one, ten = (best_of(ATTACK, brightness, margins, clean, range(12), attempts=n) for n in (1, 10))
    both = one.attacked.flipped & ten.attacked.flipped
    assert (one.attacked.flipped <= ten.attacked.flipped).all()
    assert (ten.suspicion[both] <= one.suspicion[both]).all()
    assert (ten.suspicion[both] < one.suspicion[both]).any()
    assert torch.allclose(brightness(ten.attacked.pixels, None)[both], ten.suspicion[both])
    sign = torch.where(curved(clean) >= 0, 1, -1)
    assert torch.allclose(ten.attacked.margin, sign * curved(ten.attacked.pixels), atol=1e-5)
    assert ten.attempts.tolist() == [10] * 12


def test_who_knows_the_threshold_stops_below_it() -> None:
    clean = noise_pictures(12)
    margins = from_logits(curved, clean)
    sizes = []

    def looked(pixels, which):
        assert not pixels.requires_grad
        sizes.append(which.tolist())
        return brightness(pixels, which)

    found = best_of(ATTACK, looked, margins, clean, range(12), attempts=6, threshold=0.51)
    assert (found.suspicion[found.attempts < 6] < 0.51).all()
    assert len(set(found.attempts.tolist())) > 1
    assert len(sizes[-1]) < 12
    assert found.attempts.sum() == sum(map(len, sizes))


def test_a_flip_counts_more_than_a_low_suspicion() -> None:
    clean = picture(0.002, 0.5)
    found = best_of(ATTACK, brightness, from_logits(linear, clean), clean, range(2), attempts=2)
    assert found.attacked.flipped.tolist() == [True, False]
    assert found.suspicion[1].isnan()
    assert found.attacked.strength[1].isnan()
    assert found.attacked.margin[1] > 0


def test_neighbours_make_no_difference() -> None:
    clean = noise_pictures(4)
    together = best_of(ATTACK, brightness, from_logits(curved, clean), clean, range(4), attempts=3, threshold=0.5)
    for place in range(4):
        one = clean[place : place + 1]
        alone = best_of(ATTACK, brightness, from_logits(curved, one), one, [place], attempts=3, threshold=0.5)
        assert torch.allclose(alone.attacked.pixels[0], together.attacked.pixels[place], atol=1e-6)
        assert alone.attempts[0] == together.attempts[place]


def test_edges_and_nothing() -> None:
    clean = picture(0.002)
    margins = from_logits(linear, clean)
    with pytest.raises(DicomguardError, match="score is NaN"):
        best_of(ATTACK, lambda p, w: brightness(p, w) * torch.nan, margins, clean, [0])
    blind = best_of(ATTACK, lambda p, w: brightness(p, w) + torch.inf, margins, clean, [0], attempts=2)
    assert blind.attacked.flipped.all()
    assert blind.suspicion.tolist() == [torch.inf]
    empty = clean[:0]
    none = best_of(ATTACK, brightness, from_logits(linear, empty), empty, [])
    assert none.attempts.tolist() == []
