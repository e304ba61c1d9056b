from __future__ import annotations

import pytest
import torch

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.deepfool import DeepFool, deepfool, deepfool_classes
from dicomguard.lab.attacks.found import lengths
from tests.attacks.toys import curved, linear, noise_pictures, picture
from tests.lab.attacks.toys import at, blobs, classes, corners, findings, logit, tilted, two

FAR = (0.05, -0.1, 0.2, 0.3)


def test_a_linear_network_is_crossed_at_the_known_distance_in_one_step() -> None:
    clean = at(*FAR)
    found = deepfool(from_logits(tilted, clean), clean, DeepFool(steps=1))
    assert found.flipped.all()
    assert lengths(found.pixels - clean).tolist() == pytest.approx([1.02 * abs(far) for far in FAR], rel=1e-4)
    assert torch.allclose(found.strength, (found.pixels - clean).abs().amax((1, 2, 3)))


def test_kappa_goes_on_until_the_wrong_margin_exceeds_it() -> None:
    clean = at(0.05)
    found = deepfool(from_logits(tilted, clean), clean, DeepFool(kappa=0.3))
    assert found.margin[0] == pytest.approx(-0.3, rel=0.1)
    assert found.margin[0] < -0.3


def test_of_several_classes_the_nearest_boundary_is_crossed_not_the_likeliest() -> None:
    clean = torch.full((1, 1, 1, 2), 0.5)
    found = deepfool_classes(corners, clean)
    # Class 1 is likelier (.1 away in log-odds) but .1 away; class 2, .2 away in log-odds, is .05 away.
    assert corners(found.pixels).argmax() == 2
    assert lengths(found.pixels - clean).item() == pytest.approx(1.02 * 0.05, rel=1e-3)
    by_margin = deepfool(from_log_odds(corners, clean), clean)
    assert corners(by_margin.pixels).argmax() == 1
    assert lengths(by_margin.pixels - clean).item() == pytest.approx(1.02 * 0.1, rel=1e-3)
    likeliest = deepfool_classes(corners, clean, DeepFool(nearest=1))
    assert corners(likeliest.pixels).argmax() == 1


@pytest.mark.parametrize("head", [classes, findings])
def test_heads_of_many_outputs_are_crossed_for_no_more_than_by_the_margin(head) -> None:
    clean = noise_pictures(24)
    found = deepfool_classes(head, clean)
    by_margin = deepfool(from_log_odds(head, clean), clean)
    assert found.flipped.all()
    changed = (head(found.pixels).argmax(-1) != head(clean).argmax(-1)).any(1)
    assert torch.equal(changed, found.flipped)
    nearest, likeliest = lengths(found.pixels - clean), lengths(by_margin.pixels - clean)
    assert nearest.median() <= likeliest.median() * 1.001


def test_two_classes_are_the_closed_form() -> None:
    clean = noise_pictures(12).repeat_interleave(3, 2)[:, :, :20].repeat_interleave(3, 3)[..., :20]
    closed = deepfool(from_logits(logit, clean), clean)
    general = deepfool_classes(two, clean)
    assert torch.equal(closed.flipped, general.flipped)
    assert torch.allclose(closed.pixels, general.pixels, atol=1e-5)


def test_it_is_nearer_than_what_follows_the_sign_of_the_gradient() -> None:
    from dicomguard.attacks.ladder import Ladder, early_stopped_fgsm

    clean = noise_pictures(24)
    found = deepfool(from_logits(curved, clean), clean)
    signs = early_stopped_fgsm(
        from_logits(curved, clean), clean, Ladder(strengths=tuple(0.002 * i for i in range(1, 100)))
    )
    both = found.flipped & signs.flipped
    assert int(both.sum()) > 12
    assert (lengths(found.pixels - clean)[both] < lengths(signs.pixels - clean)[both]).float().mean() > 0.9
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1


def test_neighbours_and_chunks_make_no_difference() -> None:
    clean = noise_pictures(7)
    together = deepfool(from_logits(curved, clean), clean, chunk=3)
    for place in range(7):
        one = clean[place : place + 1]
        assert torch.allclose(deepfool(from_logits(curved, one), one).pixels[0], together.pixels[place], atol=1e-6)


def test_flipped_images_are_computed_no_more() -> None:
    sizes = []

    def counting(x):
        sizes.append(len(x))
        return logit(x)

    clean, _ = blobs(8, seed=1)
    deepfool(from_logits(counting, clean), clean)
    assert sizes[1] == 8
    assert sorted(sizes[1:], reverse=True) == sizes[1:]
    assert sizes[-1] < 8


def test_what_cannot_flip_says_so() -> None:
    clean = picture(0.1, 0.2)
    flat = deepfool(lambda x, _: 0 * x.sum((1, 2, 3)) + 1, clean)
    assert not flat.flipped.any()
    assert flat.strength.isnan().all()
    assert torch.equal(flat.pixels, clean)
    bright = torch.zeros(1, 1, 4, 4)
    stuck = deepfool(from_logits(lambda x: x.mean((1, 2, 3)) + 1, bright), bright, DeepFool(steps=5))
    assert not stuck.flipped.any()
    assert stuck.margin[0] == pytest.approx(1)


def test_a_margin_of_zero_is_left() -> None:
    clean = picture(0.0)
    assert deepfool(from_logits(linear, clean), clean).flipped.all()


def test_a_number_that_is_none_is_refused() -> None:
    clean = picture(0.1)
    with pytest.raises(DicomguardError, match="not a finite number"):
        deepfool(lambda x, _: linear(x) / 0, clean)
    with pytest.raises(DicomguardError, match="a logit is not a finite number"):
        deepfool_classes(lambda x: two_of(linear(x) / 0), clean)
    with pytest.raises(DicomguardError, match="a gradient is not a finite number"):
        deepfool_classes(lambda x: two_of((0 * x).sqrt().sum((1, 2, 3))), clean)


def two_of(one):
    return torch.stack([torch.zeros_like(one), one], -1).unsqueeze(1)


def test_nothing_to_attack() -> None:
    empty = torch.empty(0, 1, 4, 4)
    assert deepfool(from_logits(linear, empty), empty).flipped.tolist() == []
    assert deepfool_classes(two, empty).flipped.tolist() == []
