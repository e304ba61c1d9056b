from __future__ import annotations

import torch

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.attacks.suite import SUITE
from dicomguard.lab.attacks.transfer import transfer
from dicomguard.scoring import head
from tests.attacks.toys import curved, linear, noise_pictures, picture


def two_of(logits):
    """A head of two outputs whose log-odds these are: (n, 1, 2)."""
    return lambda x: torch.stack([-logits(x) / 2, logits(x) / 2], -1).unsqueeze(1)


def test_to_itself_it_is_the_attack_itself() -> None:
    clean = noise_pictures(8)
    margins = from_logits(curved, clean)
    sent = transfer(SUITE["early-stopped BIM"], margins, margins, clean, range(8))
    plain = SUITE["early-stopped BIM"](margins, clean, range(8))
    assert torch.equal(sent.pixels, plain.pixels)
    assert torch.equal(sent.flipped, plain.flipped)
    assert torch.allclose(sent.strength, plain.strength, equal_nan=True)


def test_flips_and_margins_are_the_victims() -> None:
    clean = picture(0.002, 0.002, 0.05)

    def victim(x):
        return 3 * linear(x) - torch.tensor([0.0, -0.2, 0.0])[: len(x)]

    found = transfer(
        SUITE["PGD 0.004"], from_logits(linear, clean), from_logits(victim, clean), clean, range(3), chunk=3
    )
    assert found.flipped.tolist() == [True, False, False]
    assert torch.allclose(found.margin, torch.tensor([-0.006, 0.194, 0.138]), atol=1e-5)
    assert abs(float(found.strength[0]) - 0.004) < 1e-6
    assert found.strength[1:].isnan().all()


def test_a_surrogate_that_is_wrong_from_the_start_is_not_pushed_back_to_the_truth() -> None:
    clean = picture(0.01)
    odds = two_of(linear)
    wrong = two_of(lambda x: linear(x) - 0.02)
    answers = head.answers(odds(clean))
    assert head.answers(wrong(clean)).tolist() != answers.tolist()
    away = transfer(
        SUITE["PGD 0.016"], from_log_odds(wrong, clean, answers=answers), from_log_odds(odds, clean), clean, [0]
    )
    back = transfer(SUITE["PGD 0.016"], from_log_odds(wrong, clean), from_log_odds(odds, clean), clean, [0])
    assert away.flipped.tolist() == [True]
    assert back.flipped.tolist() == [False]


def test_a_victim_that_no_surrogate_flips() -> None:
    clean = picture(0.5)
    found = transfer(SUITE["PGD 0.004"], from_logits(linear, clean), lambda x, _: linear(x) - 0.497, clean, [0])
    assert found.flipped.tolist() == [True], "the surrogate stood firm, the victim fell"
    assert abs(float(found.strength[0]) - 0.004) < 1e-5
    empty = torch.empty(0, 1, 4, 4)
    none = transfer(SUITE["PGD 0.004"], from_logits(linear, empty), from_logits(linear, empty), empty, [])
    assert none.flipped.tolist() == []
