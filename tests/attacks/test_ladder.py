from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.ladder import LADDER, Ladder, early_stopped_bim, early_stopped_fgsm, early_stopped_pgd
from dicomguard.attacks.margins import Margins, from_logits
from tests.attacks.toys import curved, linear, noise_pictures, picture

CURVED_LADDER = Ladder(strengths=tuple(0.005 * rung for rung in range(1, 9)), step=0.005, steps=8)


def run(
    name: str, logits: Callable[[Tensor], Tensor], clean: Tensor, ladder: Ladder | None = None, chunk: int = 8
) -> Attacked:
    margins = from_logits(logits, clean)
    if name == "PGD":
        return early_stopped_pgd(margins, clean, range(len(clean)), ladder, chunk=chunk)
    return {"FGSM": early_stopped_fgsm, "BIM": early_stopped_bim}[name](margins, clean, ladder, chunk=chunk)


every = pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD"])


def test_the_ladder_is_the_papers() -> None:
    assert LADDER == (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01)


@pytest.mark.parametrize("name", ["FGSM", "BIM"])
def test_each_image_stops_at_the_first_rung_that_flips_it(name: str) -> None:
    found = run(name, linear, picture(0.0005, -0.0035, 0.0095, 0.05, -0.05))
    assert found.flipped.tolist() == [True, True, True, False, False]
    assert found.strength[:3].tolist() == pytest.approx([0.001, 0.004, 0.010])
    assert found.strength[3:].isnan().all()
    assert (found.margin[:3] < 0).all()
    assert (found.margin[3:] > 0).all()


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.sampled_from([-3.0, -1.0, 0.5, 2.0]), min_size=4, max_size=4), rung=st.integers(1, 10))
def test_fgsm_finds_the_known_smallest_strength_of_a_linear_network(weights: list[float], rung: int) -> None:
    w = torch.tensor(weights).reshape(1, 1, 2, 2)
    clean = torch.full((1, 1, 2, 2), 0.5)
    distance = (rung - 0.5) * 0.001  # along the sign of the gradient the logit falls by |w|_1 for each unit of L-inf

    def logits(x: Tensor) -> Tensor:
        return ((x - 0.5) * w).sum((1, 2, 3)) + distance * w.abs().sum()

    assert float(run("FGSM", logits, clean).strength[0]) == pytest.approx(rung * 0.001)
    assert float(run("BIM", logits, clean).strength[0]) == pytest.approx(rung * 0.001)


@every
def test_flips_are_true_and_stay_in_ball_and_range(name: str) -> None:
    clean = noise_pictures(24).mul(1.2).sub(0.1).clamp(0, 1)  # some pixels at either end
    found = run(name, curved, clean, CURVED_LADDER)
    assert 6 <= int(found.flipped.sum()) < 24, "the toy shows nothing otherwise"
    assert torch.equal((curved(found.pixels) >= 0) != (curved(clean) >= 0), found.flipped)
    radius = torch.where(found.flipped, found.strength, 0.04)
    assert ((found.pixels - clean).abs().amax((1, 2, 3)) <= radius + 1e-6).all()
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1
    assert torch.allclose(found.margin, torch.where(curved(clean) >= 0, 1, -1) * curved(found.pixels), atol=1e-5)


@every
def test_neighbours_and_chunks_make_no_difference(name: str) -> None:
    clean = noise_pictures(9)
    together = run(name, curved, clean, CURVED_LADDER)
    chunked = run(name, curved, clean, CURVED_LADDER, chunk=2)
    assert torch.allclose(together.pixels, chunked.pixels, atol=1e-6)
    assert together.flipped.any()
    for place in range(9):
        one = clean[place : place + 1]
        if name == "PGD":
            alone = early_stopped_pgd(from_logits(curved, one), one, [place], CURVED_LADDER)
        else:
            alone = run(name, curved, one, CURVED_LADDER)
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-6)
        assert torch.equal(alone.flipped, together.flipped[place : place + 1])


@every
def test_the_same_seeds_give_the_same_pictures(name: str) -> None:
    clean = noise_pictures(5)
    first, second = (run(name, curved, clean, CURVED_LADDER) for _ in range(2))
    assert torch.equal(first.pixels, second.pixels)


def test_other_seeds_start_elsewhere() -> None:
    clean = noise_pictures(5)
    margins = from_logits(curved, clean)
    first, second = (early_stopped_pgd(margins, clean, seeds, CURVED_LADDER) for seeds in (range(5), range(5, 10)))
    assert not torch.equal(first.pixels, second.pixels)
    with pytest.raises(ValueError, match="5 images need as many seeds, not 4"):
        early_stopped_pgd(margins, clean, range(4))


def test_rungs_that_share_their_first_steps_find_what_whole_rungs_find() -> None:
    clean = noise_pictures(16, seed=4)
    found = run("BIM", curved, clean, CURVED_LADDER)
    assert len(set(found.strength[found.flipped].tolist())) >= 2
    for place in range(16):
        pixels, strength, margin = _plainly(curved, clean[place : place + 1], CURVED_LADDER)
        assert torch.allclose(pixels[0], found.pixels[place], atol=1e-6)
        assert strength == pytest.approx(float(found.strength[place]), nan_ok=True)
        assert margin == pytest.approx(float(found.margin[place]), abs=1e-5)


def _plainly(logits: Callable[[Tensor], Tensor], clean: Tensor, ladder: Ladder) -> tuple[Tensor, float, float]:
    """Early-stopped BIM on one image as it is defined: every rung from the image, a check after every step."""
    sign = 1 if logits(clean) >= 0 else -1
    margin = float("nan")
    current = clean
    for radius in ladder.strengths:
        current = clean
        for _ in range(ladder.steps):
            leaf = current.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(sign * logits(leaf).sum(), leaf)
            current = (current - ladder.step * gradient.sign()).clamp(clean - radius, clean + radius).clamp(0, 1)
            margin = sign * float(logits(current))
            if margin < 0:
                return current, radius, margin
    return current, float("nan"), margin


def test_it_stops_within_one_step_of_the_boundary() -> None:
    found = run("BIM", linear, picture(0.0022))
    assert found.margin[0] == pytest.approx(-0.0008, abs=1e-6)


@every
def test_pixels_stay_in_the_presentation_range(name: str) -> None:
    found = run(name, lambda x: x.mean((1, 2, 3)) + 1, torch.zeros(1, 1, 4, 4))
    assert not found.flipped[0]
    assert found.pixels.min() == 0


@every
def test_flipped_images_are_computed_no_more(name: str) -> None:
    sizes = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return linear(x)

    found = run(name, counting, picture(0.0005, 0.005))
    assert found.flipped.all()
    fall = sizes.index(1)
    assert fall <= 12
    assert set(sizes[fall:]) == {1}


def test_shared_steps_are_taken_once() -> None:
    passes = []

    def counting(x: Tensor) -> Tensor:
        passes.append(len(x))
        return linear(x)

    run("BIM", counting, picture(0.05))
    # The answer, the gradient at the image, ten shared steps, and what is left of ten after 1, 2 ... 10 of them.
    assert len(passes) == 1 + 1 + 10 + sum(range(10))


@every
def test_kappa_goes_on_past_the_flip(name: str) -> None:
    plain = run(name, linear, picture(0.0005))
    sure = run(name, linear, picture(0.0005), Ladder(kappa=0.004))
    assert -0.0045 < plain.margin[0] < 0
    assert sure.margin[0] < -0.004
    assert sure.strength[0] > plain.strength[0]


@every
def test_nothing_to_attack(name: str) -> None:
    assert run(name, linear, torch.empty(0, 1, 4, 4)).flipped.tolist() == []


@every
def test_a_margin_of_zero_has_not_changed_sides(name: str) -> None:
    def flat(pixels: Tensor, which: Tensor) -> Tensor:
        return 0 * pixels.sum((1, 2, 3))

    clean = picture(0.01)
    attack = {"FGSM": early_stopped_fgsm, "BIM": early_stopped_bim}.get(name)
    stuck: Margins = flat
    found = attack(stuck, clean) if attack else early_stopped_pgd(stuck, clean, [0])
    assert not found.flipped.any()
