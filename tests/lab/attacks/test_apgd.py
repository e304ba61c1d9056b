from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.apgd import AutoPGD, apgd, checkpoints
from tests.attacks.toys import curved, linear, noise_pictures, picture
from tests.lab.attacks.toys import blobs, classes, findings, logit


def test_checkpoints_are_the_papers() -> None:
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_on_a_linear_network_it_ends_in_the_corner() -> None:
    clean = picture(0.003, 0.01)
    found = apgd(from_logits(linear, clean), clean, range(2))
    assert found.margin.tolist() == pytest.approx([-0.001, 0.006], abs=1e-6)
    assert found.flipped.tolist() == [True, False]
    assert found.strength[0] == pytest.approx(0.004)
    assert found.strength[1].isnan()


@settings(max_examples=15, deadline=None)
@given(
    eps=st.sampled_from([0.01, 0.05, 0.3]),
    seed=st.integers(0, 1000),
    restarts=st.integers(1, 3),
    stop=st.booleans(),
)
def test_ball_and_range_are_kept_and_the_margin_is_the_pictures(
    eps: float, seed: int, restarts: int, stop: bool
) -> None:
    clean = noise_pictures(4, seed).mul(1.4).sub(0.2).clamp(0, 1)
    found = apgd(
        from_logits(curved, clean),
        clean,
        range(seed, seed + 4),
        AutoPGD(eps=eps, steps=8, restarts=restarts, stop_at_flip=stop),
    )
    assert ((found.pixels - clean).abs() <= eps + 1e-6).all()
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1
    sign = torch.where(curved(clean) >= 0, 1.0, -1.0)
    assert torch.allclose(found.margin, sign * curved(found.pixels), atol=1e-5)
    assert torch.equal(found.flipped, found.margin < 0)


def test_it_goes_at_least_as_far_as_pgd_with_as_many_gradients() -> None:
    clean, _ = blobs(32, seed=3)
    margins = from_logits(logit, clean)
    auto = apgd(margins, clean, range(32), AutoPGD(eps=0.1, steps=40))
    plain = fixed_eps_pgd(margins, clean, range(32), FixedEps(eps=0.1, steps=40))
    assert auto.margin.mean() <= plain.margin.mean() + 0.01 * plain.margin.abs().mean()
    assert auto.flipped.sum() >= plain.flipped.sum()


def test_more_budget_and_more_restarts_never_flip_fewer() -> None:
    clean = noise_pictures(16)
    margins = from_logits(curved, clean)
    counts = [int(apgd(margins, clean, range(16), AutoPGD(eps=eps)).flipped.sum()) for eps in (0.005, 0.02, 0.05)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    one, three = (apgd(margins, clean, range(16), AutoPGD(eps=0.02, steps=3, restarts=n)) for n in (1, 3))
    assert (one.flipped <= three.flipped).all()
    assert (three.margin <= one.margin).all()


def test_stopped_at_the_flip_it_computes_no_more() -> None:
    sizes = []

    def counting(x):
        sizes.append(len(x))
        return curved(x)

    clean = noise_pictures(16)
    early = apgd(from_logits(counting, clean), clean, range(16), AutoPGD(eps=0.03, stop_at_flip=True), chunk=16)
    assert early.flipped.any()
    sizes = sizes[2:]  # without the answers
    assert sizes[0] == 16
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[-1] < 16
    late = apgd(from_logits(curved, clean), clean, range(16), AutoPGD(eps=0.03))
    assert torch.equal(early.flipped, late.flipped)
    assert (late.margin <= early.margin + 1e-6).all()


@pytest.mark.parametrize("head", [classes, findings])
def test_heads_of_many_outputs(head) -> None:
    clean = noise_pictures(8)
    found = apgd(from_log_odds(head, clean), clean, range(8), AutoPGD(eps=0.1))
    assert found.flipped.any()
    assert torch.equal((head(found.pixels).argmax(-1) != head(clean).argmax(-1)).any(1), found.flipped)


@pytest.mark.parametrize("stop", [False, True], ids=["confident", "early"])
def test_neighbours_and_chunks_make_no_difference(stop: bool) -> None:
    clean = noise_pictures(5)
    settings = AutoPGD(eps=0.03, steps=20, restarts=2, stop_at_flip=stop)
    together = apgd(from_logits(curved, clean), clean, range(5), settings, chunk=2)
    for place in range(5):
        one = clean[place : place + 1]
        alone = apgd(from_logits(curved, one), one, [place], settings)
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-6)
    again = apgd(from_logits(curved, clean), clean, range(5), settings, chunk=2)
    assert torch.equal(again.pixels, together.pixels)


def test_edges_and_nothing() -> None:
    clean = picture(0.1)
    with pytest.raises(DicomguardError, match="not a finite number"):
        apgd(lambda x, _: linear(x) / 0, clean, [0])
    with pytest.raises(ValueError, match="1 images need as many seeds, not 0"):
        apgd(from_logits(linear, clean), clean, [])
    empty = torch.empty(0, 1, 4, 4)
    assert apgd(from_logits(linear, empty), empty, []).flipped.tolist() == []
