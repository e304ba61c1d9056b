"""The guard where all about it is known: a linear network, whose smoothed class and radius are closed formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import SIDE, Miniature, averaged
from dicomguard.pixels.reader import images
from dicomguard.scoring import guard as module
from dicomguard.scoring import head, noise
from dicomguard.scoring.guard import (
    Guard,
    GuardNetwork,
    GuardSettings,
    Outcome,
    Vote,
    looks_for,
    lower_bound,
    output_count,
    range_of,
    view_of,
)
from tests.pixels.conftest import build

BINARY = head.Head(head.HeadKind.SOFTMAX, ("normal", "opacity"))
CPU = torch.device("cpu")
RANGES = (("MONOCHROME2", 0.0, 4095.0, 2.0, 1.0),)
SETTINGS = GuardSettings(sigma=0.5, eps=0.004, alpha=1e-3, looks=(64, 400, 1200), ranges=RANGES)
SEED = bytes(range(32))


class Linear(nn.Module):
    """The logit w.x + bias with |w| = 1, in double whatever the guard computes in.

    Under noise sigma it is positive with probability Phi(logit / sigma), so the smoothed class is its sign and the
    certified radius is its size: no bound of smoothing is tighter on it.
    """

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, planes: Tensor) -> Tensor:
        return planes.double().sum((1, 2, 3)).div(SIDE).add(self.bias).unsqueeze(1)


class Scripted(Guard):
    """A guard whose answers are given beforehand."""

    def __init__(self, given: Sequence[int], guard_settings: GuardSettings = SETTINGS) -> None:
        super().__init__(guard_settings, GuardNetwork(1, 4), BINARY, CPU)
        self.given = given

    def answers(self, plane: Tensor, seed: bytes, start: int, stop: int) -> Tensor:
        return torch.tensor(self.given[start:stop]).unsqueeze(1)


SCRIPTED = Scripted(())


def linear(logit: float, guard_settings: GuardSettings = SETTINGS) -> tuple[Guard, Tensor]:
    """A guard and a plane on which its logit, without noise, is this."""
    plane = torch.rand((1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    network = Linear(logit - float(plane.double().sum()) / SIDE)
    return Guard(guard_settings, network, BINARY, CPU), plane  # type: ignore[arg-type] # as good as one


def image(stored: np.ndarray, low: float = 0.0, high: float = 4095.0) -> Image:
    small = Miniature(averaged(stored.astype(np.float32)), low, high)
    return Image(np.zeros((1, *stored.shape), np.float32), 0, 12, "MONOCHROME2", "none", None, small)


# Bounds --------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.floats(1e-7, 0.2), st.floats(0.5, 0.9999))
@settings(deadline=None)
def test_the_votes_needed_are_those_of_an_exact_binomial_test(draws: int, alpha: float, bar: float) -> None:
    needed = module._votes_needed(draws, alpha, bar)
    # P(votes or more | share = bar) < alpha, for the first time.
    tail = stats.binom.sf(np.arange(draws + 2) - 1, draws, bar)
    first = int(np.argmax(tail < alpha))
    assert abs(needed - first) <= int(np.isclose(tail, alpha, rtol=1e-6).any())


def test_the_bound_is_that_of_scipys_interval() -> None:
    for votes, draws in ((0, 10), (3, 10), (64, 64), (390, 400)):
        interval = stats.binomtest(votes, draws, alternative="greater").proportion_ci(0.999, method="exact")
        assert lower_bound(votes, draws, 1e-3) == pytest.approx(interval.low)


def test_the_bar_is_what_cohen_rosenfeld_and_kolter_ask_for() -> None:
    exact = stats.norm.cdf(SIDE * SETTINGS.eps / SETTINGS.sigma)
    assert exact < SETTINGS.bar() < exact + 1e-3


def test_each_look_spends_its_share_of_alpha() -> None:
    assert SETTINGS.needed() == tuple(module._votes_needed(n, 1e-3 / 3, SETTINGS.bar()) for n in (64, 400, 1200))
    one = GuardSettings(sigma=0.5, eps=0.004, alpha=1e-3, looks=(400,), ranges=RANGES)
    assert one.needed()[0] <= SETTINGS.needed()[1]


def test_all_looks_together_certify_falsely_no_more_often_than_alpha() -> None:
    """A share of votes that lies just at the bar must not be certified: by simulation, with a large alpha."""
    loose = SETTINGS.model_copy(update={"alpha": 0.2, "looks": (32, 100, 300)})
    rng = np.random.default_rng(0)
    needed = np.array(loose.needed())
    votes = (rng.random((20_000, 300)) < loose.bar()).cumsum(1)[:, np.array(loose.looks) - 1]
    rate = (votes >= needed).any(1).mean()
    assert 0.05 < rate <= 0.2


def test_a_bar_of_one_is_never_reached() -> None:
    impossible = GuardSettings(sigma=0.05, eps=0.25, alpha=0.5, looks=(16, 32), ranges=RANGES)
    assert impossible.bar() >= 1
    assert impossible.needed() == (17, 33)
    assert Scripted([1] * 32, impossible).vote(torch.zeros(1, 64, 64), (1,), SEED).outcome is Outcome.UNCERTIFIED
    assert looks_for(0.25, 0.05) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"looks": (1, 2, 3, 4)},
        {"looks": ()},
        {"looks": (64, 64)},
        {"looks": (400, 64)},
        {"looks": (0,)},
        {"window": (1.0, 1.0)},
        {"sigma": 0.0},
        {"eps": 0.0},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"sgima": 1.0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GuardSettings.model_validate({**SETTINGS.model_dump(), **change})


@given(st.floats(0.0005, 0.02), st.floats(0.1, 1.5), st.floats(1e-9, 1e-2))
@example(0.0133, 0.26, 4e-4)  # as many draws as settings may hold
@settings(deadline=None)
def test_a_unanimous_first_look_certifies_and_one_vote_less_does_not(eps: float, sigma: float, alpha: float) -> None:
    looks = looks_for(eps, sigma, alpha)
    if looks:
        assert len(looks) == 3
        needed = GuardSettings(sigma=sigma, eps=eps, alpha=alpha, looks=looks, ranges=RANGES).needed()
        assert needed[0] <= looks[0]
        assert needed[2] < looks[2]


# The vote ------------------------------------------------------------------------------------------------------------


def test_a_linear_guard_certifies_exactly_what_its_radius_covers() -> None:
    reach = SIDE * SETTINGS.eps
    for logit, answer in ((reach + 4 * SETTINGS.sigma, 1), (-reach - 4 * SETTINGS.sigma, 0)):
        guard, plane = linear(logit)
        vote = guard.vote(plane, (answer,), SEED)
        assert (vote.outcome, vote.majority) == (Outcome.CERTIFIED, (answer,))
        # The strongest change within eps leaves the smoothed class as it is: that is what was promised.
        worst = plane - SETTINGS.eps * (1 if answer else -1)
        shifted = float(guard.logits(worst.unsqueeze(0))[0, 0, 1])
        assert (shifted > 0) == (answer == 1)


def test_votes_are_as_frequent_as_the_normal_law_says() -> None:
    for logit in (-0.3, 0.0, 0.25, 0.7):
        guard, plane = linear(logit)
        share = float((guard.answers(plane, SEED, 0, 800) == 1).float().mean())
        expected = stats.norm.cdf(logit / SETTINGS.sigma)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 800))


def test_a_radius_that_is_too_small_is_not_certified() -> None:
    """The smoothed class is right, but a change of eps would turn it: no noise may certify it, but for alpha."""
    short = SETTINGS.model_copy(update={"looks": (64, 160)})
    guard, plane = linear(SIDE * SETTINGS.eps * 0.98, short)
    votes = [guard.vote(plane, (1,), bytes([n]) * 32) for n in range(20)]
    assert {vote.outcome for vote in votes} == {Outcome.UNCERTIFIED}
    assert {vote.majority for vote in votes} == {(1,)}


def test_another_answer_than_the_protected_models_is_disagreement() -> None:
    guard, plane = linear(2.0)
    vote = guard.vote(plane, (0,), SEED)
    assert (vote.outcome, vote.majority, vote.votes) == (Outcome.DISAGREE, (1,), 0)
    assert vote.first_share == 0


@given(st.floats(0.4, 1), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_a_vote_is_certified_only_at_a_look_that_has_the_votes(share: float, seed: int) -> None:
    given_answers = (np.random.default_rng(seed).random(1200) < share).astype(int).tolist()
    SCRIPTED.given = given_answers
    vote = SCRIPTED.vote(torch.zeros(1, 64, 64), (1,), SEED)
    assert vote.draws in SETTINGS.looks
    look = SETTINGS.looks.index(vote.draws)
    assert vote.votes == sum(given_answers[: vote.draws])
    assert vote.first_share == sum(given_answers[:64]) / 64
    assert (vote.outcome is Outcome.CERTIFIED) == (vote.votes >= SETTINGS.needed()[look])
    for before in range(look):
        assert sum(given_answers[: SETTINGS.looks[before]]) < SETTINGS.needed()[before]
    if vote.outcome is not Outcome.CERTIFIED:
        assert (vote.outcome is Outcome.DISAGREE) == (vote.majority != (1,))


def test_giving_up_early_costs_no_certificate_that_was_likely() -> None:
    """What is given up would have been certified in few of many cases, and never is it certified."""
    rng = np.random.default_rng(3)
    lost = certified = 0
    for _ in range(200):
        given_answers = (rng.random(1200) < SETTINGS.needed()[2] / 1200 + 0.01).astype(int).tolist()
        SCRIPTED.given = given_answers
        vote = SCRIPTED.vote(torch.zeros(1, 64, 64), (1,), SEED)
        whole = any(sum(given_answers[:n]) >= k for n, k in zip(SETTINGS.looks, SETTINGS.needed(), strict=True))
        certified += vote.outcome is Outcome.CERTIFIED
        lost += whole and vote.outcome is not Outcome.CERTIFIED
        assert whole or vote.outcome is not Outcome.CERTIFIED
    assert certified > 100
    assert lost <= 4


def test_a_hopeless_vote_ends_after_the_first_look() -> None:
    vote = Scripted([0, 1] * 600).vote(torch.zeros(1, 64, 64), (1,), SEED)
    assert (vote.draws, vote.votes) == (64, 32)
    assert vote.majority == (0,)  # of equals the first


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_plane_that_is_no_picture_gets_no_vote(value: float) -> None:
    guard, plane = linear(9.0)
    plane[0, 3, 3] = value
    vote = guard.vote(plane, (1,), SEED)
    assert (vote.votes, vote.draws, vote.outcome) == (0, 0, Outcome.UNENROLLED)
    assert math.isnan(vote.first_share)


# Noise ---------------------------------------------------------------------------------------------------------------


def test_the_noise_knows_nothing_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[bytes, list[int], tuple[int, ...]]] = []
    normal = noise.normal

    def spy(seed: bytes, streams: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
        drawn.append((seed, list(streams), shape))
        return normal(seed, streams, shape, device)

    monkeypatch.setattr(noise, "normal", spy)
    guard, plane = linear(0.1)
    guard.answers(plane, SEED, 0, 200)
    first, drawn[:] = list(drawn), []
    guard.answers(1 - plane, SEED, 0, 200)
    assert drawn == first
    assert [n for _, streams, _ in drawn for n in streams] == list(range(200))


def test_answers_do_not_depend_on_chunks_or_on_where_a_look_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, plane = linear(0.1)
    whole = guard.answers(plane, SEED, 0, 150)
    assert torch.equal(torch.cat([guard.answers(plane, SEED, 0, 64), guard.answers(plane, SEED, 64, 150)]), whole)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert torch.equal(guard.answers(plane, SEED, 0, 150), whole)
    assert not torch.equal(guard.answers(plane, bytes(32), 0, 150), whole)


# Planes --------------------------------------------------------------------------------------------------------------


@given(st.integers(8, 150), st.integers(8, 150), st.floats(0.0005, 0.05), st.booleans(), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_a_change_within_eps_moves_the_plane_within_eps(
    rows: int, columns: int, eps: float, is_windowed: bool, seed: int
) -> None:
    window = (500.0, 3000.0) if is_windowed else None
    low, high = window or (0.0, 4095.0)
    rng = np.random.default_rng(seed)
    stored = rng.uniform(-200, 4300, (rows, columns))
    change = rng.choice([-1, 1], stored.shape) * eps * (high - low)
    guard = Guard(SETTINGS.model_copy(update={"window": window}), GuardNetwork(1, 4), BINARY, CPU)
    before, after = guard.planes([image(stored), image(stored + change)])
    assert float((before - after).abs().max()) <= eps + 1e-5
    assert float((before - after).norm()) <= SIDE * eps + 1e-3  # the slack that the bar pays for
    assert 0 <= float(before.min()) <= float(before.max()) <= 1


def test_a_fixed_window_clips_and_the_headers_own_range_does_not_matter() -> None:
    fixed = {"window": (-100.0, 300.0), "ranges": (("MONOCHROME2", -32768.0, 32767.0, 200.0, 1.0),)}
    guard = Guard(SETTINGS.model_copy(update=fixed), GuardNetwork(1, 4), BINARY, CPU)
    stored = np.full((64, 64), 100.0)
    stored[0, 0], stored[0, 1] = -5000, 5000
    (plane,) = guard.planes([image(stored, low=-32768, high=32767)])
    assert plane.shape == (1, 64, 64)
    assert [float(plane[0, 0, c]) for c in range(3)] == pytest.approx([0, 1, 0.5])


def test_no_images_are_no_planes() -> None:
    assert Guard(SETTINGS, GuardNetwork(1, 4), BINARY, CPU).planes([]).shape == (0, 1, 64, 64)


# Ranges --------------------------------------------------------------------------------------------------------------


def read(stored: np.ndarray, **header: Any) -> Image:
    """The image that the node reads, under a header; the window is in stored units and never changes."""
    (found,) = images(build(stored, WindowCenter="2048", WindowWidth="4096", **header))
    return found


def veil(image: Image, window: tuple[float, float] | None) -> tuple[float, float]:
    found = view_of(image, window)
    assert found is not None
    return found.veil


STORED = np.random.default_rng(0).integers(0, 4096, (80, 70))
PLAIN = read(STORED)


def certifying(**changes: object) -> Guard:
    """A guard that certifies its one class of whatever has a plane: constant pictures above all."""
    return Guard(SETTINGS.model_copy(update=changes), Linear(9.0), BINARY, CPU)  # type: ignore[arg-type] # as good as one


@pytest.mark.parametrize(
    "header",
    [
        {"bits": 16},
        {"bits": 13},
        {"signed": True},
        {"photometric": "MONOCHROME1"},
        {"RescaleSlope": "0.001"},
        {"RescaleIntercept": "1"},
        {"RescaleSlope": "-1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [None, (0.0, 4095.0)])
def test_a_header_that_changes_the_range_gets_no_vote(
    header: dict[str, Any], window: tuple[float, float] | None
) -> None:
    guard = certifying(window=window)
    planes = guard.planes([PLAIN, read(STORED, **header), PLAIN])
    votes = [guard.vote(plane, (1,), SEED) for plane in planes]
    assert [vote.outcome for vote in votes] == [Outcome.CERTIFIED, Outcome.UNENROLLED, Outcome.CERTIFIED]
    assert (votes[1].votes, votes[1].draws, votes[1].majority) == (0, 0, (1,))
    assert math.isnan(votes[1].first_share)


def test_more_bits_stored_show_the_model_the_same_picture_and_the_guard_none() -> None:
    """The attack that ranges are for: with its range taken as it comes, the blanked image would be certified."""
    blanked = read(STORED, bits=16)
    np.testing.assert_allclose(blanked.pixels, PLAIN.pixels, atol=1e-6)
    trusting = certifying(ranges=(("MONOCHROME2", 0.0, 65535.0, 20.0, 0.0),))
    (plane,) = trusting.planes([blanked])
    assert float(plane.max()) < 1 / 16
    assert trusting.vote(plane, (1,), SEED).outcome is Outcome.CERTIFIED
    guard = certifying()
    assert guard.vote(guard.planes([blanked])[0], (1,), SEED).outcome is Outcome.UNENROLLED


DIM = np.random.default_rng(1).integers(0, 256, (8, 8)).repeat(10, 0).repeat(9, 1)  # shadows and lights, not noise


@pytest.mark.parametrize("patch", [0.0, 0.04, 0.2])
def test_a_picture_that_only_a_window_brings_out_gets_no_vote(patch: float) -> None:
    """8 bits in a header of 12, which the site has as well: the model sees the same picture, the guard a sixteenth."""
    eight = images(build(DIM, bits=8, allocated=8, WindowCenter="128", WindowWidth="256"))[0]
    stored = DIM.copy()
    stored[:, : round(patch * stored.shape[1])] = 4095  # a bright patch beside it
    twelve = images(build(stored, bits=12, WindowCenter="128", WindowWidth="256"))[0]
    if not patch:
        np.testing.assert_allclose(twelve.pixels, eight.pixels, atol=0.005)
    guard = certifying(ranges=(("MONOCHROME2", 0.0, 255.0, 1.1, 0.0), ("MONOCHROME2", 0.0, 4095.0, 1.1, 0.0)))
    assert guard.planes([eight]).isfinite().all()
    assert guard.planes([twelve]).isnan().all()
    assert veil(twelve, None)[0] > 5
    # Written honestly in 12 bits it is seen.
    honest = images(build(stored.clip(0, 255) * 16, bits=12, WindowCenter="2048", WindowWidth="4096"))[0]
    assert guard.planes([honest]).isfinite().all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@given(st.floats(0.3, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_the_veil_is_the_gain_of_the_window(photometric: str, gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = 4096 / gain
    top = min(width, 4095)
    stored = rng.uniform(0, top, (6, 6)).repeat(12, 0).repeat(12, 1).astype(np.int64)
    header = {"WindowCenter": str(width / 2), "WindowWidth": str(width)}
    found = veil(images(build(stored, bits=12, photometric=photometric, **header))[0], None)
    assert found[0] <= gain * 1.05 + 0.02
    assert found[0] >= 0.5 * gain
    assert found[1] == 0


def test_a_picture_outside_of_the_guards_window_is_hidden() -> None:
    window = (0.0, 2000.0)
    inside, outside = read(DIM * 7), read(2100 + DIM * 7)
    guard = certifying(window=window, ranges=(("MONOCHROME2", 0.0, 4095.0, 2.0, 0.1),))
    assert guard.planes([inside]).isfinite().all()
    assert guard.planes([outside]).isnan().all()
    assert veil(outside, window) == (math.inf, 1.0)


def test_without_ranges_nobody_votes() -> None:
    for missing in ({}, {"ranges": ()}):
        with pytest.raises(ValidationError, match="ranges"):
            GuardSettings.model_validate({**SETTINGS.model_dump(exclude={"ranges"}), **missing})
    assert certifying(ranges=()).planes([PLAIN]).isnan().all()


def test_ranges_are_exact_and_survive_the_enrolment() -> None:
    awkward = read(STORED, RescaleSlope="0.1", RescaleIntercept="-1024.3")
    found = range_of(awkward, None)
    assert found is not None
    assert found[0] == "MONOCHROME2"
    enrolled = (*found, 2.0, 0.0)
    again = GuardSettings.model_validate_json(SETTINGS.model_copy(update={"ranges": (enrolled,)}).model_dump_json())
    assert again.ranges == (enrolled,)
    assert certifying(ranges=again.ranges).planes([awkward]).isfinite().all()
    with pytest.raises(ValidationError):
        GuardSettings.model_validate({**SETTINGS.model_dump(), "ranges": [("MONOCHROME2", 0.0, math.inf, 1.0, 0.0)]})


@pytest.mark.parametrize("window", [None, (-100.0, 300.0)])
def test_behind_a_table_and_in_colour_a_window_means_nothing(window: tuple[float, float] | None) -> None:
    small = Miniature(averaged(STORED), 0.0, 4095.0, has_table=True)
    tabled = replace(PLAIN, miniature=small)
    colour = np.zeros((64, 64, 3), np.uint8)
    (red,) = images(build(colour, bits=8, allocated=8, photometric="RGB"))
    expected = [None, None] if window else [("MONOCHROME2/LUT", 0.0, 4095.0), ("RGB", 0.0, 1.0)]
    assert [range_of(one, window) for one in (tabled, red)] == expected
    assert certifying(window=window).planes([tabled, red]).isnan().all()
    both = certifying(window=window, ranges=(("MONOCHROME2/LUT", 0.0, 4095.0, 2.0, 0.0), ("RGB", 0.0, 1.0, 1.0, 0.0)))
    assert bool(both.planes([tabled, red]).isnan().all()) is (window is not None)


@pytest.mark.parametrize(
    "small",
    [
        None,
        Miniature(np.full((64, 64), np.nan), 0.0, 4095.0),
        Miniature(np.zeros((64, 64)), 0.0, math.inf),
        Miniature(np.zeros((64, 64)), 5.0, 5.0),
        Miniature(np.full((64, 64), 1e14), 1e14, 1e14 + 4095),
    ],
    ids=["palette", "nan", "infinite", "flat", "no-precision"],
)
def test_what_has_no_plane_has_no_range(small: Miniature | None) -> None:
    bare = replace(PLAIN, miniature=small)
    assert range_of(bare, None) is None
    assert certifying().planes([bare]).isnan().all()
    assert view_of(bare, None) is None


@given(st.sampled_from([0, 10_000_000, -10_000_000]), st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_the_slack_of_the_radius_holds_at_large_intercepts(
    intercept: int, change: int, is_windowed: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stored = rng.integers(50, 4000, (70, 64))
    window = (intercept + 1000.0, intercept + 3000.0) if is_windowed else None
    moved = stored + change * rng.choice([-1, 1], stored.shape) * (1 if seed % 2 else -1)
    both = [read(values, RescaleIntercept=str(intercept)) for values in (stored, moved)]
    found = range_of(both[0], window)
    assert found is not None
    guard = certifying(window=window, ranges=((*found, 100.0, 1.0),))
    before, after = guard.planes(both)
    eps = change / (2000 if is_windowed else 4095)
    assert float((before - after).norm()) <= SIDE * eps + 1e-4
    assert float((before - after).norm()) > 0
    plain = read(stored)
    reference = certifying(window=(1000.0, 3000.0) if is_windowed else None).planes([plain])[0]
    assert float((before - reference).norm()) <= 1e-4  # an offset changes nothing


# Weights -------------------------------------------------------------------------------------------------------------


def tensors(width: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = GuardNetwork(1, width).eval()
    return {f"guard.{name}": t for name, t in network.state_dict().items() if t.is_floating_point()}


@pytest.mark.parametrize(
    ("reading", "outputs"),
    [
        (BINARY, 1),
        (head.Head(head.HeadKind.SOFTMAX, ("a", "b", "c")), 3),
        (head.Head(head.HeadKind.MULTILABEL, ("a", "b")), 2),
    ],
)
def test_a_guard_has_the_protected_models_answers(reading: head.Head, outputs: int) -> None:
    assert output_count(reading) == outputs
    guard = Guard(SETTINGS, GuardNetwork(outputs, 4).eval(), reading, CPU)
    found = guard.answers(torch.rand(1, 64, 64), SEED, 0, 10)
    assert found.shape == (10, reading.questions)
    vote = guard.vote(torch.rand(1, 64, 64), (0,) * reading.questions, SEED)
    assert isinstance(vote, Vote)
    assert len(vote.majority) == reading.questions


def test_weights_that_do_not_fit_are_refused() -> None:
    small = SETTINGS.model_copy(update={"width": 4})
    assert isinstance(Guard.from_tensors(small, tensors(), BINARY, CPU), Guard)
    missing = {name: t for name, t in tensors().items() if name != "guard.head.bias"}
    for broken in (missing, tensors(8), {**tensors(), "guard.extra": torch.zeros(1)}, {}):
        with pytest.raises(BundleError, match="guard's weights do not fit"):
            Guard.from_tensors(small, broken, BINARY, CPU)
    nan = {**tensors(), "guard.head.bias": torch.tensor([math.nan])}
    with pytest.raises(BundleError, match="NaN"):
        Guard.from_tensors(small, nan, BINARY, CPU)


def test_gradients_reach_the_planes() -> None:
    guard = Guard(SETTINGS, GuardNetwork(1, 4).eval(), BINARY, CPU)
    planes = torch.rand(2, 1, 64, 64, requires_grad=True)
    guard.logits(planes)[:, 0, 1].sum().backward()
    assert planes.grad is not None
    assert planes.grad.abs().sum() > 0
