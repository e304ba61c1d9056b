from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.square import Square, square
from tests.attacks.toys import curved, linear, noise_pictures, picture
from tests.lab.attacks.toys import blobs, classes, logit


def test_it_never_asks_for_a_gradient_and_counts_what_it_asks() -> None:
    clean, _ = blobs(12, seed=4)
    asked = torch.zeros(12, dtype=torch.int64)
    margins = from_logits(logit, clean)

    def counting(current, which):
        assert not current.requires_grad
        assert not torch.is_grad_enabled()
        asked[which] += 1
        return margins(current, which)

    found = square(counting, clean, range(12), Square(eps=0.1, queries=150))
    assert torch.equal(found.queries, asked)
    assert found.attacked.flipped.float().mean() > 0.5
    assert (found.queries[~found.attacked.flipped] == 150).all()
    assert (found.queries[found.attacked.flipped] < 150).any()


@settings(max_examples=15, deadline=None)
@given(eps=st.sampled_from([0.01, 0.05, 0.3]), seed=st.integers(0, 1000), queries=st.integers(1, 40))
def test_ball_and_range_are_kept_and_the_margin_is_the_pictures(eps: float, seed: int, queries: int) -> None:
    clean = noise_pictures(4, seed).mul(1.4).sub(0.2).clamp(0, 1)
    settings = Square(eps=eps, queries=queries)
    found = square(from_logits(curved, clean), clean, range(seed, seed + 4), settings).attacked
    assert ((found.pixels - clean).abs() <= eps + 1e-6).all()
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1
    sign = torch.where(curved(clean) >= 0, 1.0, -1.0)
    assert torch.allclose(found.margin, sign * curved(found.pixels), atol=1e-5)
    assert torch.equal(found.flipped, found.margin < 0)


def test_more_queries_never_leave_a_better_margin() -> None:
    clean, _ = blobs(8, seed=5)
    margins = from_logits(logit, clean)
    lowest = [
        square(margins, clean, range(8), Square(eps=0.05, queries=n, kappa=99)).attacked.margin.mean()
        for n in (5, 50, 200)
    ]
    assert lowest[0] > lowest[1] > lowest[2]


def test_kappa_goes_on_past_the_flip() -> None:
    clean, _ = blobs(8, seed=6)
    found = square(from_logits(logit, clean), clean, range(8), Square(eps=0.2, kappa=1.0)).attacked
    assert found.flipped.any()
    assert (found.margin[found.flipped] < -1).all()


def test_several_planes_get_signs_of_their_own() -> None:
    clean = torch.full((4, 3, 8, 8), 0.5)

    def colour(x):
        return (x[:, 0] - x[:, 1]).mean((1, 2)) + 0.02

    found = square(from_logits(colour, clean), clean, range(4), Square(eps=0.05)).attacked
    assert found.flipped.all()


def test_heads_of_many_outputs() -> None:
    clean = noise_pictures(8)
    found = square(from_log_odds(classes, clean), clean, range(8), Square(eps=0.2)).attacked
    assert found.flipped.any()
    assert torch.equal((classes(found.pixels).argmax(-1) != classes(clean).argmax(-1)).any(1), found.flipped)


def test_neighbours_make_no_difference_and_seeds_do() -> None:
    clean = noise_pictures(5)
    settings = Square(eps=0.02, queries=40)
    together = square(from_logits(curved, clean), clean, range(5), settings, chunk=2)
    for place in range(5):
        one = clean[place : place + 1]
        alone = square(from_logits(curved, one), one, [place], settings)
        assert torch.allclose(alone.attacked.pixels[0], together.attacked.pixels[place], atol=1e-6)
        assert alone.queries[0] == together.queries[place]
    other = square(from_logits(curved, clean), clean, range(5, 10), settings)
    assert not torch.equal(other.attacked.pixels, together.attacked.pixels)


def test_edges_and_nothing() -> None:
    clean = picture(0.1)
    with pytest.raises(DicomguardError, match="not a finite number"):
        square(lambda x, _: linear(x) / 0, clean, [0])
    with pytest.raises(ValueError, match="1 images need as many seeds, not 0"):
        square(from_logits(linear, clean), clean, [])
    empty = torch.empty(0, 1, 4, 4)
    assert square(from_logits(linear, empty), empty, []).queries.tolist() == []
    none = square(from_logits(linear, clean), clean, [0], Square(queries=0))
    assert not none.attacked.flipped.any()
    assert none.attacked.margin.isnan().all()
