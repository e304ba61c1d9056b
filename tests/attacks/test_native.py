from __future__ import annotations

import pytest
import torch

from dicomguard.attacks.margins import slopes
from dicomguard.attacks.native import native_margins
from dicomguard.scoring import head
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import gray_image, write_small


@pytest.fixture(scope="module", params=["binary", "softmax", "multilabel"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    options = {} if request.param == "binary" else {"labels": ("a", "b", "c"), "head": request.param}
    return Scorer.load(write_small(folder, size=16, **options))


def native(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(gray_image(n).pixels) for n in range(count)])


def test_margins_are_those_of_the_bundles_own_answers(scorer: Scorer) -> None:
    pixels = native(4)
    margins = native_margins(scorer, pixels)
    odds = torch.from_numpy(scorer.answer(scorer.prepare([gray_image(n) for n in range(4)]).pixels).log_odds)
    expected = head.margins(odds, head.answers(odds))
    with torch.inference_mode():
        found = margins(pixels, torch.arange(4))
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert (found >= 0).all()
        # Of part of the batch, in any order, each image keeps its own answer.
        some = margins(pixels[[2, 0]], torch.tensor([2, 0]))
    assert some.tolist() == pytest.approx(found[[2, 0]].tolist(), abs=1e-5)


def test_a_margin_is_negative_where_the_answer_is_another_one(scorer: Scorer) -> None:
    pixels = native(6)
    margins = native_margins(scorer, pixels)
    answers = head.answers(
        torch.from_numpy(scorer.answer(scorer.preprocess.images([gray_image(n) for n in range(6)])).log_odds)
    )
    with torch.inference_mode():
        for shift in (1, 2, 3):
            other = pixels.roll(shift, 0)
            changed = (answers.roll(shift, 0) != answers).any(1)
            assert ((margins(other, torch.arange(6)) < 0) == changed).all()


def test_gradients_reach_native_pixels(scorer: Scorer) -> None:
    pixels = native(2)
    margin, gradient = slopes(native_margins(scorer, pixels), pixels, torch.arange(2))
    assert margin.shape == (2,)
    assert gradient.shape == pixels.shape
    assert (gradient != 0).float().mean() > 0.5
