from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dicomguard.lab.finetune import Settings, augment, cache_features, finetune
from dicomguard.scoring.networks import EfficientNetLite0

SETTINGS = Settings(variants=2, epochs=2, batch=4, frozen_blocks=9)


def pictures(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    return (rng.random((count, 64, 64)) * 0.5 + labels[:, None, None] * 0.5).astype(np.float32), labels


def fresh() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0().eval().requires_grad_(requires_grad=False)


def test_only_the_last_layers_move() -> None:
    before = fresh().state_dict()
    *_, (epoch, network) = finetune(fresh(), *pictures(), SETTINGS, lambda _stage, _share: None)
    assert epoch == 1
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("head.") or int(name.split(".")[1]) >= 9 for name in moved)
    assert not any("running" in name for name in moved)


def test_the_same_seed_trains_the_same_network() -> None:
    networks = [list(finetune(fresh(), *pictures(), SETTINGS, lambda _s, _p: None))[-1][1] for _ in range(2)]
    first, second = (network.state_dict() for network in networks)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_augmented_pictures_stay_in_range_and_the_first_variant_is_untouched() -> None:
    images, _ = pictures()
    batch = torch.from_numpy(images)[:, None]
    made = augment(batch, SETTINGS, torch.Generator().manual_seed(1))
    assert made.shape == batch.shape
    assert made.min() >= 0
    assert made.max() <= 1
    assert not torch.allclose(made, batch)
    plain, varied = cache_features(fresh(), images, SETTINGS, lambda _s, _p: None)
    again, _ = cache_features(fresh(), images, SETTINGS, lambda _s, _p: None)
    assert torch.equal(plain, again)
    assert not torch.equal(plain, varied)


def test_progress_adds_up() -> None:
    shares: dict[str, float] = {}
    for _ in finetune(fresh(), *pictures(), SETTINGS, lambda s, p: shares.update({s: shares.get(s, 0) + p})):
        pass
    assert shares == {"features": pytest.approx(1), "training": pytest.approx(1)}


class StopError(Exception):
    pass


@pytest.mark.parametrize("classes", [1, 3])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(classes: int) -> None:
    def made() -> EfficientNetLite0:
        torch.manual_seed(0)
        return EfficientNetLite0(classes).eval().requires_grad_(requires_grad=False)

    images, _ = pictures(9)
    colours = np.repeat(images[:, None], 3, 1)
    labels = np.arange(9) % max(classes, 2)
    states: list[dict] = []
    *_, (_, whole) = finetune(made(), colours, labels, SETTINGS, lambda _s, _p: None, keep=states.append)
    assert [state["epoch"] for state in states] == [0, 1]
    first: list[dict] = []

    def stop(state: dict) -> None:
        first.append(copy.deepcopy(state))
        raise StopError

    with pytest.raises(StopError):
        list(finetune(made(), colours, labels, SETTINGS, lambda _s, _p: None, keep=stop))
    shares: list[float] = []
    rest = list(
        finetune(
            made(),
            colours,
            labels,
            SETTINGS,
            lambda stage, share: shares.append(share) if stage == "training" else None,
            resume=first[0],
        )
    )
    assert [epoch for epoch, _ in rest] == [1]
    assert sum(shares) == pytest.approx(1)
    ended = rest[0][1].state_dict()
    assert all(torch.equal(value, ended[name]) for name, value in whole.state_dict().items())
    assert ended["head.weight"].shape[0] == classes
