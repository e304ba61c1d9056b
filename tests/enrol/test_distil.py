from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dicomguard.enrol.cleanset import Gathered, Part
from dicomguard.enrol.distil import Distillation, Lessons, distil, lessons, moved
from dicomguard.scoring.head import Head, HeadKind
from dicomguard.scoring.scorer import Scorer
from tests.enrol.test_cleanset import clean
from tests.scoring.small import write_small

NARROW = 8  # planes; fewer crash torch 2.14 on processors without AVX-512 (a strided 1 x 1 convolution, backwards)
QUICK = Distillation(variants=2, epochs=1, least_steps=1, batch=8)
BINARY = Head(HeadKind.SOFTMAX, ("normal", "opacity"))


def made_up(count: int = 16, questions: int = 1, classes: int = 2) -> Lessons:
    """Bright planes are of the last class, dark ones of the first."""
    generator = torch.Generator().manual_seed(0)
    bright = torch.arange(count) % 2
    planes = torch.rand((1, count, 1, 64, 64), generator=generator) * 0.3 + 0.6 * bright.view(1, -1, 1, 1, 1)
    odds = torch.zeros(1, count, questions, classes)
    odds[..., -1] = (bright * 16 - 8).view(1, -1, 1)
    return Lessons(planes.half(), odds)


def test_pictures_of_one_place_move_alike_whatever_their_size() -> None:
    generator = torch.Generator().manual_seed(1)
    large = torch.zeros(3, 1, 128, 128)
    large[:, :, 40:80, 50:90] = 1
    small = torch.nn.functional.avg_pool2d(large, 2)
    first, second = moved((large, small), Distillation(), generator)
    assert first.shape == large.shape
    assert (torch.nn.functional.avg_pool2d(first, 2) - second).abs().mean() < 0.01
    assert (first - large).abs().max() > 0.5
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_no_movement_leaves_pictures_as_they_are() -> None:
    still = replace(Distillation(), rotation=0, zoom=0, shift=0)
    batch = torch.rand(2, 1, 20, 30)
    (found,) = moved((batch,), still, torch.Generator())
    assert torch.allclose(found, batch, atol=1e-5)


def test_a_lesson_is_a_picture_and_the_protected_models_answer_to_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.set_num_threads(1)
    scorer = Scorer.load(write_small(tmp_path_factory.mktemp("distil"), size=16, repeats=2))
    gathered = Gathered(scorer, None)
    gathered.add_all([clean(n, part=Part.DISTILLED) for n in range(18)])
    part = gathered.parts[Part.DISTILLED]
    shares: list[float] = []
    taught = lessons(scorer, part, QUICK, lambda _stage, share: shares.append(share))
    assert sum(shares) == pytest.approx(1)
    assert len(taught) == 18
    assert taught.planes.shape == (2, 18, 1, 64, 64)
    assert taught.log_odds.shape == (2, 18, 1, 2)
    whole = part.batch(range(18))
    assert whole.planes is not None
    assert torch.allclose(taught.planes[0].float(), whole.planes, atol=1e-3)
    assert not torch.allclose(taught.planes[1].float(), whole.planes, atol=1e-2)
    assert torch.equal(lessons(scorer, part, QUICK, lambda *_: None).log_odds, taught.log_odds)


def test_a_guard_learns_what_is_easy_and_learns_the_same_again() -> None:
    settings = replace(QUICK, variants=1, epochs=50, batch=8, averaging=0.1)
    shares: list[float] = []
    networks = [
        distil(made_up(), BINARY, 0.1, settings, lambda _s, share: shares.append(share), width=NARROW) for _ in range(2)
    ]
    assert sum(shares) == pytest.approx(2)
    taught = made_up()
    with torch.inference_mode():
        found = networks[0](taught.planes[0].float())[:, 0]
        again = networks[1](taught.planes[0].float())[:, 0]
    assert not networks[0].training
    assert ((found > 0) == (torch.arange(16) % 2 == 1)).all()
    assert torch.allclose(found, again, atol=1e-4)


@pytest.mark.parametrize(
    ("reading", "questions", "classes"),
    [
        (Head(HeadKind.SOFTMAX, ("a", "b", "c")), 1, 3),
        (Head(HeadKind.MULTILABEL, ("a", "b", "c")), 3, 2),
    ],
)
def test_a_guard_learns_every_head(reading: Head, questions: int, classes: int) -> None:
    network = distil(made_up(8, questions, classes), reading, 0.1, QUICK, lambda *_: None, width=NARROW)
    assert reading.log_odds(network(torch.rand(2, 1, 64, 64))).shape == (2, questions, classes)
