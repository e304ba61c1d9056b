from __future__ import annotations

import numpy as np
import pytest
import torch

from dicomguard.errors import BundleError
from dicomguard.lab.attacks.deep import DeepNetwork, mahalanobis
from tests.scoring.small import gray_image


def test_it_says_what_the_scorer_says_and_gradients_flow(enrolled) -> None:
    bundle, scorer = enrolled
    pixels = scorer.prepare([gray_image(n) for n in range(5)]).pixels.clone()
    known = scorer.answer(pixels)
    deep = DeepNetwork(bundle)
    leaf = pixels.clone().requires_grad_()
    odds, features = deep(leaf)
    assert np.allclose(odds.detach().numpy(), known.log_odds, atol=1e-5)
    assert np.allclose(features.detach().numpy(), known.features, atol=1e-5)
    (gradient,) = torch.autograd.grad(features.square().sum(), leaf)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    assert torch.equal(deep.log_odds(pixels), deep(pixels)[0])
    assert torch.equal(deep.features(pixels), deep(pixels)[1])


def test_mahalanobis_is_the_feature_models(enrolled) -> None:
    _, scorer = enrolled
    known = scorer.answer(scorer.prepare([gray_image(n) for n in range(8)]).pixels)
    answers = torch.from_numpy(known.log_odds.argmax(-1))
    features = torch.from_numpy(known.features).float().requires_grad_()
    found = mahalanobis(scorer.feature_model, features, answers)
    for place in range(8):
        wanted = scorer.feature_model.distances(known.features[place], tuple(answers[place].tolist()))
        assert found[place].tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_a_network_without_features_says_so(enrolled) -> None:
    bundle, _ = enrolled

    class Bare:
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3))
        head = bundle.head
        metadata = bundle.metadata
        inference = bundle.inference

    with pytest.raises(BundleError, match="no linear layer"):
        DeepNetwork(Bare())
