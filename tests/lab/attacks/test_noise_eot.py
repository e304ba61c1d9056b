from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from dicomguard.attacks.margins import from_log_odds
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.descend import Descent, descend
from dicomguard.lab.attacks.noise_check import Curves, NoiseCheck, curves
from dicomguard.lab.attacks.noise_eot import NoiseEOT, Typical, noise_eot, others
from dicomguard.scoring.consistency import NoiseSettings, Observation
from tests.attacks.toys import noise_pictures
from tests.lab.attacks.toys import blobs, classes, findings, two

NOISE = NoiseSettings(levels=(0.03, 0.1, 0.2), repeats=8)
EPS = 0.2
ATTACK = NoiseEOT(Descent(EPS, steps=40))


def observed(log_odds, pixels: Tensor, first: int = 500) -> list[Observation]:
    """As a node would look at clean images, with another key than the attacker's."""
    draws = NOISE.ladder()
    check = NoiseCheck(log_odds, NOISE, range(first, first + len(pixels)))
    with torch.no_grad():
        seen = check.look(pixels, torch.arange(len(pixels)), draws)
    return [
        Observation(one.double().numpy(), other.double().numpy(), draws)
        for one, other in zip(seen.clean, seen.noisy, strict=True)
    ]


def looked(log_odds, pixels: Tensor, first: int = 900) -> Curves:
    check = NoiseCheck(log_odds, NOISE, range(first, first + len(pixels)))
    with torch.no_grad():
        return curves(check.look(pixels, torch.arange(len(pixels)), NOISE.ladder()))


@functools.cache
def typical() -> Typical:
    return Typical.of(observed(two, blobs(200, 77)[0]), len(NOISE.levels))


@functools.cache
def attacked(draws: int) -> Tensor:
    clean = blobs(16, 8)[0]
    wanted = typical().wanted(others(two(clean)))
    return noise_eot(two, wanted, NOISE, clean, range(16), NoiseEOT(ATTACK.descent, draws), chunk=64).pixels


def test_typical_is_the_median_of_the_clean_images_of_a_class() -> None:
    seen = observed(two, blobs(60, 78)[0])
    found = Typical.of(seen, 3)
    odds = np.array([one.clean[0, 1] - one.clean[0, 0] for one in seen])
    assert found.clean[0, 1, 0] == pytest.approx(np.median(odds[odds > 0]))
    assert found.clean[0, 0, 1] == pytest.approx(np.median(-odds[odds < 0]))
    assert found.spread[0, 1, 0] == pytest.approx(odds[odds > 0].std(ddof=1))
    assert found.images.sum() == 60
    falls = [float(odds[i] - np.median(seen[i].noisy[8:16, 0, 1] - seen[i].noisy[8:16, 0, 0])) for i in range(60)]
    assert found.drops[0, 1, 1, 0] == pytest.approx(np.median(np.array(falls)[odds > 0]))


def test_attacks_are_towards_the_runner_up_of_the_least_certain_question() -> None:
    assert others(torch.tensor([[[0.1, 0.9, 0.6]]])).tolist() == [[2]]
    two_questions = torch.tensor([[[0.0, 4.0], [0.0, -1.0]], [[0.0, 0.5], [0.0, 3.0]]])
    assert others(two_questions).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("draws", [1, 8, 32])
def test_the_wrong_answer_looks_clean_where_pgd_does_not(draws: int) -> None:
    clean = blobs(16, 8)[0]
    calm = looked(two, blobs(200, 77)[0])
    mine = looked(two, attacked(draws))
    loud = looked(two, fixed_eps_pgd(from_log_odds(two, clean), clean, range(16), FixedEps(EPS)).pixels)
    flipped = (two(attacked(draws)).argmax(-1) != two(clean).argmax(-1))[:, 0]
    assert flipped.float().mean() > 0.9

    def alarm(values: Tensor, reference: Tensor) -> float:
        return float((values > reference.quantile(0.95)).float().mean())

    def statistics(seen: Curves) -> list[Tensor]:
        odds = seen.log_odds_drops.masked_fill(seen.log_odds_drops.isinf(), -9).amax((1, 2, 3))
        return [seen.probability_drops.amax((1, 2)), odds, -seen.noisy_margins.amin((1, 2))]

    alarms = [alarm(a, b) for a, b in zip(statistics(mine), statistics(calm), strict=True)]
    assert max(alarms) <= 0.25, "as quiet as clean images, about"
    targets = others(two(clean))
    usual = typical().wanted(targets).clean.gather(2, 1 - targets.unsqueeze(2))[:, 0, 0]
    assert ((mine.margin[:, 0] - usual).abs() / usual).median() < 0.3
    assert (loud.margin[:, 0] / usual).median() > 1.5, "what goes as far as it can does not look typical"


def test_one_sided_it_is_at_least_as_sure_as_clean_pictures_are_and_flips_no_less() -> None:
    clean = blobs(24, 8)[0]
    targets = others(two(clean))
    wanted = typical().wanted(targets)
    for eps in (0.05, EPS):
        both = noise_eot(two, wanted, NOISE, clean, range(24), NoiseEOT(Descent(eps, steps=40), 8))
        one = noise_eot(two, wanted, NOISE, clean, range(24), NoiseEOT(Descent(eps, steps=40), 8, one_sided=True))
        assert int(one.flipped.sum()) >= int(both.flipped.sum())
        assert float(one.margin.median()) <= float(both.margin.median()) + 0.1
    usual = wanted.clean.gather(2, 1 - targets.unsqueeze(2))[:, 0, 0].abs()
    shaken = looked(two, one.pixels).noisy_margins.amin((1, 2))
    assert float((shaken >= 0.8 * usual).float().mean()) > 0.8, "under noise, too"


def test_ball_range_margin_and_strength() -> None:
    clean = blobs(24, 8)[0]
    wanted = typical().wanted(others(two(clean)))
    found = noise_eot(two, wanted, NOISE, clean, range(24), NoiseEOT(Descent(0.05, steps=10), 4))
    assert ((found.pixels - clean).abs() <= 0.05 + 1e-6).all()
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1
    sign = torch.where(two(clean).argmax(-1)[:, 0] == 1, 1, -1)
    odds = two(found.pixels)[:, 0]
    assert torch.allclose(found.margin, sign * (odds[:, 1] - odds[:, 0]), atol=1e-4)
    assert torch.equal(found.flipped, found.margin < 0)
    assert torch.equal(found.strength.isnan(), ~found.flipped)
    assert 0 < int(found.flipped.sum()) < 24


def test_larger_budgets_flip_more() -> None:
    clean = blobs(24, 8)[0]
    wanted = typical().wanted(others(two(clean)))
    counts = [
        int(noise_eot(two, wanted, NOISE, clean, range(24), NoiseEOT(Descent(eps, steps=20), 3)).flipped.sum())
        for eps in (0.0, 0.02, 0.05, 0.2)
    ]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] >= 22


@pytest.mark.parametrize("log_odds", [classes, findings])
def test_heads_of_many_outputs(log_odds) -> None:
    usual = Typical.of(observed(log_odds, noise_pictures(150, 5)), 3)
    clean = noise_pictures(8, 6)
    wanted = usual.wanted(others(log_odds(clean)))
    found = noise_eot(log_odds, wanted, NOISE, clean, range(8), NoiseEOT(Descent(0.3, steps=30), 3))
    assert found.flipped.float().mean() > 0.7
    reached = (log_odds(found.pixels).argmax(-1) == wanted.targets).all(1)
    assert reached.float().mean() > 0.7


def test_something_else_can_be_hidden_from_too() -> None:
    clean = blobs(8, 8)[0]
    wanted = typical().wanted(others(two(clean)))
    settings = NoiseEOT(Descent(EPS, steps=30), 3)

    def brightness(pixels: Tensor, which: Tensor) -> Tensor:
        return 1e4 * (pixels - clean[which]).mean((1, 2, 3)).square()

    plain = noise_eot(two, wanted, NOISE, clean, range(8), settings)
    hidden = noise_eot(two, wanted, NOISE, clean, range(8), settings, hide=brightness)
    assert hidden.flipped.float().mean() > 0.7
    every = torch.arange(8)
    assert brightness(hidden.pixels, every).mean() < 0.5 * brightness(plain.pixels, every).mean()


def test_neighbours_and_chunks_make_no_difference() -> None:
    clean = blobs(5, 8)[0]
    targets = others(two(clean))
    settings = NoiseEOT(Descent(0.1, steps=8, random_start=True), 3)
    together = noise_eot(two, typical().wanted(targets), NOISE, clean, range(5), settings, chunk=12)
    for place in range(5):
        one = slice(place, place + 1)
        alone = noise_eot(two, typical().wanted(targets[one]), NOISE, clean[one], [place], settings)
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-4)


def test_what_has_what_it_wants_is_computed_no_more() -> None:
    asked = []

    def bowl(pixels, which, step):
        asked.append(len(which))
        value = (pixels.mean((1, 2, 3)) - 0.55).square() * 1e4
        return value, 0.52 - pixels.mean((1, 2, 3))

    clean = torch.full((2, 1, 4, 4), 0.5)
    clean[1] = 0.3
    found = descend(bowl, clean, range(2), Descent(0.1, steps=30, enough=0.5))
    assert found.flipped.tolist() == [True, False]
    assert asked[0] == 2
    assert asked[-1] == 1


def test_edges_and_nothing() -> None:
    with pytest.raises(DicomguardError, match="none were looked at under every level"):
        Typical.of([], 3)
    with pytest.raises(DicomguardError, match="none were looked at under every level"):
        Typical.of(observed(two, blobs(4, 1)[0]), 4)
    lonely = Typical.of([one for one in observed(two, blobs(40, 1)[0]) if one.answer == (0,)], 3)
    with pytest.raises(DicomguardError, match="fewer than three clean images"):
        lonely.wanted(torch.tensor([[1]]))
    clean = blobs(2, 8)[0]
    wanted = typical().wanted(others(two(clean)))
    with pytest.raises(DicomguardError, match="not a finite number"):
        noise_eot(lambda x: two(x) / 0, wanted, NOISE, clean, range(2), ATTACK)
    empty = clean[:0]
    none = noise_eot(two, typical().wanted(others(two(clean))[:0]), NOISE, empty, [], ATTACK)
    assert none.flipped.tolist() == []
