from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dicomguard.attacks.margins import from_log_odds, from_logits, slopes, values
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from tests.attacks.toys import linear, noise_pictures, picture, small_net

EVERY = torch.arange(2)


def test_one_logit_whichever_its_sign() -> None:
    clean = picture(0.1, -0.2)
    assert values(from_logits(linear, clean), clean, EVERY).tolist() == pytest.approx([0.1, 0.2], abs=1e-6)
    assert values(from_logits(linear, clean), clean.flip(0), EVERY).tolist() == pytest.approx([-0.2, -0.1], abs=1e-6)


def classes(x: Tensor) -> Tensor:
    """One question whose log-odds are the pixels of the first row."""
    return x[:, :, 0]


def findings(x: Tensor) -> Tensor:
    """A yes-or-no question for each pixel of the first row: is it brighter than mid gray?"""
    return torch.stack([torch.zeros_like(x[:, 0, 0]), x[:, 0, 0] - 0.5], -1)


def test_classes_are_measured_against_the_nearest_other() -> None:
    clean = torch.tensor([[[[0.1, 0.9, 0.6]]], [[[0.5, 0.2, 0.1]]]])
    margins = from_log_odds(classes, clean)
    assert values(margins, clean, EVERY).tolist() == pytest.approx([0.3, 0.3])
    assert values(margins, clean[:1], EVERY[1:]).tolist() == pytest.approx([-0.8])


def test_findings_flip_with_the_first_of_them() -> None:
    clean = torch.tensor([[[[0.9, 0.2]]], [[[0.1, 0.6]]]])
    margins = from_log_odds(findings, clean)
    assert values(margins, clean, EVERY).tolist() == pytest.approx([0.3, 0.1])
    assert values(margins, clean.flip(0), EVERY).max() < 0


@pytest.mark.parametrize("questions", [1, 2], ids=["classes", "findings"])
def test_heads_of_many_outputs_are_attacked(questions: int) -> None:
    net = small_net(4, seed=1)

    clean = noise_pictures(6)
    reference = net(clean).mean(0)

    def centred(x: Tensor) -> Tensor:
        found: Tensor = net(x) - reference
        return found.view(len(x), questions, -1)

    found = fixed_eps_pgd(from_log_odds(centred, clean), clean, range(6), FixedEps(eps=0.1))
    assert found.flipped.any()
    changed = (centred(clean).argmax(-1) != centred(found.pixels).argmax(-1)).any(1)
    assert torch.equal(changed, found.flipped)


def test_gradients_come_in_chunks_and_only_where_wanted() -> None:
    clean = picture(0.1, 0.2, -0.3, -0.4)
    margins = from_logits(linear, clean)
    found, gradients = slopes(margins, clean, torch.arange(4), chunk=3)
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-6)
    assert gradients.sum((1, 2, 3)).tolist() == pytest.approx([1, 1, -1, -1])
    _, some = slopes(margins, clean, torch.arange(4), chunk=2, stop=0.25)
    assert some.sum((1, 2, 3)).tolist() == pytest.approx([0, 0, -1, -1])


def test_what_was_prepared_in_inference_mode_can_be_attacked() -> None:
    with torch.inference_mode():
        clean = picture(0.001, 0.5) * 1
        found = fixed_eps_pgd(from_logits(linear, clean), clean, range(2))
    assert clean.is_inference()
    assert found.flipped.tolist() == [True, False]


def test_a_number_that_is_none_is_refused() -> None:
    clean = picture(0.1)
    with pytest.raises(DicomguardError, match="a logit is not a finite number"):
        from_logits(lambda x: linear(x) * torch.nan, clean)
    with pytest.raises(DicomguardError, match="a margin is not a finite number"):
        values(lambda x, _: linear(x) / 0, clean, EVERY[:1])
    with pytest.raises(DicomguardError, match="a gradient is not a finite number"):
        slopes(lambda x, _: (0 * x).sqrt().sum((1, 2, 3)), clean, EVERY[:1])


def test_margins_of_another_shape_are_a_mistake() -> None:
    clean = picture(0.1, 0.2)
    with pytest.raises(ValueError, match=r"shape \(2, 1\), not \(2,\)"):
        values(lambda x, _: linear(x)[:, None], clean, EVERY)
