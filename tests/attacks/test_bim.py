from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dicomguard.attacks.bim import LADDER, Ladder, early_stopped_bim


def linear(x: Tensor) -> Tensor:
    """A logit whose gradient is one everywhere: an L-inf change of a moves it by a, per pixel on average."""
    return x.mean((1, 2, 3)) - 0.5


def picture(*logits: float) -> Tensor:
    return torch.stack([torch.full((1, 4, 4), 0.5 + logit) for logit in logits])


def test_the_ladder_is_the_papers() -> None:
    assert LADDER == (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01)


def test_each_image_stops_at_the_first_rung_that_flips_it() -> None:
    found = early_stopped_bim(linear, picture(0.0005, -0.0035, 0.0095, 0.05, -0.05))
    assert found.flipped.tolist() == [True, True, True, False, False]
    assert found.strength[:3].tolist() == pytest.approx([0.001, 0.004, 0.010])
    assert found.strength[3:].isnan().all()
    assert (found.margin[:3] < 0).all()
    assert (found.margin[3:] > 0).all()


def test_the_flip_is_true_and_the_ball_is_kept() -> None:
    clean = picture(0.0005, -0.0035, 0.0095)
    found = early_stopped_bim(linear, clean)
    assert ((linear(found.pixels) >= 0) != (linear(clean) >= 0)).all()
    assert ((found.pixels - clean).abs().amax((1, 2, 3)) <= found.strength + 1e-7).all()


def test_it_stops_within_one_step_of_the_boundary() -> None:
    found = early_stopped_bim(linear, picture(0.0022))
    assert found.margin[0] == pytest.approx(-0.0008, abs=1e-6)


def test_pixels_stay_in_the_presentation_range() -> None:
    def toward_black(x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) + 1

    found = early_stopped_bim(toward_black, torch.zeros(1, 1, 4, 4))
    assert not found.flipped[0]
    assert found.pixels.min() == 0


def test_flipped_images_are_computed_no_more() -> None:
    sizes = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return linear(x)

    early_stopped_bim(counting, picture(0.0005, 0.0095))
    assert sizes[:3] == [2, 2, 2]
    assert set(sizes[3:]) == {1}


def test_kappa_goes_on_past_the_flip() -> None:
    plain = early_stopped_bim(linear, picture(0.0005))
    sure = early_stopped_bim(linear, picture(0.0005), Ladder(kappa=0.004))
    assert plain.margin[0] > -0.001
    assert sure.margin[0] < -0.004
    assert sure.strength[0] > plain.strength[0]


def test_nothing_to_attack() -> None:
    assert early_stopped_bim(linear, torch.empty(0, 1, 4, 4)).flipped.tolist() == []
