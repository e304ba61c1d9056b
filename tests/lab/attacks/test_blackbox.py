from __future__ import annotations

import torch

from dicomguard.attacks.margins import from_logits
from dicomguard.lab.attacks.blackbox import blackbox
from dicomguard.lab.attacks.square import Square, square
from tests.attacks.toys import linear, picture
from tests.lab.attacks.toys import blobs, logit

SETTINGS = Square(eps=0.15, queries=300)


def test_without_a_detector_it_is_the_square_attack() -> None:
    clean = blobs(8, 4)[0]
    margins = from_logits(logit, clean)
    found = blackbox(margins, lambda x, _: torch.ones(len(x), dtype=torch.bool), clean, range(8), SETTINGS)
    plain = square(margins, clean, range(8), SETTINGS)
    assert torch.equal(found.accepted, plain.attacked.flipped)
    assert torch.equal(found.queries, plain.queries)


def test_it_looks_for_a_flip_that_is_let_through() -> None:
    clean = blobs(16, 4)[0]
    margins = from_logits(logit, clean)
    asked = torch.zeros(16, dtype=torch.int64)

    def accepts(pixels, which):
        """A detector of roughness, on which the first flips mostly fall."""
        asked[which] += 1
        assert not pixels.requires_grad
        change = pixels - clean[which]
        return (change[:, :, 1:] - change[:, :, :-1]).abs().mean((1, 2, 3)) < 0.045

    plain = square(margins, clean, range(16), SETTINGS)
    rejected = ~accepts(plain.attacked.pixels, torch.arange(16)) & plain.attacked.flipped
    assert rejected.any(), "the toy shows nothing otherwise"
    asked.zero_()
    found = blackbox(margins, accepts, clean, range(16), SETTINGS)
    assert torch.equal(asked, found.queries)
    assert (found.accepted[rejected]).any(), "some that Square alone would have lost get through"
    through = found.accepted
    assert (found.attacked.margin[through] < 0).all()
    assert accepts(found.attacked.pixels, torch.arange(16))[through].all()
    assert ((found.attacked.pixels - clean).abs() <= 0.15 + 1e-6).all()
    assert (found.queries[~through] == 300).all()


def test_nothing_is_let_through() -> None:
    clean = picture(0.002)
    found = blackbox(
        from_logits(linear, clean), lambda x, _: torch.zeros(len(x), dtype=torch.bool), clean, [0], Square(queries=30)
    )
    assert not found.accepted.any()
    assert found.queries.tolist() == [30]
    empty = clean[:0]
    none = blackbox(from_logits(linear, empty), lambda x, _: x.new_zeros(0).bool(), empty, [])
    assert none.accepted.tolist() == []
