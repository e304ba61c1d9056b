from __future__ import annotations

import pytest
import torch

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.carlini import KAPPAS, Carlini, carlini_l2
from dicomguard.lab.attacks.deepfool import deepfool
from dicomguard.lab.attacks.found import lengths
from tests.attacks.toys import curved, linear, noise_pictures, picture
from tests.lab.attacks.toys import SLOPE, at, blobs, classes, findings, logit, tilted

FAR = (0.05, -0.1, 0.2, 0.3)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_a_linear_network_is_crossed_at_nearly_the_known_distance(kappa: float) -> None:
    clean = at(*FAR)
    found = carlini_l2(from_logits(tilted, clean), clean, Carlini(kappa=kappa))
    known = [abs(far) + kappa / float(SLOPE.norm()) for far in FAR]
    assert found.flipped.all()
    assert lengths(found.pixels - clean).tolist() == pytest.approx(known, rel=0.02)
    assert (lengths(found.pixels - clean) >= torch.tensor(known) - 1e-5).all()
    assert (found.margin < -kappa).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_it_finds_boundaries_at_any_distance_and_steepness(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = 0.2 + 0.6 * torch.rand(3, 1, 32, 32, generator=generator)
    slope = torch.randn(1, 1, 32, 32, generator=generator)
    far = torch.tensor([0.005, 0.05, 0.5])

    def margins(current, which):
        return scale * (((current - clean[which]) * slope).sum((1, 2, 3)) + far[which] * slope.norm())

    found = carlini_l2(margins, clean)
    assert found.flipped.all()
    assert lengths(found.pixels - clean).tolist() == pytest.approx(far.tolist(), rel=0.04)


def test_it_is_no_farther_than_deepfool_on_a_trained_network() -> None:
    clean, _ = blobs(48, seed=5)
    margins = from_logits(logit, clean)
    found, quick = carlini_l2(margins, clean), deepfool(margins, clean)
    both = found.flipped & quick.flipped
    assert int(both.sum()) >= 46
    ratio = lengths(found.pixels - clean)[both] / lengths(quick.pixels - clean)[both]
    assert ratio.median() < 1.02
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1


def test_more_confidence_costs_more() -> None:
    clean, _ = blobs(12, seed=6)
    margins = from_logits(logit, clean)
    costs = [lengths(carlini_l2(margins, clean, Carlini(kappa=kappa)).pixels - clean) for kappa in (0.0, 1.0, 5.0)]
    assert (costs[0] < costs[1]).all()
    assert (costs[1] < costs[2]).all()
    assert KAPPAS == (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)


def test_more_searches_never_go_farther() -> None:
    clean, _ = blobs(12, seed=7)
    margins = from_logits(logit, clean)
    few, many = (carlini_l2(margins, clean, Carlini(searches=searches)) for searches in (2, 6))
    assert (few.flipped <= many.flipped).all()
    both = few.flipped & many.flipped
    assert (lengths(many.pixels - clean)[both] <= lengths(few.pixels - clean)[both] + 1e-6).all()


@pytest.mark.parametrize("head", [classes, findings])
def test_heads_of_many_outputs(head) -> None:
    clean = noise_pictures(8)
    found = carlini_l2(from_log_odds(head, clean), clean)
    assert found.flipped.all()
    assert (head(found.pixels).argmax(-1) != head(clean).argmax(-1)).any(1).all()


def test_neighbours_make_no_difference() -> None:
    clean = noise_pictures(5)
    settings = Carlini(steps=30, searches=3)
    together = carlini_l2(from_logits(curved, clean), clean, settings, chunk=2)
    for place in range(5):
        one = clean[place : place + 1]
        alone = carlini_l2(from_logits(curved, one), one, settings)
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-5)


def test_images_whose_loss_stands_still_are_computed_no_more() -> None:
    sizes = []

    def counting(x):
        sizes.append(len(x))
        return logit(x)

    clean, _ = blobs(8, seed=2)
    carlini_l2(from_logits(counting, clean), clean, Carlini(steps=200, searches=1))
    assert sizes[1] == 8
    assert sizes[-1] < 8
    assert sum(sizes) < 0.9 * 8 * 202


def test_what_cannot_flip_says_so() -> None:
    clean = torch.full((2, 1, 4, 4), 0.5)
    found = carlini_l2(from_logits(lambda x: x.mean((1, 2, 3)) + 5, clean), clean, Carlini(steps=10, searches=3))
    assert not found.flipped.any()
    assert found.strength.isnan().all()
    assert (found.margin > 0).all()


def test_edges_and_nothing() -> None:
    clean = picture(0.1)
    with pytest.raises(DicomguardError, match="not a finite number"):
        carlini_l2(lambda x, _: linear(x) / 0, clean)
    empty = torch.empty(0, 1, 4, 4)
    assert carlini_l2(from_logits(linear, empty), empty).flipped.tolist() == []
