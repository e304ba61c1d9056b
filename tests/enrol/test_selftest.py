from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomguard.attacks.suite import SUITE
from dicomguard.enrol import selftest
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import gray_image, write_small


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    torch.set_num_threads(1)
    return Scorer.load(write_small(tmp_path_factory.mktemp("selftest"), size=16, repeats=2))


def test_the_auroc_of_nothing_is_none_and_nan_is_the_highest_score() -> None:
    assert selftest.auroc([1.0], []) is None
    assert selftest.auroc([], [1.0]) is None
    assert selftest.auroc([1.0, 2.0], [float("nan")]) == 1
    assert selftest.auroc([1.0, 2.0], [float("inf")]) == 1


def test_attacks_are_those_of_the_suite() -> None:
    assert set(selftest.ATTACKS) <= set(SUITE)


def test_what_is_forged_has_another_answer_and_fits_into_stored_integers(scorer: Scorer) -> None:
    images = [gray_image(n) for n in range(5)] + [gray_image(9, rows=40, columns=40)]
    shares: list[float] = []
    found = selftest.forge_all(scorer, images, shares.append, ("PGD 0.008",))
    (forged,) = found
    assert forged.tried == 6
    assert len(forged.images) == len(forged.places) > 0
    assert sum(shares) == pytest.approx(1)
    for place, image in zip(forged.places, forged.images, strict=True):
        before, after = (
            scorer.answer(scorer.prepare([one]).pixels).log_odds.argmax(-1).tolist() for one in (images[place], image)
        )
        assert before != after
        stored = image.pixels.astype(np.float64) * 4095
        assert np.allclose(stored, np.rint(stored), atol=1e-3)
        assert np.abs(image.pixels - images[place].pixels).max() <= 0.008 + 0.5 / 4095 + 1e-6


def test_colour_is_attacked_too(scorer: Scorer) -> None:
    gray = gray_image(1)
    tints = gray.pixels * np.array([1, 0.9, 0.8], np.float32)[:, None, None]
    image = replace(gray, pixels=np.rint(tints * 4095).astype(np.float32) / 4095)
    (forged,) = selftest.forge_all(scorer, [image], lambda _: None, ("PGD 0.008",))
    assert forged.tried == 1
    for one in forged.images:
        assert one.pixels.shape == image.pixels.shape
        assert 0 < np.abs(one.pixels - image.pixels).max() <= 0.008 + 0.5 / 4095 + 1e-6
    assert forged.images


def test_images_with_no_way_back_are_left_out_and_none_at_all_is_no_error(scorer: Scorer) -> None:
    images = [replace(gray_image(2), mapping=None)]
    for forged in selftest.forge_all(scorer, images, lambda _: None):
        assert (forged.tried, forged.images, forged.places) == (0, (), ())
