from __future__ import annotations

import numpy as np
import pytest
import torch

from dicomguard.lab.attacks.found import seed_bytes
from dicomguard.lab.attacks.noise_check import Looked, NoiseCheck, curves
from dicomguard.scoring import consistency
from dicomguard.scoring.consistency import NoiseSettings, Observation
from tests.attacks.toys import noise_pictures
from tests.lab.attacks.toys import blobs, classes, findings, logit, two

NOISE = NoiseSettings(levels=(0.01, 0.03, 0.05), repeats=4)
EVERY = torch.arange(6)


@pytest.mark.parametrize("log_odds", [two, classes, findings])
@pytest.mark.parametrize("repeats", [1, 3, 4], ids=["one", "odd", "even"])
def test_on_the_same_noise_it_says_what_the_check_says(log_odds, repeats: int) -> None:
    clean = blobs(6, 1)[0] if log_odds is two else noise_pictures(6)
    draws = NOISE.ladder(repeats)
    seeds = [seed_bytes(seed, "noise", 7) for seed in range(6)]
    with torch.no_grad():
        odds = log_odds(clean).double().numpy()
    noisy = consistency.observe(log_odds, clean, seeds, NOISE, draws, chunk=8)
    found = curves(NoiseCheck(log_odds, NOISE, range(6)).look(clean, EVERY, draws, step=7))
    for place in range(6):
        known = consistency.curve(Observation(odds[place], noisy[place], draws))
        assert found.levels == known.levels
        for name in ("probability", "margin", "probability_drops", "log_odds_drops", "noisy_margins"):
            mine = getattr(found, name)[place].double().numpy()
            assert np.allclose(mine, getattr(known, name), rtol=1e-4, atol=1e-5), name


def test_gradients_reach_the_pixels_and_are_those_of_the_statistics() -> None:
    clean = blobs(2, 3)[0]
    check = NoiseCheck(two, NOISE, range(2))

    def drop(pixels):
        return curves(check.look(pixels, torch.arange(2), NOISE.ladder(), 0)).probability_drops.sum()

    leaf = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(drop(leaf), leaf)
    step = 1e-3 * gradient / gradient.abs().max()
    rise = float(drop(clean + step) - drop(clean - step)) / 2
    assert rise == pytest.approx(float((gradient * step).sum()), rel=0.1)
    assert rise > 0


def test_noise_is_fresh_at_every_step_and_the_same_beside_any_neighbour() -> None:
    clean = blobs(4, 2)[0]
    check = NoiseCheck(two, NOISE, range(4))
    draws = check.ladder(8)
    whole = check.look(clean, torch.arange(4), draws, 3).noisy
    part = check.look(clean[2:3], torch.tensor([2]), draws, 3).noisy
    assert torch.allclose(whole[2:3], part, atol=1e-6)
    assert not torch.allclose(check.look(clean, torch.arange(4), draws, 4).noisy, whole)


def test_draws_are_spread_over_the_levels_whatever_their_number() -> None:
    check = NoiseCheck(two, NOISE, [0])
    assert check.ladder(0) == ()
    assert [check.ladder(1, step)[0][0] for step in range(4)] == [0, 1, 2, 0]
    for count in (8, 32):
        ladder = check.ladder(count, 5)
        assert len(set(ladder)) == count
        per_level = np.bincount([level for level, _ in ladder])
        assert per_level.max() - per_level.min() <= 1
    copies = check.copies(torch.full((1, 1, 8, 8), 0.5), torch.tensor([0]), check.ladder(32), 0)
    scaled = (copies - 0.5) / torch.tensor([NOISE.levels[level] for level, _ in check.ladder(32)]).view(-1, 1, 1, 1)
    assert torch.cdist(scaled.flatten(1), scaled.flatten(1)).fill_diagonal_(9).min() > 0.5, "no two draws share noise"
    assert scaled.abs().max() <= 1 + 1e-4


def test_towards_an_answer_that_is_not_given() -> None:
    with torch.no_grad():
        odds = two(blobs(4, 2)[0])
    seen = Looked(odds, odds.unsqueeze(1), ((0, 0),))
    other = curves(seen, 1 - odds.argmax(-1))
    assert (other.margin < 0).all()
    assert torch.allclose(other.margin[:, 0], -logit(blobs(4, 2)[0]).abs(), atol=1e-5)
