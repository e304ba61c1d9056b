from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors import sight as sights
from dicomguard.lab.detectors.sight import Sight, joined, load, look
from dicomguard.scoring.scorer import Scorer
from tests.lab.detectors.made import LADDER, sight
from tests.scoring.small import enrol_small, gray_image, small_seeds, write_small


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    torch.set_num_threads(1)
    folder = write_small(tmp_path_factory.mktemp("bundle"), size=16, repeats=2)
    enrol_small(folder)
    return Scorer.load(folder)


def test_a_look_is_what_the_scorer_says_and_neighbours_change_nothing(scorer: Scorer) -> None:
    images, seeds = [gray_image(n) for n in range(5)], small_seeds(5)
    ticks: list[int] = []
    seen = look(scorer, images, seeds, batch=2, tick=ticks.append)
    assert (len(seen), ticks) == (5, [2, 2, 1])
    assert seen.draws == scorer.noise.ladder()
    prepared = scorer.prepare(images)
    assert torch.equal(seen.pixels, prepared.pixels)
    assert np.allclose(seen.log_odds, scorer.answer(prepared.pixels).log_odds, atol=1e-5)
    evidence, votes = scorer.look(prepared, seeds, scorer.noise.ladder())
    for ours, theirs, vote in zip(seen.evidence, evidence, votes, strict=True):
        assert np.allclose(ours.seen.noisy, theirs.seen.noisy, atol=1e-4)
        assert ours.distances is not None
        assert vote is not None
        assert ours.guard_share == vote.first_share
    alone = look(scorer, images[3:4], seeds[3:4])
    assert np.allclose(alone.evidence[0].seen.noisy, seen.evidence[3].seen.noisy, atol=1e-4)
    assert np.allclose(alone.features, seen.features[3:4], atol=1e-4)
    assert not seen.pixels.is_inference()


def test_a_look_without_noise_asks_each_image_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answer = scorer.answer
    monkeypatch.setattr(scorer, "answer", lambda pixels: (asked.append(len(pixels)), answer(pixels))[1])
    seen = look(scorer, [gray_image(n) for n in range(5)], small_seeds(5), (), batch=3)
    assert (asked, seen.draws) == ([3, 2], ())
    assert [one.seen.noisy.shape for one in seen.evidence] == [(0, 1, 2)] * 5
    assert all(np.array_equal(one.seen.clean, odds) for one, odds in zip(seen.evidence, seen.log_odds, strict=True))


def test_looking_needs_images_and_a_seed_for_each(scorer: Scorer) -> None:
    with pytest.raises(DicomguardError, match="no images"):
        look(scorer, [], [])
    with pytest.raises(ValueError, match="2 images need as many seeds"):
        look(scorer, [gray_image(0), gray_image(1)], small_seeds(1))


@pytest.mark.parametrize("options", [{}, {"distances": True, "guard": 0.9}], ids=["bare", "enrolled"])
def test_what_was_saved_is_read_again(tmp_path: Path, options: dict[str, float]) -> None:
    before = sight(1, 7, **options)
    path = tmp_path / "clean.npz"
    before.save(path)
    after = load(path)
    assert [one.name for one in tmp_path.iterdir()] == ["clean.npz"]
    assert torch.equal(after.pixels, before.pixels)
    assert np.array_equal(after.log_odds, before.log_odds)
    assert np.array_equal(after.features, before.features)
    assert after.draws == LADDER
    for ours, theirs in zip(after.evidence, before.evidence, strict=True):
        assert np.array_equal(ours.seen.noisy, theirs.seen.noisy)
        assert (ours.distances is None) == (theirs.distances is None) == (not options)
        assert ours.guard_share == theirs.guard_share


def test_a_cut_off_absent_or_foreign_file_is_no_sight(tmp_path: Path) -> None:
    path = tmp_path / "clean.npz"
    with pytest.raises(DicomguardError, match="cannot be read"):
        load(path)
    sight(1, 3).save(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"PK\x03\x04"):
        path.write_bytes(data)
        with pytest.raises(DicomguardError, match="Delete it"):
            load(path)
    np.savez(path, pixels=np.zeros(3))
    with pytest.raises(DicomguardError, match="has no format"):
        load(path)
    with path.open("wb") as file:
        np.savez(file, format=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DicomguardError, match="allow_pickle"):
        load(path)


def test_saving_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clean.npz"
    sight(1, 3).save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(sights.np, "savez", full)
    with pytest.raises(DicomguardError, match="no space left"):
        sight(2, 3).save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["clean.npz"]
    with pytest.raises(DicomguardError, match="cannot be written"):
        sight(2, 3).save(tmp_path / "absent" / "clean.npz")


def test_files_are_chosen_by_place_or_by_truth_value() -> None:
    whole = sight(3, 6, distances=True, guard=0.9)
    chosen = whole.only([4, 1, 1])
    assert np.array_equal(chosen.log_odds, whole.log_odds[[4, 1, 1]])
    assert torch.equal(chosen.pixels[0], whole.pixels[4])
    assert chosen.evidence[1] is chosen.evidence[2] is whole.evidence[1]
    mask = np.arange(6) % 3 == 0
    assert np.array_equal(whole.only(mask).features, whole.features[[0, 3]])
    assert len(whole.only(np.zeros(6, bool))) == 0
    assert len(whole.only([])) == 0
    with pytest.raises(ValueError, match="as many truth values"):
        whole.only([True])


def test_sights_are_joined_in_order_and_only_of_one_victim() -> None:
    first, second = sight(1, 3), sight(2, 4)
    both = joined([first, first.only([]), second])
    assert np.array_equal(both.features, np.concatenate([first.features, second.features]))
    assert both.evidence == (*first.evidence, *second.evidence)
    with pytest.raises(ValueError, match="different victims"):
        joined([first, sight(3, 2, width=9)])
    with pytest.raises(ValueError, match="distances"):
        joined([first, sight(3, 2, distances=True)])
    with pytest.raises(ValueError, match="no sight"):
        joined([])


def test_parts_that_do_not_belong_together_are_refused() -> None:
    one = sight(1, 3)
    with pytest.raises(ValueError, match="do not fit"):
        Sight(one.pixels, one.log_odds[:2], one.features, one.evidence)
    shorter = replace(one.evidence[0], seen=one.evidence[0].seen.only(LADDER[:2]))
    with pytest.raises(ValueError, match="same draws"):
        Sight(one.pixels, one.log_odds, one.features, (*one.evidence[:2], shorter))
