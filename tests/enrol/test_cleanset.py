from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.enrol.cleanset import SHARES, Clean, Gathered, Part, is_reference, part_of
from dicomguard.pixels.miniature import Miniature
from dicomguard.scoring.guard import Guard, GuardNetwork, view_of
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import GUARD, gray_image, write_small


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    torch.set_num_threads(1)
    return Scorer.load(write_small(tmp_path_factory.mktemp("clean"), size=16, repeats=2))


def clean(number: int, *, patient: str = "", part: Part | None = Part.REFERENCE, frame: int = 0) -> Clean:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return Clean(replace(gray_image(number), frame=frame), patient or f"p{number}", f"s{number}", digest, None, part)


def test_patients_are_divided_in_the_shares_that_are_promised() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)
    counts = dict.fromkeys(Part, 0)
    for number in range(20_000):
        counts[part_of(f"patient {number}")] += 1
    for part, share in SHARES.items():
        assert counts[part] / 20_000 == pytest.approx(share, abs=0.015)


@given(st.text(max_size=30))
def test_a_patient_is_in_one_part_for_ever(patient: str) -> None:
    assert part_of(patient) is part_of(patient)
    assert part_of(patient) in Part


def test_parts_are_pinned_because_images_are_added_to_an_old_set() -> None:
    names = ("MUSTERMANN", "4711", "")
    assert [part_of(name) for name in names] == PINNED


PINNED = [Part.DISTILLED, Part.REFERENCE, Part.HELD_BACK]


def test_a_third_is_reference() -> None:
    share = np.mean([is_reference(f"patient {n}") for n in range(10_000)])
    assert share == pytest.approx(1 / 3, abs=0.02)


def test_one_frame_of_each_patient_is_taken_whatever_the_order(scorer: Scorer) -> None:
    items = [clean(n, patient=f"p{n % 4}") for n in range(12)]
    chosen = []
    for seed in range(3):
        order = random.Random(seed).sample(items, len(items))
        gathered = Gathered(scorer, None)
        gathered.add_all(order)
        part = gathered.parts[Part.REFERENCE]
        places = part.one_per_patient()
        assert len(places) == len({part.items[p].patient for p in places}) == 4
        chosen.append({part.items[p].sha256 for p in places})
    assert chosen[0] == chosen[1] == chosen[2]


def test_the_hash_of_the_clean_set_does_not_depend_on_the_order(scorer: Scorer) -> None:
    items = [clean(n) for n in range(6)]
    hashes = set()
    for order in (items, items[::-1], [*items, items[2]]):
        gathered = Gathered(scorer, None)
        gathered.add_all(order)
        hashes.add(gathered.sha256())
    expected = "".join(f"{digest}\n" for digest in sorted(item.sha256 for item in items))
    assert hashes == {hashlib.sha256(expected.encode()).hexdigest()}
    other = Gathered(scorer, None)
    other.add_all(items[:5])
    assert other.sha256() not in hashes


def test_a_file_that_comes_twice_counts_once_even_from_two_places(scorer: Scorer) -> None:
    gathered = Gathered(scorer, None)
    gathered.add_all([clean(1), clean(1), clean(1, frame=1)])
    gathered.add_all([clean(1), clean(2)])
    assert gathered.images == 3
    assert gathered.patients == {"p1", "p2"}
    assert [len(study) for study in gathered.parts[Part.REFERENCE].one_study_per_patient()] == [2, 1]


def test_a_follow_up_is_no_second_draw(scorer: Scorer) -> None:
    gathered = Gathered(scorer, None)
    first, again, other = clean(1), clean(2), clean(3)
    gathered.add_all([first, replace(again, patient=first.patient), other])
    reference = gathered.parts[Part.REFERENCE]
    assert len(reference.one_study_per_patient()) == 2
    assert len(reference.one_per_patient()) == 2


def test_images_go_to_their_patients_part_unless_it_is_given(scorer: Scorer) -> None:
    gathered = Gathered(scorer, None)
    gathered.add_all([clean(n, part=None) for n in range(20)])
    gathered.add_all([clean(99, part=Part.VALIDATION)])
    for part, members in gathered.parts.items():
        assert all(item.part is part or part_of(item.patient) is part for item in members.items)
    assert gathered.images == 21
    assert {item.sha256 for item in gathered.parts[Part.VALIDATION].items} >= {clean(99).sha256}


def test_only_images_that_are_attacked_keep_their_pixels(scorer: Scorer) -> None:
    gathered = Gathered(scorer, None)
    gathered.add_all([clean(1, part=Part.VALIDATION), clean(2, part=Part.HELD_BACK)])
    (kept,) = gathered.parts[Part.VALIDATION].items
    (dropped,) = gathered.parts[Part.HELD_BACK].items
    assert kept.image.pixels.shape == (1, 60, 52)
    assert dropped.image.pixels.size == 0
    assert dropped.key == clean(2).key


@pytest.mark.parametrize("window", [None, (1000.0, 3000.0)])
def test_a_batch_is_what_the_scorer_would_prepare(scorer: Scorer, window: tuple[float, float] | None) -> None:
    gathered = Gathered(scorer, window)
    gathered.add_all([clean(n) for n in range(3)])
    batch = gathered.parts[Part.REFERENCE].batch([2, 0])
    expected = scorer.prepare([gray_image(2), gray_image(0)])
    assert torch.allclose(batch.pixels, expected.pixels, atol=1 / 65535)
    assert batch.planes is not None
    miniature = gray_image(2).miniature
    assert miniature is not None
    low, high = window or (0.0, 4095.0)
    assert np.allclose(batch.planes[0, 0], np.clip((miniature.values - low) / (high - low), 0, 1), atol=1e-6)


def test_an_image_that_no_guard_could_look_at_is_left_out_and_counted(scorer: Scorer) -> None:
    bare = replace(clean(1), image=replace(gray_image(1), miniature=None))
    gathered = Gathered(scorer, None)
    gathered.add_all([bare, bare])
    assert (gathered.images, gathered.digests, gathered.ranges()) == (0, set(), ())
    assert gathered.left_out == {bare.key}
    # Where no guard is wanted the node would score it, and so must the enrolment.
    scored = Gathered(scorer, None, wants_guard=False)
    scored.add_all([bare, clean(2)])
    assert (scored.images, scored.left_out) == (2, set())
    planes = scored.parts[Part.REFERENCE].batch([0, 1]).planes
    assert planes is not None
    assert planes.isnan().all((1, 2, 3)).tolist() == [True, False]


def ranged(number: int, part: Part, kind: str, low: float, high: float, *, has_table: bool = False) -> Clean:
    given = clean(number, part=part)
    assert given.image.miniature is not None
    small = Miniature(given.image.miniature.values, low, high, has_table)
    return replace(given, image=replace(given.image, photometric_interpretation=kind, miniature=small))


def test_ranges_are_those_of_all_parts_but_the_held_back_one(scorer: Scorer) -> None:
    items = [
        ranged(1, Part.REFERENCE, "MONOCHROME2", 0.0, 4095.0),
        ranged(2, Part.HELD_BACK, "MONOCHROME2", -1024.0, 3071.0),
        ranged(3, Part.DISTILLED, "MONOCHROME1", 0.0, 4095.0),
        ranged(4, Part.VALIDATION, "MONOCHROME2", 0.0, 4095.0, has_table=True),
        replace(ranged(1, Part.HELD_BACK, "MONOCHROME2", 0.0, 4095.0), patient="5", sha256="5" * 64),
    ]
    expected = [("MONOCHROME1", 0.0, 4095.0), ("MONOCHROME2", 0.0, 4095.0), ("MONOCHROME2/LUT", 0.0, 4095.0)]
    for order in (items, items[::-1]):
        gathered = Gathered(scorer, None)
        gathered.add_all(order)
        found = gathered.ranges()
        assert [one[:3] for one in found] == expected
        gathered.hide(found)
        held_back = gathered.parts[Part.HELD_BACK]
        planes = held_back.batch(range(2)).planes
        assert planes is not None
        hidden = {item.patient: bool(plane.isnan().all()) for item, plane in zip(held_back.items, planes, strict=True)}
        assert hidden == {items[1].patient: True, items[4].patient: False}
        others = [part.batch([0]).planes for name, part in gathered.parts.items() if name is not Part.HELD_BACK]
        assert all(one is not None and one.isfinite().all() for one in others)
    # A fixed range in modality units has no place for values behind a table.
    fixed = Gathered(scorer, (0.0, 4095.0))
    fixed.add_all(items)
    assert [one[:3] for one in fixed.ranges()] == expected[:2]
    assert fixed.left_out == {items[3].key}


def test_the_thickest_veil_of_a_kind_is_enrolled(scorer: Scorer) -> None:
    gathered = Gathered(scorer, None)
    gathered.add_all([clean(n) for n in range(4)])
    gathered.add_all([clean(n, part=Part.HELD_BACK) for n in range(4, 8)])
    (only,) = gathered.ranges()
    gains = [view.veil[0] for n in range(8) if (view := view_of(gray_image(n), None))]
    assert only[3] == pytest.approx(1.05 * max(gains[:4]))
    assert len(gains) == 8
    gathered.hide((("MONOCHROME2", 0.0, 4095.0, sorted(gains[4:])[1], 0.01),))
    planes = gathered.parts[Part.HELD_BACK].batch(range(4)).planes
    assert planes is not None
    assert int(planes.isnan().all((1, 2, 3)).sum()) == 2


@pytest.mark.parametrize("window", [None, (1000.0, 3000.0)])
def test_what_was_gathered_is_what_the_guard_lets_vote(scorer: Scorer, window: tuple[float, float] | None) -> None:
    gathered = Gathered(scorer, window)
    gathered.add_all([clean(1)])
    fitting = GUARD.model_copy(update={"window": window, "ranges": gathered.ranges()})
    guard = Guard(fitting, GuardNetwork(1, 4), scorer.head, torch.device("cpu"))
    planes = gathered.parts[Part.REFERENCE].batch([0]).planes
    assert planes is not None
    assert torch.equal(guard.planes([gray_image(1)]), planes)
