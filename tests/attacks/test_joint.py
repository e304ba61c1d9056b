from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dicomguard.attacks.joint import TACTICS, Budget, Pair, Tactic, joint_attack, miniatures
from dicomguard.errors import DicomguardError
from dicomguard.pixels.miniature import averaged
from tests.attacks.toys import noise_pictures, small_net

NET = small_net(2, seed=5)
MIDDLE = NET(noise_pictures(64, seed=9)).mean(0)
BUDGET = Budget(eps=0.06, levels=255, steps=12)


def model(x: Tensor) -> Tensor:
    return (NET(x) - MIDDLE).unsqueeze(1)


def guard(planes: Tensor) -> Tensor:
    """Brighter on the left or on the right?"""
    return torch.stack([planes[..., :2].mean((1, 2, 3)), planes[..., 2:].mean((1, 2, 3))], 1).unsqueeze(1) * 40


PAIR = Pair(model, guard, sigma=0.05, planes=lambda x: F.adaptive_avg_pool2d(x, 4))


def stored(n: int = 8, seed: int = 0) -> Tensor:
    return (noise_pictures(n, seed) * 255).round().long()


def others(levels: Tensor) -> Tensor:
    return 1 - model(levels / 255).argmax(2)


def test_the_budget_is_whole_grey_levels() -> None:
    assert Budget(0.004, 255).grey_levels == 1
    assert Budget(0.004, 4095).grey_levels == 16
    assert Budget(5 / 255, 255).grey_levels == 5
    with pytest.raises(DicomguardError, match="less than one of 255 grey levels"):
        joint_attack(PAIR, stored(), others(stored()), TACTICS[:8], range(8), Budget(0.003, 255))


@settings(max_examples=12, deadline=None)
@given(
    eps=st.sampled_from([1 / 255, 0.02, 0.1]),
    seed=st.integers(0, 99),
    first=st.integers(0, len(TACTICS) - 8),
)
def test_files_stay_within_budget_and_bits(eps: float, seed: int, first: int) -> None:
    clean = stored(seed=seed)
    clean[0] = 0
    clean[1] = 255
    found = joint_attack(PAIR, clean, others(clean), TACTICS[first : first + 8], range(8), Budget(eps, 255, steps=5))
    assert found.stored.dtype == torch.int64
    assert (found.stored - clean).abs().max() <= eps * 255 + 1e-9
    assert found.stored.min() >= 0
    assert found.stored.max() <= 255
    assert torch.equal(found.flipped, (model(found.stored / 255).argmax(2) == others(clean))[:, 0])
    assert torch.equal(found.flipped, found.margin < 0)


def test_a_value_outside_of_the_range_may_stay_there() -> None:
    clean = stored(4)
    clean[:, :, 0] = -40
    clean[:, :, 1] = 300
    found = joint_attack(PAIR, clean, others(clean), TACTICS[:4], range(4), BUDGET)
    assert (found.stored - clean).abs().max() <= BUDGET.grey_levels
    assert found.stored[:, :, 0].max() <= -40 + BUDGET.grey_levels
    assert found.stored[:, :, 0].min() >= -40


def test_joint_attacks_move_both_and_single_ones_one() -> None:
    clean = stored(32)
    wanted = others(clean)
    alone = joint_attack(PAIR, clean, wanted, [Tactic(0.0)] * 32, range(32), BUDGET)
    joint = joint_attack(PAIR, clean, wanted, [Tactic(0.5)] * 32, range(32), BUDGET)
    assert alone.flipped.float().mean() > 0.6
    assert joint.flipped.float().mean() > 0.6

    def follows(levels: Tensor) -> Tensor:
        return (guard(PAIR.planes(levels / 255)).argmax(2) == wanted)[:, 0] & (model(levels / 255).argmax(2) == wanted)[
            :, 0
        ]

    assert follows(joint.stored).sum() > follows(alone.stored).sum() + 5
    assert (joint.vote[follows(joint.stored)] > 0.4).all()


def test_a_linear_model_is_flipped_exactly_where_the_corner_flips_it() -> None:
    weights = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def flat(x: Tensor) -> Tensor:
        logit = (weights * (x - 0.5)).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(logit), logit], -1).unsqueeze(1)

    clean = stored(64, seed=2)
    answer = flat(clean / 255).argmax(2)
    towards = weights.sign() * torch.where(answer == 1, -1, 1).view(-1, 1, 1, 1)
    corner = (clean + BUDGET.grey_levels * towards.long()).clamp(0, 255)
    reachable = (flat(corner / 255).argmax(2) != answer)[:, 0]
    assert 10 < int(reachable.sum()) < 60
    for tactic in (Tactic(0.0), Tactic(0.0, random_start=True, momentum=0.0)):
        found = joint_attack(Pair(flat, guard, 0.05, PAIR.planes), clean, 1 - answer, [tactic] * 64, range(64), BUDGET)
        assert torch.equal(found.flipped, reachable)


def test_confidence_is_reached() -> None:
    clean = stored(16)
    plain = joint_attack(PAIR, clean, others(clean), [Tactic(0.5)] * 16, range(16), BUDGET)
    sure = joint_attack(PAIR, clean, others(clean), [Tactic(0.5, confidence=3.0)] * 16, range(16), BUDGET)
    assert sure.margin.median() < plain.margin.median()


def test_rows_do_not_depend_on_each_other() -> None:
    clean = stored(6)
    tactics = [TACTICS[k] for k in (0, 1, 10, 14, 20, 29)]
    together = joint_attack(PAIR, clean, others(clean), tactics, range(6), BUDGET)
    again = joint_attack(PAIR, clean, others(clean), tactics, range(6), BUDGET)
    assert torch.equal(together.stored, again.stored)
    for k in range(6):
        one = clean[k : k + 1]
        alone = joint_attack(PAIR, one, others(one), tactics[k : k + 1], [k], BUDGET)
        differing = (alone.stored[0] != together.stored[k]).float().mean()
        assert differing < 0.1, "but for the sign of a gradient near zero"
        assert bool(alone.flipped[0]) == bool(together.flipped[k])


def test_several_questions_are_moved_together() -> None:
    def both(x: Tensor) -> Tensor:
        return torch.cat([model(x), guard(PAIR.planes(x))], 1)

    pair = Pair(both, lambda planes: guard(planes).expand(-1, 2, -1), sigma=0.05, planes=PAIR.planes)
    clean = stored(16)
    targets = 1 - both(clean / 255).argmax(2)
    found = joint_attack(pair, clean, targets, [Tactic(0.0)] * 16, range(16), Budget(0.2, 255))
    assert found.flipped.any()
    assert torch.equal(found.flipped, (both(found.stored / 255).argmax(2) == targets).all(1))


def test_every_tactic_is_another() -> None:
    assert len(set(TACTICS)) == len(TACTICS) == 30


@pytest.mark.parametrize("shape", [(100, 130), (64, 64), (40, 200)], ids=str)
def test_the_attacker_averages_like_the_node(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).random(shape, np.float32)
    pixels = torch.from_numpy(picture)[None, None].requires_grad_()
    found = miniatures(pixels)
    assert np.allclose(found[0, 0].detach().numpy(), averaged(picture), atol=1e-6)
    found.sum().backward()
    assert pixels.grad is not None
