from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomguard.decision import Policy as DecisionPolicy
from dicomguard.decision import Reason, Score, Verdict, judge_score
from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import Miniature
from dicomguard.scoring import head, noise
from dicomguard.scoring import scorer as module
from dicomguard.scoring.bundle import METADATA, Bundle
from dicomguard.scoring.calibration import fused as fused_score
from dicomguard.scoring.calibration import smallest_margin
from dicomguard.scoring.classifier import Classifier, fused
from dicomguard.scoring.consistency import noisy_copies
from dicomguard.scoring.guard import Outcome
from dicomguard.scoring.scorer import Batch, Scorer
from tests.scoring.small import gray_image, scores_of, small_seeds, write_small


@pytest.fixture(scope="module")
def scorer(small_bundle: Path) -> Scorer:
    return Scorer.load(small_bundle)


@pytest.fixture(scope="module")
def batch(scorer: Scorer) -> Batch:
    return scorer.prepare([gray_image(seed) for seed in range(6)])


@pytest.fixture
def enrolled(enrolled_bundle: Path) -> Scorer:
    return Scorer.load(enrolled_bundle)


def on_one_path(scorer: Scorer) -> Scorer:
    """With the canonical path alone, as without a GPU."""
    scorer._fast = scorer._canonical
    return scorer


def on_two_paths(scorer: Scorer, bundle_dir: Path) -> Scorer:
    """With a fast path in bfloat16, as on a GPU."""
    bundle = Bundle(bundle_dir)
    given_ = bundle.inference.input.mean, bundle.inference.input.std
    scorer._fast = Classifier(fused(bundle.network), *given_, torch.bfloat16).eval()
    return scorer


def part(batch: Batch, places: Any) -> Batch:
    return Batch(batch.pixels[places], None if batch.planes is None else batch.planes[places])


def with_tolerance(scorer: Scorer, tolerance: float) -> Scorer:
    assert scorer.enrolment is not None
    changed = scorer.enrolment.tolerance.model_copy(update={"statistic": tolerance})
    scorer.enrolment = scorer.enrolment.model_copy(update={"tolerance": changed})
    return scorer


# Preparation ---------------------------------------------------------------------------------------------------------


def test_prepared_images_are_unit_range_planes(scorer: Scorer) -> None:
    prepared = scorer.prepare([gray_image(1), gray_image(2, rows=200, columns=31)])
    assert prepared.pixels.shape == (2, 1, 48, 48)
    assert prepared.pixels.dtype == torch.float32
    assert prepared.pixels.min() >= 0
    assert prepared.pixels.max() <= 1
    assert prepared.planes is None
    assert scorer.prepare([]).pixels.shape == (0, 1, 48, 48)
    assert len(scorer.prepare([])) == 0


def test_a_guard_is_given_miniatures(enrolled: Scorer) -> None:
    prepared = enrolled.prepare([gray_image(1), gray_image(2)])
    assert prepared.planes is not None
    assert prepared.planes.shape == (2, 1, 64, 64)
    bare = enrolled.prepare([replace(gray_image(1), miniature=None)])
    assert bare.planes is not None
    assert bare.planes.isnan().all()  # which gets no vote


def test_colour_becomes_luminance(scorer: Scorer) -> None:
    gray = gray_image(3)
    colour = Image(np.repeat(gray.pixels, 3, 0), 0, 8, "RGB", "none", None)
    assert torch.allclose(scorer.prepare([gray]).pixels, scorer.prepare([colour]).pixels, atol=1e-6)


def test_pixels_out_of_range_are_clipped(scorer: Scorer) -> None:
    image = gray_image(4)
    far = image.pixels.copy()
    far[0, :9], far[0, 9:18] = -3, 7
    clipped = scorer.prepare([replace(image, pixels=np.clip(far, 0, 1))])
    assert torch.equal(scorer.prepare([replace(image, pixels=far)]).pixels, clipped.pixels)


def test_a_change_at_native_resolution_never_grows_in_preparation(scorer: Scorer) -> None:
    rng = np.random.default_rng(0)
    for rows, columns in ((48, 48), (100, 77), (31, 200), (20, 20)):
        pixels = torch.from_numpy(rng.random((1, rows, columns), np.float32))
        moved = (pixels + 0.004 * torch.sign(torch.rand_like(pixels) - 0.5)).clamp(0, 1)
        change = (scorer.preprocess(pixels) - scorer.preprocess(moved)).abs().max()
        assert change <= 0.004 + 1e-6


def test_gradients_reach_the_native_pixels(scorer: Scorer) -> None:
    pixels = torch.from_numpy(gray_image(4, rows=97, columns=61).pixels).requires_grad_()
    scorer.log_odds(scorer.preprocess(pixels).unsqueeze(0)).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).float().mean() > 0.9


# What is measured ----------------------------------------------------------------------------------------------------


def logit_of(scorer: Scorer, pixels: torch.Tensor) -> float:
    return float(scorer.log_odds(pixels)[0, 0].diff())


# One fixed noise law, recomputed here the plain way: one image, one draw at a time.
def test_the_numbers_are_those_of_the_definition(small_bundle: Path, batch: Batch) -> None:
    scorer = on_one_path(Scorer.load(small_bundle))
    image = part(batch, slice(2, 3))
    (seed,) = small_seeds(1, 2)
    (score,) = scorer.score(image, [seed])
    with torch.inference_mode():
        logit = logit_of(scorer, image.pixels)
        sign = 1 if logit >= 0 else -1
        (drawn,) = noise.uniform([seed.noise_check], range(12), (1, 48, 48))
        for level, strength in enumerate((0.01, 0.03, 0.05)):
            noisy = [
                sign * logit_of(scorer, (image.pixels + strength * drawn[4 * level + r]).clamp(0, 1)) for r in range(4)
            ]
            drop = 1 / (1 + math.exp(-sign * logit)) - np.median([1 / (1 + math.exp(-m)) for m in noisy])
            assert score.probability_drops[level] == pytest.approx(drop, abs=1e-5)
            assert score.logit_drops[level] == pytest.approx(sign * logit - np.median(noisy), abs=1e-4)
    assert score.predicted == ("opacity" if logit > 0 else "normal")
    assert score.likely == ("normal" if logit > 0 else "opacity")
    assert score.margin == pytest.approx(abs(logit), abs=1e-4)
    assert score.levels == (0.01, 0.03, 0.05)
    assert score.passes == 13
    assert score.statistic == max(score.probability_drops)


def test_noise_stays_within_its_level_and_the_unit_range(scorer: Scorer, batch: Batch) -> None:
    ladder = scorer.noise.ladder()
    copies = noisy_copies(batch.pixels[:1], [bytes(32)], scorer.noise, ladder)
    assert copies.shape == (12, 1, 48, 48)
    assert copies.min() >= 0
    assert copies.max() <= 1
    for level, strength in enumerate(scorer.noise.levels):
        moved = (copies[4 * level : 4 * level + 4] - batch.pixels[0]).abs()
        assert 0.9 * strength < moved.max() <= strength + 1e-6


def test_a_draw_is_the_same_whichever_others_are_made_beside_it(scorer: Scorer, batch: Batch) -> None:
    ladder = scorer.noise.ladder()
    whole = noisy_copies(batch.pixels[:1], [bytes(32)], scorer.noise, ladder)
    some = noisy_copies(batch.pixels[:1], [bytes(32)], scorer.noise, ((2, 1), (0, 3)))
    assert torch.equal(some[0], whole[ladder.index((2, 1))])
    assert torch.equal(some[1], whole[ladder.index((0, 3))])


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_score_is_blind_to_batch_size_and_neighbours(
    small_bundle: Path, batch: Batch, order: list[int], size: int
) -> None:
    scorer = on_one_path(Scorer.load(small_bundle))
    seeds = small_seeds(6)
    alone = [scorer.score(part(batch, [i]), [seeds[i]])[0] for i in range(6)]
    found: dict[int, Score] = {}
    for start in range(0, 6, size):
        chosen = order[start : start + size]
        found.update(zip(chosen, scorer.score(part(batch, chosen), [seeds[i] for i in chosen]), strict=True))
    for index, score in enumerate(alone):
        assert found[index].statistic == pytest.approx(score.statistic, abs=1e-5)
        assert found[index].margin == pytest.approx(score.margin, abs=1e-5)
        assert found[index].probability_drops == pytest.approx(score.probability_drops, abs=1e-5)


def test_an_enrolled_score_is_blind_to_batch_size_and_neighbours(enrolled: Scorer) -> None:
    on_one_path(enrolled)
    batch, together = scores_of(enrolled, 12)
    assert len({score.passes for score in together}) == 2  # some ended early, some did not
    seeds = small_seeds(12)
    for size, order in ((1, range(12)), (5, [7, 3, 11, 0, 9, 2, 5, 1, 10, 4, 8, 6])):
        places = list(order)
        for start in range(0, 12, size):
            chosen = places[start : start + size]
            for i, score in zip(chosen, enrolled.score(part(batch, chosen), [seeds[i] for i in chosen]), strict=True):
                assert score.statistic == pytest.approx(together[i].statistic, abs=1e-4)
                assert (score.passes, score.guard) == (together[i].passes, together[i].guard)


def test_another_seed_draws_other_noise(scorer: Scorer, batch: Batch) -> None:
    first, second = (scorer.score(part(batch, [0]), [seed])[0] for seed in small_seeds(2))
    assert first.margin == pytest.approx(second.margin, abs=1e-6)
    assert first.logit_drops != second.logit_drops


def test_as_many_seeds_as_images(scorer: Scorer, batch: Batch) -> None:
    with pytest.raises(ValueError, match="6 images"):
        scorer.score(batch, small_seeds(5))
    assert scorer.score(part(batch, slice(0)), []) == []


def test_nobody_is_left_without_images(enrolled: Scorer) -> None:
    assert enrolled.score(enrolled.prepare([]), []) == []


def test_an_enrolment_of_the_cpu_does_all_its_work_there(enrolled_bundle: Path) -> None:
    """`meta` stands in for a card: whatever is computed on it raises."""
    expected = Scorer.load(enrolled_bundle)
    scorer = Scorer.load(enrolled_bundle, device="meta")
    assert scorer.has_one_path
    for one, other in zip(scores_of(scorer, 2)[1], scores_of(expected, 2)[1], strict=True):
        assert one == other


# What is no number ---------------------------------------------------------------------------------------------------


def broken_image() -> Image:
    pixels = gray_image(5).pixels.copy()
    pixels[0, 3, 3] = np.nan
    return replace(gray_image(5), pixels=pixels)


def test_nan_pixels_give_a_score_that_no_threshold_passes(scorer: Scorer) -> None:
    (score,) = scorer.score(scorer.prepare([broken_image()]), small_seeds(1))
    assert not score.is_finite


def test_an_image_without_a_number_is_inconclusive_and_its_neighbours_are_not(enrolled: Scorer) -> None:
    pictures = [gray_image(1), broken_image(), gray_image(2)]
    scores = enrolled.score(enrolled.prepare(pictures), small_seeds(3))
    assert enrolled.thresholds is not None
    judged = [judge_score(score, enrolled.thresholds, DecisionPolicy()) for score in scores]
    assert (judged[1].verdict, judged[1].reasons) == (Verdict.INCONCLUSIVE, (Reason.NOT_A_NUMBER,))
    assert [score.is_finite for score in scores] == [True, False, True]
    assert scores[1].p_value == pytest.approx(1 / 31)
    alone = enrolled.score(enrolled.prepare(pictures[:1]), small_seeds(1))
    assert scores[0].margin == pytest.approx(alone[0].margin, abs=1e-5)


def test_a_miniature_without_a_number_is_inconclusive(enrolled: Scorer) -> None:
    image = gray_image(1)
    assert image.miniature is not None
    values = image.miniature.values.copy()
    values[5, 5] = np.nan
    strange = replace(image, miniature=Miniature(values, 0, 4095))
    (score,) = enrolled.score(enrolled.prepare([strange]), small_seeds(1))
    assert not score.is_finite
    assert score.assurance == "screened"
    assert score.guard is not None
    assert score.guard.outcome == "UNENROLLED"


def test_a_network_that_breaks_after_loading_is_no_clean_image(enrolled: Scorer) -> None:
    enrolled._canonical = enrolled._answering = copy.deepcopy(enrolled._canonical)
    with torch.no_grad():
        next(iter(enrolled._canonical.parameters())).fill_(math.nan)
    _, scores = scores_of(enrolled, 2)
    assert not any(score.is_finite for score in scores)


# Two paths -----------------------------------------------------------------------------------------------------------


def test_the_answer_never_comes_from_the_fast_path(enrolled_bundle: Path) -> None:
    fast, exact = on_two_paths(Scorer.load(enrolled_bundle), enrolled_bundle), on_one_path(Scorer.load(enrolled_bundle))
    batch = exact.prepare([gray_image(n) for n in range(8)])
    seeds, draws = small_seeds(8), exact.noise.ladder()
    quick, _ = fast.look(batch, seeds, draws)
    slow, _ = exact.look(batch, seeds, draws)
    canonical, _ = fast.look(batch, seeds, draws, canonical=True)
    for a, b, c in zip(quick, slow, canonical, strict=True):
        assert np.array_equal(a.seen.clean, b.seen.clean)
        assert np.allclose(c.seen.noisy, b.seen.noisy, atol=1e-4)
        assert not np.array_equal(a.seen.noisy, b.seen.noisy)


def test_a_card_answers_itself_except_where_it_is_close(enrolled_bundle: Path) -> None:
    fast, exact = on_two_paths(Scorer.load(enrolled_bundle), enrolled_bundle), on_one_path(Scorer.load(enrolled_bundle))
    fast._answering = copy.deepcopy(exact._canonical)
    linear = [module for module in fast._answering.modules() if isinstance(module, torch.nn.Linear)]
    with torch.inference_mode():
        linear[-1].bias.add_(0.001)  # as if the card rounded that differently
    batch = exact.prepare([gray_image(n) for n in range(8)])
    truth = exact.answer(batch.pixels)
    margins = np.abs(truth.log_odds[:, 0, 1] - truth.log_odds[:, 0, 0])
    assert fast.enrolment is not None
    floor = float(margins.max()) + 0.005
    fitted = fast.enrolment.calibration.model_copy(update={"margin_floor": floor})
    fast.enrolment = fast.enrolment.model_copy(update={"calibration": fitted})
    seen, _ = fast.look(batch, small_seeds(8), ((0, 0),))
    changed = [np.abs(one.seen.clean - odds).max() > 5e-4 for one, odds in zip(seen, truth.log_odds, strict=True)]
    expected = (margins > 0.011) & (np.abs(margins - floor) > 0.011)
    assert 0 < sum(expected) < 8
    assert changed == expected.tolist()
    canonical, _ = fast.look(batch, small_seeds(8), ((0, 0),), canonical=True)
    assert all(np.array_equal(one.seen.clean, odds) for one, odds in zip(canonical, truth.log_odds, strict=True))


def test_what_is_close_is_drawn_again_exactly(enrolled_bundle: Path) -> None:
    fast = with_tolerance(on_two_paths(Scorer.load(enrolled_bundle), enrolled_bundle), 1e9)
    exact = on_one_path(Scorer.load(enrolled_bundle))
    _, quick = scores_of(fast, 8)
    _, slow = scores_of(exact, 8)
    for a, b in zip(quick, slow, strict=True):
        assert a.statistic == pytest.approx(b.statistic, abs=1e-4)
        assert a.logit_drops == pytest.approx(b.logit_drops, abs=1e-4)
        assert a.passes > b.passes


def test_what_is_not_close_is_left(enrolled_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = with_tolerance(on_two_paths(Scorer.load(enrolled_bundle), enrolled_bundle), 0.0)
    drawn: list[bool] = []
    noisy = Scorer._noisy

    def spy(self: Scorer, *arguments: Any, canonical: bool) -> Any:
        drawn.append(canonical and len(arguments[2]) > 0)
        return noisy(self, *arguments, canonical=canonical)

    monkeypatch.setattr(Scorer, "_noisy", spy)
    scores_of(scorer, 8)
    assert drawn
    assert not any(drawn)
    with_tolerance(scorer, 1e9)
    scores_of(scorer, 8)
    assert any(drawn)


def test_only_the_image_that_is_close_is_drawn_again(enrolled_bundle: Path) -> None:
    scorer = with_tolerance(on_two_paths(Scorer.load(enrolled_bundle), enrolled_bundle), 0.0)
    _, before = scores_of(scorer, 8)
    assert scorer.enrolment is not None
    last = [s for s in before if s.passes == 1 + len(scorer.enrolment.calibration.stages[-1].draws)]
    assert last
    nearest = last[0]
    fitted = scorer.enrolment.calibration.model_copy(update={"threshold": nearest.statistic + 1e-7})
    scorer.enrolment = scorer.enrolment.model_copy(update={"calibration": fitted})
    with_tolerance(scorer, 1e-6)
    _, after = scores_of(scorer, 8)
    again = [b.margin for a, b in zip(after, before, strict=True) if a.passes != b.passes]
    assert again == [nearest.margin]


# Judged --------------------------------------------------------------------------------------------------------------


def test_a_score_says_what_its_calibration_says(enrolled: Scorer) -> None:
    on_one_path(enrolled)
    batch, scores = scores_of(enrolled, 30)
    assert enrolled.enrolment is not None
    assert enrolled.thresholds is not None
    fitted = enrolled.enrolment.calibration
    evidence, votes = enrolled.look(batch, small_seeds(30), fitted.stages[-1].draws)
    for score, one, vote in zip(scores, evidence, votes, strict=True):
        statistic, stage = fitted.statistic_of(one)
        assert score.statistic == pytest.approx(statistic, abs=1e-4)
        assert score.passes == 1 + len(fitted.stages[stage].draws)
        assert score.margin == pytest.approx(smallest_margin(one.seen), abs=1e-6)
        assert score.p_value == fitted.p_value(score.statistic, score.margin)
        assert score.statistic == fused_score(score.surprises)
        assert set(score.surprises) == {*fitted.used}
        judged = judge_score(score, enrolled.thresholds, DecisionPolicy())
        assert (judged.verdict is not Verdict.CLEAN) == fitted.flags(score.statistic, score.margin)
        assert score.guard is not None
        assert vote is not None
        assert (score.guard.votes, score.guard.draws, score.guard.outcome) == (vote.votes, vote.draws, vote.outcome)
        assert score.guard.majority in {"normal", "opacity"}
        assert (score.assurance == "proven") == (vote.outcome is Outcome.CERTIFIED)
    assert {score.assurance for score in scores} == {"proven", "screened"}


def test_clean_images_are_seldom_flagged(enrolled: Scorer) -> None:
    _, scores = scores_of(enrolled, 60, first=7000)
    assert enrolled.enrolment is not None
    flagged = sum(enrolled.enrolment.calibration.flags(s.statistic, s.margin) for s in scores)
    assert flagged <= 18  # alpha is 0.1, and 60 held-back images fix it to Beta(6, 55); chance in 1,000


def test_three_labels_are_scored_end_to_end(three_labels: Path) -> None:
    scorer = Scorer.load(three_labels)
    batch, scores = scores_of(scorer, 12)
    odds = scorer.answer(batch.pixels).log_odds
    names = {label.strip() for score in scores for label in score.predicted.split("+")}
    assert names <= {"effusion", "mass", "nodule", "none of the labels"}
    assert len({score.predicted for score in scores}) > 1
    for score, row in zip(scores, odds, strict=True):
        answer = tuple(int(c) for c in row.argmax(-1))
        assert score.predicted == scorer.head.name(answer)
        assert score.likely != score.predicted
        if scorer.head.kind is head.HeadKind.SOFTMAX:
            assert score.likely in scorer.labels
        else:  # one finding differs
            changed = [tuple(1 - c if q == place else c for q, c in enumerate(answer)) for place in range(len(answer))]
            assert score.likely in {scorer.head.name(one) for one in changed}
        ordered = np.sort(row, -1)
        assert score.margin == pytest.approx(float((ordered[:, -1] - ordered[:, -2]).min()), abs=1e-6)
        assert score.is_finite
        assert 0 < score.p_value <= 1
        assert score.guard is not None


def test_the_likely_class_is_where_the_noise_leads(three_labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that every noisy copy takes back, in favour of one and the same class."""
    scorer = on_one_path(Scorer.load(three_labels))
    batch = scorer.prepare([gray_image(1)])
    (row,) = scorer.answer(batch.pixels).log_odds
    answer = tuple(int(c) for c in row.argmax(-1))
    truth = list(answer)
    truth[-1] = (answer[-1] + 1) % scorer.head.classes
    leads = row.copy()
    leads[-1] = -9.0
    leads[-1, truth[-1]] = 9.0

    def noisy(_self: Scorer, pixels: torch.Tensor, _seeds: Any, draws: Any, *, canonical: bool) -> Any:
        return np.broadcast_to(leads, (len(pixels), len(draws), *leads.shape))

    monkeypatch.setattr(Scorer, "_noisy", noisy)
    (score,) = scorer.score(batch, small_seeds(1))
    assert score.likely == scorer.head.name(tuple(truth))
    assert score.predicted == scorer.head.name(answer)
    assert scorer.thresholds is not None
    assert score.statistic > scorer.thresholds.statistic
    assert score.p_value == pytest.approx(1 / 31)
    assert min(score.logit_drops) > 0


def test_saliency_is_a_picture_of_each_image(scorer: Scorer, batch: Batch, three_labels: Path) -> None:
    for one, pixels in ((scorer, batch.pixels[:2]), (Scorer.load(three_labels), torch.rand(2, 1, 16, 16))):
        picture = one.saliency(pixels)
        assert picture.shape == (2, *pixels.shape[2:])
        assert picture.dtype == np.float32
        assert picture.max() == pytest.approx(1)
        assert picture.min() >= 0


# Loading -------------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_an_error_with_advice(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="device"):
        Scorer.load(small_bundle, device="nonsense")


def test_a_softmax_over_one_label_is_refused(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "b", size=16, labels=("effusion",), head="multilabel")
    assert Scorer.load(folder).head.questions == 1
    content = json.loads((folder / "configs/inference.json").read_text())
    (folder / "configs/inference.json").write_text(json.dumps({**content, "head": "softmax"}))
    with pytest.raises(BundleError, match="one label"):
        Scorer.load(folder)
    assert (folder / METADATA).exists()


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not divide the batches of these tests."""
    monkeypatch.setattr(module, "_CHUNK", 5)
