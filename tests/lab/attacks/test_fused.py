from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.lab.attacks.deep import DeepNetwork, mahalanobis
from dicomguard.lab.attacks.fused import enrolled_score, paper_score, statistic, surprise
from dicomguard.lab.attacks.noise_check import Looked, NoiseCheck
from dicomguard.scoring.component import Component
from tests.lab.attacks.toys import blobs, two
from tests.scoring.small import gray_image, small_seeds


@given(
    values=st.lists(st.integers(-20, 20), min_size=3, max_size=30).filter(lambda v: len(set(v)) > 1),
    asked=st.lists(st.floats(-30, 30), min_size=1, max_size=8),
)
def test_surprise_is_the_components(values: list[int], asked: list[float]) -> None:
    component = Component.fit(np.array(values) / 4, "test")
    asked = [*asked, *component.values]
    found = surprise(component, torch.tensor(asked, dtype=torch.float64))
    assert found.tolist() == pytest.approx([component.surprise(value) for value in asked], abs=1e-9)


def test_surprise_of_a_component_that_is_always_the_same() -> None:
    component = Component.fit(np.full(5, -1.0), "test", if_same=0.01)
    found = surprise(component, torch.tensor([-2.0, -1.0, -0.5], dtype=torch.float64))
    assert found.tolist() == pytest.approx([component.surprise(value) for value in (-2.0, -1.0, -0.5)])


def test_the_statistic_is_the_calibrations(enrolled) -> None:
    _, scorer = enrolled
    fitted = scorer.enrolment.calibration
    last = len(fitted.stages) - 1
    draws = fitted.stages[-1].draws
    # Half of the pictures as at enrolment, half of another kind.
    batch = scorer.prepare([gray_image(n, blocks=6 if n < 6 else 15) for n in range(12)])
    evidence, _ = scorer.look(batch, small_seeds(12), draws)
    seen = Looked(
        torch.from_numpy(np.stack([one.seen.clean for one in evidence])),
        torch.from_numpy(np.stack([one.seen.noisy for one in evidence])),
        draws,
    )
    known = [fitted.statistic_after(one, last) for one in evidence]
    distances = torch.from_numpy(np.stack([one.distances for one in evidence]))
    assert statistic(seen, distances, fitted).tolist() == pytest.approx(known, abs=1e-6)
    answers = seen.clean.argmax(-1)
    answered = scorer.answer(batch.pixels)
    mine = mahalanobis(scorer.feature_model, torch.from_numpy(answered.features), answers)
    assert statistic(seen, mine, fitted).tolist() == pytest.approx(known, abs=1e-4)
    assert len(set(np.round(known, 3))) > 6


def test_the_score_can_be_gone_down(enrolled) -> None:
    bundle, scorer = enrolled
    deep = DeepNetwork(bundle)
    pixels = scorer.prepare([gray_image(n, blocks=15) for n in range(6)]).pixels.clone()
    check = NoiseCheck(deep.log_odds, scorer.noise, range(6))
    score = enrolled_score(deep, check, scorer.enrolment.calibration, scorer.feature_model)
    leaf = pixels.clone().requires_grad_()
    value = score(leaf, torch.arange(6), 0)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert value.shape == (6,)
    steep = gradient.abs().amax((1, 2, 3)) > 0
    assert steep.any()
    down = score((pixels - 1e-3 * gradient.sign()).detach(), torch.arange(6), 0)
    assert (down[steep] < value.detach()[steep]).float().mean() > 0.6


def test_the_papers_score_is_the_median_probability_drop() -> None:
    from dicomguard.lab.attacks.noise_check import curves
    from dicomguard.scoring.consistency import NoiseSettings

    clean = blobs(4, 1)[0]
    check = NoiseCheck(two, NoiseSettings(), range(4))
    found = paper_score(check, 2)(clean, torch.arange(4), 0)
    known = curves(check.look(clean, torch.arange(4), [(2, r) for r in range(8)], 0)).probability_drops
    assert torch.equal(found, known[:, 0, 0])
