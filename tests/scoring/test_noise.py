from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dicomguard.scoring import noise

# The known-answer vectors of the Random123 library for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: str) -> None:
    result = noise.philox(np.array([counter], np.uint32), key)
    assert " ".join(f"{word:08x}" for word in result[0]) == expected


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=16, max_size=32), min_size=1, max_size=3),
    st.integers(1, 200),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=3),
)
def test_both_implementations_draw_the_same_bits(seeds: list[bytes], count: int, streams: list[int]) -> None:
    fast = noise.uniform(seeds, streams, (count,))
    other = noise._uniform_torch(seeds, streams, count, torch.device("cpu"))
    assert fast.shape == (len(seeds), len(streams), count)
    assert torch.equal(fast.flatten(0, 1), other)


def test_a_stream_does_not_depend_on_its_neighbours_or_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = bytes(range(32))
    together = noise.uniform([bytes(32), seed], [3, 7, 11], (2, 5, 5))
    assert torch.equal(together[1, 1], noise.uniform([seed], [7], (2, 5, 5))[0, 0])
    monkeypatch.setattr(noise, "_BLOCK", 3)
    assert torch.equal(together, noise.uniform([bytes(32), seed], [3, 7, 11], (2, 5, 5)))


def test_noise_is_uniform_on_the_half_open_interval() -> None:
    (drawn,) = noise.uniform([bytes(16)], range(4), (100, 100)).double()
    assert drawn.min() >= -1
    assert drawn.max() < 1
    assert abs(float(drawn.mean())) < 0.01
    assert abs(float(drawn.var()) - 1 / 3) < 0.01
    assert abs(float(torch.corrcoef(drawn.reshape(4, -1))[0, 1])) < 0.03


FIELDS = {"sop_instance_uid": "1.2.3", "frame": 0, "sha256": "ab", "fingerprint": "cd", "purpose": "noise-check"}


@pytest.mark.parametrize(
    ("field", "other"),
    [("sop_instance_uid", "1.2.4"), ("frame", 1), ("sha256", "ac"), ("fingerprint", "ce"), ("purpose", "guard")],
)
def test_every_field_changes_the_seed(field: str, other: object) -> None:
    assert noise.seed(b"key", **FIELDS) != noise.seed(b"key", **{**FIELDS, field: other})


def test_the_site_key_changes_the_seed_and_fields_do_not_run_together() -> None:
    assert noise.seed(b"key", **FIELDS) != noise.seed(b"kez", **FIELDS)
    shifted = {**FIELDS, "sop_instance_uid": "1.2.30", "frame": 0}
    assert noise.seed(b"key", **shifted) != noise.seed(b"key", **{**FIELDS, "sop_instance_uid": "1.2.3", "frame": 0})
    assert noise.seed(b"k", "1", 23, "a", "b", "c") != noise.seed(b"k", "12", 3, "a", "b", "c")
    assert noise.seed(b"k", "1", 0, "ab", "", "c") != noise.seed(b"k", "1", 0, "a", "b", "c")


def test_the_seed_is_pinned_because_recorded_decisions_refer_to_it() -> None:
    assert noise.seed(b"key", **FIELDS).hex() == PINNED
    assert noise.seed(b"key", **{**FIELDS, "sha256": "AB"}).hex() == PINNED


PINNED = "9a1c1850d4ad510b0a7b642f910116191f67b93d7976b7f5eac10b9b85f0fd63"

PINNED_NORMAL = [-0.5040024, -0.2521226, -1.3243625]


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        noise.uniform([b"short"], [0], (4,))


# Normal numbers ------------------------------------------------------------------------------------------------------


def test_normal_numbers_follow_the_normal_law() -> None:
    drawn = noise.normal(bytes(range(32)), range(10), (200, 101)).double()
    assert drawn.shape == (10, 200, 101)
    count = drawn.numel()
    flat = drawn.flatten().numpy()
    assert abs(flat.mean()) < 4 / math.sqrt(count)
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((flat**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((flat**4).mean() - 3) < 4 * math.sqrt(96 / count)
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    # Both halves of the pairs, streams and neighbours are unrelated.
    rows = drawn.flatten(1)
    pairs = torch.stack([rows[:, :10_100].flatten(), rows[:, 10_100:].flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 4 / math.sqrt(count / 2)
    assert abs(float(torch.corrcoef(rows[:2])[0, 1])) < 4 / math.sqrt(20_200)


def test_a_normal_number_depends_on_its_seed_stream_and_place_alone() -> None:
    seed = bytes(range(32))
    together = noise.normal(seed, [3, 7, 11], (1, 6, 6))
    assert torch.equal(together, noise.normal(seed, [3, 7, 11], (1, 6, 6)))
    assert torch.equal(together[1], noise.normal(seed, [7], (1, 6, 6))[0])
    assert not torch.equal(together[1], noise.normal(bytes(32), [7], (1, 6, 6))[0])
    assert together.flatten()[:3].tolist() == pytest.approx(PINNED_NORMAL, abs=1e-6)


@pytest.mark.parametrize("value", [-1.0, -1.0 + 2.0**-23, 0.0, 1.0 - 2.0**-23])
def test_every_uniform_number_becomes_a_finite_normal_one(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(
        noise, "uniform", lambda _seeds, streams, shape, _device: torch.full((1, len(streams), *shape), value)
    )
    drawn = noise.normal(bytes(32), range(3), (40,))  # as many as vector instructions and the rest of a loop need
    assert drawn.isfinite().all()
    assert drawn.abs().max() < 5.9


def test_an_odd_count_and_an_empty_one() -> None:
    assert noise.normal(bytes(32), [0], (5,)).shape == (1, 5)
    assert noise.normal(bytes(32), [0, 1], (0,)).shape == (2, 0)


def test_seeds_of_one_frame_differ_by_purpose_and_say_which() -> None:
    both = noise.seeds(b"key", "1.2.3", 0, "ab", "cd")
    assert both.noise_check == noise.seed(b"key", **FIELDS)
    assert both.guard == noise.seed(b"key", **{**FIELDS, "purpose": noise.GUARD})
    assert both.guard != both.noise_check
