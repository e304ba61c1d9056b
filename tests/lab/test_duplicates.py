from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from dicomguard.lab.datasets import Example, Split, read_csv
from dicomguard.lab.duplicates import Likeness, components, likeness, pairs, regrouped, signatures
from dicomguard.lab.recipes import RECIPES


def picture(seed: int, side: int = 96) -> np.ndarray:
    """Bright blobs on black, a different arrangement for each seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    total = np.zeros((side, side))
    for _ in range(7):
        row, column = rng.uniform(0.15, 0.85, 2)
        width = rng.uniform(0.04, 0.15)
        total += rng.uniform(0.3, 1) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    return (total / total.max() * 255).astype(np.uint8)


COPIES = {
    "the same": lambda p: p,
    "mirrored left to right": lambda p: p[:, ::-1],
    "mirrored top to bottom": lambda p: p[::-1],
    "turned by 180 degrees": lambda p: p[::-1, ::-1],
    "darker": lambda p: p // 2,
    "more contrast": lambda p: (255 * (p / 255) ** 1.3).astype(np.uint8),
    "scaled": lambda p: np.asarray(PIL.Image.fromarray(p).resize((140, 140))),
    "noisy": lambda p: np.clip(p + np.random.default_rng(0).normal(0, 15, p.shape), 0, 255).astype(np.uint8),
}


def joined(*pictures: np.ndarray) -> bool:
    found = pairs(signatures([np.ascontiguousarray(p) for p in pictures]), Likeness())
    return found.tolist() == [[0, 1]]


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_is_found(seed: int, copy) -> None:
    assert joined(picture(seed), copy(picture(seed)))


def test_other_pictures_are_not() -> None:
    assert pairs(signatures([picture(seed) for seed in range(60)]), Likeness()).tolist() == []


def test_a_picture_of_one_gray_is_joined_to_nothing() -> None:
    flat = np.full((50, 50), 7, np.uint8)
    assert not joined(flat, flat)
    assert not joined(flat, picture(0))


def test_every_pair_is_found_once_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomguard.lab.duplicates._ROWS", 4)
    pictures = [picture(index % 6) for index in range(18)]
    found = pairs(signatures(pictures), Likeness())
    expected = {(i, j) for i in range(18) for j in range(i + 1, 18) if i % 6 == j % 6}
    assert len(found) == len(expected) == 18
    assert {(int(i), int(j)) for i, j in found} == expected


def test_frequencies_are_the_dct_and_mirrors_need_no_new_one() -> None:
    one = picture(3)
    found = signatures([one, np.ascontiguousarray(one[:, ::-1])])
    reference = dctn(found.copies[0], type=2)[:8, :8] / 4
    np.testing.assert_allclose(found.frequencies[0], reference, rtol=1e-4, atol=0.05)
    same_way, mirrored, *_ = likeness(signatures([one]), found)
    assert same_way[0][0, 0] == mirrored[0][0, 1] == 0
    assert same_way[1][0, 0] == pytest.approx(1, abs=1e-5)
    assert mirrored[1][0, 1] == pytest.approx(1, abs=1e-5)


@given(st.integers(1, 25).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
@settings(deadline=None)
def test_components_are_what_walking_the_pairs_reaches(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    count, links = drawn
    found = components(count, np.array(links, np.int64).reshape(-1, 2))
    beside: dict[int, set[int]] = defaultdict(set)
    for i, j in links:
        beside[i].add(j)
        beside[j].add(i)
    for item in range(count):
        reached, ahead = {item}, [item]
        while ahead:
            new = beside[ahead.pop()] - reached
            reached |= new
            ahead += new
        assert found[item] == min(reached)


def test_groups_take_the_first_name_and_groups_of_the_table_stay_together(tmp_path: Path) -> None:
    def example(name: str, group: str, seed: int) -> Example:
        PIL.Image.fromarray(picture(seed)).save(tmp_path / name)
        return Example(tmp_path / name, "any", group)

    # b and d show the same; d and c belong to one patient of the table; a stands alone.
    examples = [example("d.png", "p", 1), example("c.png", "p", 2), example("b.png", "b", 1), example("a.png", "a", 3)]
    assert [e.group for e in regrouped(examples)] == ["b", "b", "b", "a"]
    assert {e.path: e.group for e in regrouped(examples[::-1])} == {e.path: e.group for e in regrouped(examples)}
    assert [e.path for e in regrouped(examples)] == [e.path for e in examples]


@pytest.mark.data
@pytest.mark.slow
def test_brain_slices_form_small_groups_of_one_truth_that_no_two_splits_share(data_dir: Path) -> None:
    recipe = RECIPES["brain-mri"]
    cases = {split: recipe.cases(data_dir, split) for split in Split}
    groups = {split: {case.group for case in part} for split, part in cases.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 1894
    for split in (Split.VALIDATION, Split.CALIBRATION, Split.TEST):
        assert len(cases[split]) == len(groups[split])
        assert sum(not case.truth for case in cases[split]) > 15
    truths = defaultdict(set)
    for part in cases.values():
        for case in part:
            truths[case.group].add(case.truth)
    assert all(len(found) == 1 for found in truths.values())
    assert max(Counter(case.group for case in cases[Split.TRAIN]).values()) < 70  # no chain of look-alikes
    assert [case.truth for case in cases[Split.VALIDATION][:6]] == [0, 1] * 3
    assert len(read_csv(data_dir / "brain_mri.csv")) == 5312
