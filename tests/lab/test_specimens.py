"""Specimens are made of a small network on small phantoms: what is tried, kept and found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dicomguard import phantom
from dicomguard.lab import specimens
from dicomguard.lab.cases import Case
from dicomguard.lab.specimens import Specimens
from dicomguard.lab.stored import read
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import enrol_small, write_small

ATTACK = "PGD 0.016"


def case(seed: int, truth: int) -> Case:
    return Case(f"p{seed}", truth, str(seed), lambda _bits: phantom.make(seed, opacity=False, rows=64, columns=64))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    torch.set_num_threads(1)
    folder = write_small(tmp_path_factory.mktemp("specimens"), size=16, repeats=2)
    images = [read(case(100 + n, 0).make(12))[0] for n in range(60)]
    enrol_small(folder, images=images)
    return Scorer.load(folder)


@pytest.fixture(scope="module")
def cases(scorer: Scorer) -> list[Case]:
    """Six files that are answered rightly, and two that are not."""
    answers = scorer.answer(scorer.prepare([read(case(n, 0).make(12))[0] for n in range(8)]).pixels).log_odds
    right = [int(row.argmax(-1)[0]) for row in answers]
    return [case(n, right[n] if n < 6 else 1 - right[n]) for n in range(8)]


def test_clean_files_are_looked_at_once(scorer: Scorer, cases: list[Case], tmp_path: Path) -> None:
    ticks: list[str] = []
    made = Specimens(scorer, 12, tmp_path, ticks.append)
    made.look_at_clean(cases[:5])
    made.look_at_clean(cases)
    assert ticks == ["clean files"] * 8
    found = made.found("clean", cases)
    assert [one.key for one in found] == [c.key for c in cases]
    assert [one.evidence.seen.answer == (one.truth,) for one in found] == [True] * 6 + [False] * 2
    assert all(one.evidence.seen.draws == scorer.noise.ladder() for one in found)
    assert all(one.outcome in {"CERTIFIED", "DISAGREE", "UNCERTIFIED"} for one in found)
    again = Specimens(scorer, 12, tmp_path, ticks.append)
    again.look_at_clean(cases)
    assert len(ticks) == 8
    assert [one.evidence.guard_share for one in again.found("clean", cases)] == [o.evidence.guard_share for o in found]
    assert [one.key for one in again.found("clean", cases[::-1])] == [c.key for c in cases[::-1]]


def test_attacked_files_count_where_they_flip_as_files(scorer: Scorer, cases: list[Case], tmp_path: Path) -> None:
    ticks: list[str] = []
    made = Specimens(scorer, 12, tmp_path, ticks.append)
    made.attack(ATTACK, cases, 100)
    found = made.found(ATTACK, cases)
    assert found
    assert ticks == [ATTACK] * len(found)
    for one in found:
        assert one.evidence.seen.answer != (one.truth,)
    tried, flipped = made.tried(ATTACK, cases)
    assert tried == 6  # wrong answers are not attacked
    assert len(found) <= flipped <= tried
    before = [one.evidence.seen.clean for one in found]
    made.attack(ATTACK, cases, 100)
    assert len(ticks) == len(found)
    assert all(np.array_equal(a, b.evidence.seen.clean) for a, b in zip(before, made.found(ATTACK, cases), strict=True))


def test_no_more_files_are_attacked_than_wanted(scorer: Scorer, cases: list[Case], tmp_path: Path) -> None:
    made = Specimens(scorer, 12, tmp_path, lambda _: None)
    made.attack(ATTACK, cases, 0)
    assert made.tried(ATTACK, cases) == (0, 0)


@pytest.mark.parametrize(("name", "other"), [("enrolment_sha256", "f" * 64), ("path", "bfloat16 on cuda")])
def test_results_belong_to_one_enrolment_and_one_path(
    scorer: Scorer, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: str
) -> None:
    Specimens(scorer, 12, tmp_path, lambda _: None).look_at_clean(cases[:2])
    assert Specimens(scorer, 12, tmp_path, lambda _: None).found("clean", cases) != []
    monkeypatch.setattr(scorer, name, other)
    assert Specimens(scorer, 12, tmp_path, lambda _: None).found("clean", cases) == []


def test_attacked_files_belong_to_the_source_that_made_them(
    scorer: Scorer, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Specimens(scorer, 12, tmp_path, lambda _: None)
    made.look_at_clean(cases[:1])
    made.attack(ATTACK, cases[:2], 2)
    assert Specimens(scorer, 12, tmp_path, lambda _: None).tried(ATTACK, cases)[0] == 2
    monkeypatch.setattr(specimens, "source_digest", lambda *_: "another")
    assert Specimens(scorer, 12, tmp_path, lambda _: None).tried(ATTACK, cases) == (0, 0)
    assert len(Specimens(scorer, 12, tmp_path, lambda _: None).found("clean", cases)) == 1


def test_another_enrolment_meets_the_same_attacked_files(
    scorer: Scorer, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Specimens(scorer, 12, tmp_path, lambda _: None)
    made.attack(ATTACK, cases, 100)
    monkeypatch.setattr(scorer, "enrolment_sha256", "f" * 64)
    monkeypatch.setattr(specimens, "SUITE", {})  # a new attack would raise
    again = Specimens(scorer, 12, tmp_path, lambda _: None)
    again.attack(ATTACK, cases, 100)
    assert again.tried(ATTACK, cases) == made.tried(ATTACK, cases)
    for one, other in zip(again.found(ATTACK, cases), made.found(ATTACK, cases), strict=True):
        assert np.array_equal(one.evidence.seen.noisy, other.evidence.seen.noisy)
