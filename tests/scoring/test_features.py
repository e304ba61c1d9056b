from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import nn

from dicomguard.errors import BundleError
from dicomguard.scoring import features
from dicomguard.scoring.classifier import Classifier
from dicomguard.scoring.features import FeatureModel


def made_up(
    count: int, width: int, classes: int, questions: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    answers = rng.integers(classes, size=(count, questions))
    centres = rng.normal(0, 3, (questions, classes, width))
    spread = rng.normal(size=(width, width)) * np.linspace(2, 0.1, width)
    values = rng.normal(size=(count, width)) @ spread
    for q in range(questions):
        values += centres[q, answers[:, q]]
    return values, answers, rng.normal(0, 4, (20, width))


def dense(values: np.ndarray, answers: np.ndarray, at: np.ndarray, answer: tuple[int, ...]) -> list[float]:
    """The formula as it is written: one covariance for all classes, shrunk, inverted."""
    questions = answers.shape[1]
    means = [[values[answers[:, q] == c].mean(0) for c in range(answers.max() + 1)] for q in range(questions)]
    residuals = np.concatenate([values - np.array([means[q][c] for c in answers[:, q]]) for q in range(questions)])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    return [float((at - means[q][answer[q]]) @ inverse @ (at - means[q][answer[q]])) for q in range(questions)]


@pytest.mark.parametrize(
    ("count", "width", "classes", "questions"), [(300, 12, 3, 1), (200, 60, 2, 1), (150, 8, 2, 3), (40, 1, 2, 1)]
)
def test_distances_are_those_of_the_dense_formula(count: int, width: int, classes: int, questions: int) -> None:
    values, answers, at = made_up(count, width, classes, questions)
    model = features.fit(values, answers, classes)
    assert model is not None
    assert model.basis.shape == (width - 1, width)
    for row in at:
        answer = tuple(int(c) for c in np.random.default_rng(int(abs(row[0]) * 100)).integers(classes, size=questions))
        assert model.distances(row, answer) == pytest.approx(dense(values, answers, row, answer), rel=1e-3)


def test_with_more_features_than_directions_the_others_share_what_is_left() -> None:
    values, answers, at = made_up(400, 100, 2)
    model = features.fit(values, answers, 2)
    assert model is not None
    assert model.basis.shape == (64, 100)
    assert np.allclose(model.basis @ model.basis.T, np.eye(64), atol=1e-5)
    inverse = model.outer * np.eye(100) + model.basis.T.astype(float) @ np.diag(model.inner) @ model.basis
    whole = np.linalg.inv(inverse)
    residuals = values - np.array([values[answers[:, 0] == c].mean(0) for c in answers[:, 0]])
    assert np.trace(whole) == pytest.approx(np.trace(residuals.T @ residuals) / 400, rel=1e-3)
    mean = values[answers[:, 0] == 1].mean(0)
    assert model.distances(at[0], (1,))[0] == pytest.approx(float((at[0] - mean) @ inverse @ (at[0] - mean)), rel=1e-3)


def test_fewer_images_than_features_still_give_distances() -> None:
    values, answers, at = made_up(30, 200, 2)
    model = features.fit(values, answers, 2)
    assert model is not None
    found = [model.distances(row, (0,))[0] for row in at]
    assert np.isfinite(found).all()
    assert min(found) > 0


def test_a_class_of_few_images_has_the_mean_of_all() -> None:
    values, answers, _ = made_up(100, 6, 3)
    answers[answers == 2] = 0
    answers[:4] = 2
    model = features.fit(values, answers, 3)
    assert model is not None
    assert model.means[0, 2] == pytest.approx(values.mean(0), rel=1e-5)
    assert model.means[0, 0] == pytest.approx(values[answers[:, 0] == 0].mean(0), rel=1e-5)


def test_a_network_without_a_linear_layer_has_no_features() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    outputs, seen = Classifier(network, [0.5] * 3, [0.5] * 3)(torch.rand(4, 1, 8, 8))
    assert outputs.shape == (4, 2)
    assert seen.shape == (4, 0)
    assert features.fit(seen.detach().double().numpy(), np.zeros((4, 1), np.int64), 2) is None


def test_features_are_what_the_last_linear_layer_is_given() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    pixels = torch.rand(4, 1, 4, 4)
    _, seen = Classifier(network, [0.5] * 3, [0.5] * 3)(pixels)
    assert torch.allclose(seen, network[:3](((pixels - 0.5) / 0.5).expand(-1, 3, -1, -1)), atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_features_are_refused(value: float) -> None:
    values, answers, _ = made_up(50, 6, 2)
    values[3, 2] = value
    with pytest.raises(BundleError, match="features of clean images"):
        features.fit(values, answers, 2)
    with pytest.raises(BundleError, match="all the same"):
        features.fit(np.ones((50, 6)), answers, 2)


def test_a_model_comes_back_from_its_tensors() -> None:
    values, answers, at = made_up(80, 9, 2)
    model = features.fit(values, answers, 2)
    assert model is not None
    again = FeatureModel.from_tensors(model.tensors())
    assert again is not None
    assert again.distances(at[0], (1,)) == pytest.approx(model.distances(at[0], (1,)), rel=1e-6)
    assert FeatureModel.from_tensors({"guard.head.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("name", ["means", "basis", "inner", "outer"])
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    values, answers, _ = made_up(80, 9, 2)
    model = features.fit(values, answers, 2)
    assert model is not None
    tensors = model.tensors()
    short = {**tensors, f"features.{name}": tensors[f"features.{name}"][..., :0]}
    missing = {key: value for key, value in tensors.items() if key != f"features.{name}"}
    for broken in (short, missing):
        with pytest.raises(BundleError, match="do not fit"):
            FeatureModel.from_tensors(broken)
