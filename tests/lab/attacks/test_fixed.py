from __future__ import annotations

import pytest
import torch

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.attacks.pgd import fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.fixed import Fixed, fixed_eps_bim, fixed_eps_fgsm, joel_bim, joel_fgsm, joel_pgd
from tests.attacks.toys import curved, linear, noise_pictures, picture
from tests.lab.attacks.toys import classes


def test_the_settings_of_joel_et_al() -> None:
    assert joel_fgsm(0.008) == Fixed(0.008, steps=1, relative_step=1.0, restarts=0, last=True)
    assert joel_bim(0.008) == Fixed(0.008, steps=10, relative_step=0.1, restarts=0, last=True)
    pgd = joel_pgd(0.008)
    assert (pgd.eps, pgd.steps, pgd.relative_step, pgd.restarts) == (0.008, 10, 0.25, 5)


def test_on_a_linear_network_all_end_in_the_corner() -> None:
    clean = picture(0.003, -0.01)
    for found in (
        fixed_eps_fgsm(from_logits(linear, clean), clean, 0.004),
        fixed_eps_bim(from_logits(linear, clean), clean, [], joel_bim(0.004)),
        fixed_eps_bim(from_logits(linear, clean), clean, range(2), Fixed(restarts=2, steps=20)),
        fixed_eps_pgd(from_logits(linear, clean), clean, range(2), joel_pgd(0.004)),
    ):
        assert found.margin.tolist() == pytest.approx([-0.001, 0.006], abs=1e-6)
        assert found.flipped.tolist() == [True, False]
        assert found.strength[0] == pytest.approx(0.004)
        assert found.strength[1].isnan()


def test_fgsm_takes_one_gradient_and_bim_ten() -> None:
    calls = []

    def counting(x):
        calls.append(x.requires_grad)
        return curved(x)

    clean = noise_pictures(4)
    margins = from_logits(counting, clean)
    calls.clear()
    fixed_eps_fgsm(margins, clean, 0.01)
    assert calls == [True, False]
    calls.clear()
    fixed_eps_bim(margins, clean, [])
    assert calls == [True] * 10 + [False]


def test_budget_and_range_are_kept_and_the_lowest_iterate_is_at_least_as_low_as_the_last() -> None:
    clean = noise_pictures(24).mul(1.4).sub(0.2).clamp(0, 1)
    margins = from_logits(curved, clean)
    last = fixed_eps_bim(margins, clean, [], Fixed(eps=0.1, relative_step=0.5, last=True))
    lowest = fixed_eps_bim(margins, clean, [], Fixed(eps=0.1, relative_step=0.5))
    restarted = fixed_eps_bim(margins, clean, range(24), Fixed(eps=0.1, relative_step=0.5, restarts=3))
    for found in (last, lowest, restarted):
        assert ((found.pixels - clean).abs() <= 0.1 + 1e-6).all()
        assert found.pixels.min() >= 0
        assert found.pixels.max() <= 1
        assert torch.equal(found.flipped, found.margin < 0)
    assert (lowest.margin <= last.margin).all()
    assert (lowest.margin < last.margin).any()


def test_larger_budgets_flip_more() -> None:
    clean = noise_pictures(24)
    margins = from_logits(curved, clean)
    counts = [int(fixed_eps_bim(margins, clean, [], joel_bim(eps)).flipped.sum()) for eps in (0.0, 0.005, 0.02, 0.05)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > counts[1]


def test_several_classes_neighbours_and_edges() -> None:
    clean = noise_pictures(6)
    together = fixed_eps_bim(from_log_odds(classes, clean), clean, range(6), Fixed(eps=0.1, restarts=2), chunk=4)
    assert together.flipped.any()
    for place in range(6):
        one = clean[place : place + 1]
        alone = fixed_eps_bim(from_log_odds(classes, one), one, [place], Fixed(eps=0.1, restarts=2))
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-6)
    with pytest.raises(DicomguardError, match="not a finite number"):
        fixed_eps_fgsm(lambda x, _: linear(x) / 0, picture(0.1), 0.01)
    empty = torch.empty(0, 1, 4, 4)
    assert fixed_eps_fgsm(from_logits(linear, empty), empty, 0.01).flipped.tolist() == []
