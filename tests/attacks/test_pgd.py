from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.attacks.margins import from_logits
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.attacks.suite import SUITE
from tests.attacks.toys import curved, linear, noise_pictures, picture


def test_on_a_linear_network_it_ends_in_the_corner() -> None:
    found = fixed_eps_pgd(from_logits(linear, picture(0.003, 0.01)), picture(0.003, 0.01), range(2))
    assert found.margin.tolist() == pytest.approx([-0.001, 0.006], abs=1e-6)
    assert found.flipped.tolist() == [True, False]
    assert found.strength[0] == pytest.approx(0.004)
    assert found.strength[1].isnan()


@settings(max_examples=15, deadline=None)
@given(eps=st.sampled_from([0.01, 0.05, 0.3]), seed=st.integers(0, 1000), restarts=st.integers(1, 3))
def test_ball_and_range_are_kept_and_the_margin_is_the_pictures(eps: float, seed: int, restarts: int) -> None:
    clean = noise_pictures(4, seed).mul(1.4).sub(0.2).clamp(0, 1)
    found = fixed_eps_pgd(
        from_logits(curved, clean), clean, range(seed, seed + 4), FixedEps(eps=eps, steps=5, restarts=restarts)
    )
    assert ((found.pixels - clean).abs() <= eps + 1e-6).all()
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1
    sign = torch.where(curved(clean) >= 0, 1.0, -1.0)
    assert torch.allclose(found.margin, sign * curved(found.pixels), atol=1e-5)
    assert torch.equal(found.flipped, found.margin < 0)


def test_more_restarts_and_more_budget_never_give_a_better_margin() -> None:
    clean = noise_pictures(8)
    margins = from_logits(curved, clean)
    one = fixed_eps_pgd(margins, clean, range(8), FixedEps(eps=0.05, steps=4))
    three = fixed_eps_pgd(margins, clean, range(8), FixedEps(eps=0.05, steps=4, restarts=3))
    assert (three.margin <= one.margin).all()
    assert (three.margin < one.margin).any()


def test_it_goes_on_after_the_flip() -> None:
    clean = noise_pictures(8)
    found = fixed_eps_pgd(from_logits(curved, clean), clean, range(8), FixedEps(eps=0.08))
    early = SUITE["early-stopped BIM"](from_logits(curved, clean), clean, range(8))
    both = found.flipped & early.flipped
    assert both.any()
    assert (found.margin[both] < 2 * early.margin[both]).all()


def test_neighbours_make_no_difference() -> None:
    clean = noise_pictures(5)
    together = fixed_eps_pgd(from_logits(curved, clean), clean, range(5), FixedEps(eps=0.05, restarts=2))
    for place in range(5):
        one = clean[place : place + 1]
        alone = fixed_eps_pgd(from_logits(curved, one), one, [place], FixedEps(eps=0.05, restarts=2))
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-6)


def test_nothing_to_attack() -> None:
    empty = torch.empty(0, 1, 4, 4)
    assert fixed_eps_pgd(from_logits(linear, empty), empty, []).flipped.tolist() == []


@pytest.mark.parametrize("name", SUITE)
def test_every_attack_of_the_suite_runs_the_same_way(name: str) -> None:
    clean = picture(0.0005, -0.0005, 0.3)
    found = SUITE[name](from_logits(linear, clean), clean, range(3), chunk=2)
    assert found.flipped.tolist() == [True, True, False]
    assert found.pixels.shape == clean.shape


def test_the_suite_is_six_attacks() -> None:
    assert list(SUITE) == [
        "early-stopped FGSM", "early-stopped BIM", "early-stopped PGD", "PGD 0.004", "PGD 0.008", "PGD 0.016",
    ]  # fmt: skip
