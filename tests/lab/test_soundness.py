from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from dicomguard import phantom
from dicomguard.attacks.joint import Budget, Pair
from dicomguard.lab import falsify, soundness_figures
from dicomguard.lab.cases import Case
from dicomguard.lab.finetune import Settings
from dicomguard.lab.majority import Terms, is_certified, lower_bound, majority_needs, needed_share, votes
from dicomguard.lab.recipes import RECIPES, Recipe
from dicomguard.lab.soundness import Base, Judged, Kind, Soundness, Stored, _others
from dicomguard.lab.stored import read
from dicomguard.lab.survey import Quick, Survey, ordered
from tests.scoring.small import GUARD, enrol_small, write_small

LEVELS = 255
EPS = 0.02
SIGMA = 0.1
SIDE = 4
RADIUS = SIDE * EPS
TERMS = Terms(eps=EPS, alpha=1e-3, draws=4000)
BUDGET = Budget(EPS, LEVELS, steps=10)
_RANDOM = torch.Generator().manual_seed(1)
COARSE = F.normalize(torch.randn(1, 1, SIDE, SIDE, generator=_RANDOM).flatten(), dim=0).view(1, 1, SIDE, SIDE)
FINE = torch.randn(1, 1, 16, 16, generator=_RANDOM)


def planes(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, SIDE)


def distance(seen: Tensor) -> Tensor:
    """From the boundary of the linear guard: the share of votes for class 1 is Phi(distance / sigma), exactly."""
    return (COARSE * (seen - 0.5)).sum((1, 2, 3))


def guard(seen: Tensor) -> Tensor:
    return torch.stack([torch.zeros(len(seen)), 40 * distance(seen)], -1).unsqueeze(1)


def model(x: Tensor) -> Tensor:
    """Sees what the guard sees, and fine structure that an attack moves much faster."""
    logit = 20 * distance(planes(x)) + (FINE * (x - 0.5)).sum((1, 2, 3)) / 2
    return torch.stack([torch.zeros(len(x)), logit], -1).unsqueeze(1)


def base(key: int, wanted: float) -> Base:
    """A picture at about the distance `wanted` from the guard's boundary."""
    noise = 0.2 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(key)) + 0.4
    lift = F.interpolate(COARSE, 16) * (wanted - distance(planes(noise)))
    return Base(f"picture {key}", ((noise + lift).clamp(0, 1) * LEVELS).round().long()[0].numpy())


BASES = [base(key, 0.03 * (key - 7.5)) for key in range(16)]


class Node:
    """A node with a guard, in the order of its calls: noise is fresh for every file."""

    def __init__(self, pair: Pair, *, broken: bool = False) -> None:
        self.pair = pair
        self.broken = broken
        self.judged = 0

    def __call__(self, bases: Sequence[Base], files: Sequence[Stored]) -> list[Judged]:
        return [self.judge(file) for file in files]

    def judge(self, file: Stored) -> Judged:
        self.judged += 1
        x = torch.from_numpy(file)[None] / LEVELS
        answer = (int(model(x).argmax()),)
        seen = self.pair.planes(x)[0]
        counted = votes(guard, seen, sigma=SIGMA, draws=1000, seed=self.judged)
        if next(iter(counted)) != answer:
            return Judged(answer, "DISAGREE", passes=False)
        certified = is_certified(counted, answer, tuple(seen.shape), eps=EPS, sigma=SIGMA, alpha=TERMS.alpha)
        # Broken: forgets that the majority must be large enough for the radius.
        return Judged(answer, "CERTIFIED" if certified or self.broken else "UNCERTIFIED", passes=True)


def soundness(work: Path, *, pair: Pair | None = None, broken: bool = False, budget: Budget = BUDGET) -> Soundness:
    pair = pair or Pair(model, guard, SIGMA, planes)
    return Soundness(pair, Node(pair, broken=broken), TERMS, budget, work=work, fingerprint="f")


def of_kind(test: Soundness, kind: Kind) -> list[Base]:
    test.confirm(BASES)
    return test.of_kind(BASES, kind)


def test_the_long_vote_is_the_one_known_exactly() -> None:
    for one in BASES:
        seen = planes(torch.from_numpy(one.stored)[None] / LEVELS)
        share = float(stats.norm.cdf(float(distance(seen)) / SIGMA))
        counted = votes(guard, seen[0], sigma=SIGMA, draws=20_000, seed=3, batch=999)
        assert sum(counted.values()) == 20_000
        assert counted.get((1,), 0) / 20_000 == pytest.approx(share, abs=5 * math.sqrt(0.25 / 20_000))


def test_a_vote_may_end_when_it_is_decided() -> None:
    seen = planes(torch.from_numpy(BASES[-1].stored)[None] / LEVELS)[0]
    enough = majority_needs(4000, 1e-6)
    assert lower_bound(enough, 4000, 1e-6) > 0.5 >= lower_bound(enough - 1, 4000, 1e-6)
    whole = votes(guard, seen, sigma=SIGMA, draws=4000, seed=3, batch=100)
    short = votes(guard, seen, sigma=SIGMA, draws=4000, seed=3, batch=100, enough=enough)
    assert sum(short.values()) < 0.7 * sum(whole.values())
    assert next(iter(short)) == next(iter(whole)) == (1,)
    assert enough <= short[1,] <= whole[1,]
    assert majority_needs(10, 1e-6) == 11


def test_the_certificate_begins_where_geometry_says() -> None:
    assert needed_share((1, 64, 64), eps=0.004, sigma=0.25) == pytest.approx(stats.norm.cdf(0.256 / 0.25))
    assert needed_share((3, 64, 64), eps=0.004, sigma=0.25) == pytest.approx(
        stats.norm.cdf(math.sqrt(3) * 0.256 / 0.25)
    )
    for beyond, expected in ((-0.01, False), (0.01, True)):
        share = float(stats.norm.cdf((RADIUS + beyond) / SIGMA))
        counted = {(1,): round(share * 100_000), (0,): 100_000 - round(share * 100_000)}
        assert is_certified(counted, (1,), (1, SIDE, SIDE), eps=EPS, sigma=SIGMA, alpha=1e-6) is expected
    assert lower_bound(0, 100, 1e-6) == 0
    assert lower_bound(100, 100, 1e-6) == pytest.approx(1e-6 ** (1 / 100))


def test_a_sound_guard_is_not_falsified_and_the_attack_is_a_real_one(tmp_path: Path) -> None:
    test = soundness(tmp_path)
    agreeing = of_kind(test, "agreeing")
    assert len(agreeing) >= 5
    test.attack(agreeing, 150)
    found = test.report()
    assert found["a"] == {
        "judged": found["flipped"]["hits"], "contradicting": 0, "certified_again": 0, "falsifications": 0,
        "expected_by_chance": pytest.approx(found["flipped"]["hits"] * 1e-3), "binomial_p": 1.0,
    }  # fmt: skip
    assert found["sound"] is True
    assert found["flipped"]["rate"] > 0.35
    assert found["largest_change"] == BUDGET.grey_levels == 5
    assert found["clean_outcomes"]["agreeing"]["CERTIFIED"] > 0
    assert set(found["attempts_by_kind"]) == {"agreeing"}
    assert found["c"]["of_flips"]["hits"] > 0, "a vote near the boundary follows"
    assert set(found["flips_by_outcome"]) <= {"UNCERTIFIED", "DISAGREE"}


def test_from_bases_that_disagreed_flips_are_certified_and_count_apart(tmp_path: Path) -> None:
    def contrary(x: Tensor) -> Tensor:
        return model(x) + torch.tensor([2.0, 0.0])

    pair = Pair(contrary, guard, SIGMA, planes)

    class Contrary(Node):
        def judge(self, file: Stored) -> Judged:
            x = torch.from_numpy(file)[None] / LEVELS
            answer = (int(contrary(x).argmax()),)
            seen = planes(x)[0]
            counted = votes(guard, seen, sigma=SIGMA, draws=1000, seed=7)
            certified = is_certified(counted, answer, (1, SIDE, SIDE), eps=EPS, sigma=SIGMA, alpha=1e-3)
            return Judged(answer, "CERTIFIED" if certified else "UNCERTIFIED", passes=True)

    test = Soundness(pair, Contrary(pair), TERMS, BUDGET, work=tmp_path, fingerprint="c")
    disagreeing = of_kind(test, "disagreeing")
    assert disagreeing
    test.attack(disagreeing, 40)
    found = test.report()
    assert found["b"]["of_attempts"]["hits"] > 0
    assert found["attempts_by_kind"] == {"disagreeing": 40}
    assert found["a"]["judged"] == found["a"]["expected_by_chance"] == 0, "no agreeing base was attacked"
    assert found["from_disagreeing"]["judged"] > 0
    assert found["from_disagreeing"]["contradicting"] == 0
    assert found["sound"] is None


def test_a_guard_that_certifies_too_much_is_caught_by_counting(tmp_path: Path) -> None:
    test = soundness(tmp_path, broken=True)
    test.attack(of_kind(test, "agreeing"), 150)
    found = test.report()
    assert found["a"]["contradicting"] > 3
    assert found["a"]["binomial_p"] < 1e-6
    assert found["sound"] is False


def test_planes_that_are_no_contraction_are_falsified(tmp_path: Path) -> None:
    def stretched(x: Tensor) -> Tensor:
        """Scaled by the image's own minimum and maximum, as if that were a fixed range."""
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        return planes((x - low) / (high - low))

    test = soundness(tmp_path, pair=Pair(model, guard, SIGMA, stretched))
    flat = [Base(one.key, ((one.stored - 127) // 8 + 127)) for one in BASES]  # little contrast: the scale is a lever
    test.confirm(flat)
    test.attack(test.of_kind(flat, "agreeing"), 120)
    found = test.report()
    assert found["a"]["falsifications"] > 0
    assert found["sound"] is False


def test_beyond_the_budget_the_attack_wins(tmp_path: Path) -> None:
    test = soundness(tmp_path, budget=Budget(8 * EPS, LEVELS, steps=10))
    test.attack(of_kind(test, "agreeing"), 60)
    found = test.report()
    assert found["control"]
    assert found["sound"] is None
    assert found["a"]["falsifications"] is None
    assert found["a"]["certified_again"] > 10, "otherwise the attack is too weak to test anything"


def test_a_stopped_run_goes_on_and_a_longer_one_uses_it(tmp_path: Path) -> None:
    first = soundness(tmp_path)
    bases = of_kind(first, "agreeing")
    first.attack(bases, 20, batch=7)
    node = Node(Pair(model, guard, SIGMA, planes))
    ticks: list[str] = []
    again = Soundness(node.pair, node, TERMS, BUDGET, work=tmp_path, fingerprint="f", tick=ticks.append)
    assert of_kind(again, "agreeing") == bases
    again.attack(bases, 20)
    assert node.judged == 0
    assert again.report() == first.report()
    again.attack(bases, 30)
    assert ticks.count("attempts") == 50
    assert again.report()["attempts"] == 30
    other = Soundness(node.pair, node, TERMS, BUDGET, work=tmp_path, fingerprint="another")
    other.confirm(bases[:1])
    assert node.judged > 0


def test_shards_make_the_attempts_of_one_run(tmp_path: Path) -> None:
    whole = soundness(tmp_path / "whole")
    whole.attack(of_kind(whole, "agreeing"), 20)
    parts = [soundness(tmp_path / "parts") for _ in range(2)]
    for place, part in enumerate(parts):
        part.attack(of_kind(part, "agreeing"), 20, shard=(place, 2))
        assert part.report()["attempts"] == 10
    last = soundness(tmp_path / "parts")
    of_kind(last, "agreeing")
    last.attack(of_kind(last, "agreeing"), 20)
    assert last.report()["attempts"] == 20
    assert last.report()["flipped"] == whole.report()["flipped"]


def test_the_bases_nearest_to_the_guards_boundary_come_first(tmp_path: Path) -> None:
    test = soundness(tmp_path)
    first, *_, last = of_kind(test, "agreeing")
    gaps = [abs(float(distance(planes(torch.from_numpy(one.stored)[None] / LEVELS)))) for one in (first, last)]
    assert gaps[0] < gaps[1]
    assert test.of_kind([Base("never confirmed", first.stored)], "agreeing") == []


def test_the_nearest_other_answers_are_tried_first() -> None:
    one_question = torch.tensor([[1.0, 5.0, 3.0]])
    assert _others(one_question, (1,)) == [(2,), (0,)]
    findings = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 4.0]])
    assert _others(findings, (1, 0, 1)) == [(1, 1, 1), (0, 0, 1), (1, 0, 0)]


def test_an_undecided_base_is_told_apart(tmp_path: Path) -> None:
    test = soundness(tmp_path)
    assert test.confirm([base(50, 0.0)]) == {"picture 50": "undecided"}
    assert test.report()["bases"] == {"undecided": 1}
    assert test.report()["sound"] is None
    test.attack([], 10)
    assert test.report()["attempts"] == 0


def row(kind: str, **more: object) -> dict[str, object]:
    """An attempt of which the node said CERTIFIED, and nothing came of it."""
    facts = {"kind": kind, "base": "one", "tactic": 0, "change": 5, "judged": True, "flipped": True, "passes": True}
    return facts | {"outcome": "CERTIFIED", "contradicts": False, "again": False} | more


def test_only_attempts_on_agreeing_bases_are_trials_of_the_guard() -> None:
    rows = [
        *(row("agreeing", outcome="DISAGREE") for _ in range(7)),
        row("agreeing", judged=False, flipped=False),
        row("agreeing", outcome="UNENROLLED"),
        *(row("disagreeing") for _ in range(50)),
        row("undecided", contradicts=False),
    ]
    found = soundness_figures.report([], rows, TERMS, BUDGET)
    assert found["a"]["judged"] == 7, "of one the guard was not asked, and one attempt had nothing to judge"
    assert found["a"]["expected_by_chance"] == pytest.approx(7e-3)
    assert found["b"]["of_attempts"]["count"] == found["b"]["of_attempts"]["hits"] == 50
    assert found["b"]["of_bases"]["count"] == 1
    assert found["sound"] is True
    fault = row("disagreeing", contradicts=True, again=True)
    broken = soundness_figures.report([], [*rows, fault], TERMS, BUDGET)
    assert broken["a"]["contradicting"] == 0
    assert broken["from_disagreeing"]["certified_again"] == 1
    assert broken["sound"] is False, "a certificate against a confirmed vote is false wherever it began"


@pytest.mark.parametrize("factor", [0.5, 2])
def test_another_budget_is_never_a_result(factor: float) -> None:
    found = soundness_figures.report([], [row("agreeing", outcome="DISAGREE")], TERMS, Budget(factor * EPS, LEVELS))
    assert found["control"]
    assert found["sound"] is None
    assert (found["a"]["falsifications"] is None) is (factor > 1)


def test_a_control_uses_the_long_votes_that_are_there(tmp_path: Path) -> None:
    first = soundness(tmp_path)
    first.attack(of_kind(first, "agreeing"), 8)
    pair = Pair(model, guard, SIGMA, planes)
    node = Node(pair)
    control = Soundness(pair, node, TERMS, Budget(2 * EPS, LEVELS, steps=10), work=tmp_path, fingerprint="f")
    agreeing = of_kind(control, "agreeing")
    assert node.judged == 0
    control.attack(agreeing, 8)
    assert node.judged > 0, "attempts with another budget are other attempts"
    again = soundness(tmp_path)
    again.attack(of_kind(again, "agreeing"), 8)
    assert again.report() == first.report()


def case(number: int, group: str | None = None) -> Case:
    return Case(f"file {number}", number % 2, group or f"patient {number}", lambda _bits: pytest.fail("was read"))


class Voter:
    """A quick vote known by the number of the file: every fifth disagrees, every seventh has no vote."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, asked: Case) -> Quick:
        self.asked[asked.key] += 1
        number = int(asked.key.split()[1])
        kind = "unenrolled" if number % 7 == 0 else "disagreeing" if number % 5 == 0 else "agreeing"
        return Quick(kind, right=number % 3 > 0)


def test_bases_are_chosen_by_votes_and_not_by_who_is_right(tmp_path: Path) -> None:
    cases = sorted((case(number) for number in range(1, 101)), key=lambda one: one.truth)  # class after class
    voter = Voter()
    survey = Survey(voter, tmp_path / "survey.jsonl", "f")
    for one in cases:
        survey(one)
    agreeing = list(survey.of_kind("agreeing", cases))
    assert len(agreeing) == 68
    assert agreeing == [one for one in ordered(cases) if voter(one).kind == "agreeing"]
    assert 8 <= sum(one.truth for one in agreeing[:25]) <= 17, "both classes are among the first"
    found = survey.counted(cases)
    assert found["files"] == 100
    assert found["kinds"] == {"agreeing": 68, "disagreeing": 18, "unenrolled": 14}
    assert found["disagreeing"]["count"] == 86, "where there is no vote there is no disagreement"
    assert found["right"]["disagreeing"]["count"] == 18
    assert 0 < found["right"]["disagreeing"]["hits"] < 18


def test_votes_are_kept_and_spares_asked_only_as_far_as_needed(tmp_path: Path) -> None:
    cases, spares = [case(number) for number in range(1, 31)], [case(number) for number in range(31, 131)]
    doubled = [case(1000 + 5 * number, "patient 5") for number in range(1, 7)]  # of a patient who is there already
    voter = Voter()
    survey = Survey(voter, tmp_path / "survey.jsonl", "f")
    of_files = list(survey.of_kind("disagreeing", cases))
    assert len(of_files) == 6
    assert set(voter.asked) == {one.key for one in cases}
    wanted = 8
    found = [one for _, one in zip(range(wanted), survey.of_kind("disagreeing", cases, spares + doubled), strict=False)]
    assert found[:6] == of_files
    assert len(found) == len({one.group for one in found}) == wanted
    assert 0 < survey.counted(spares)["files"] < len(spares)
    assert not set(voter.asked) & {one.key for one in doubled}
    assert set(voter.asked.values()) == {1}
    again = Survey(lambda one: pytest.fail(one.key), tmp_path / "survey.jsonl", "f")
    assert list(again.of_kind("disagreeing", cases)) == of_files


def test_long_votes_go_on_until_enough_are_confirmed(tmp_path: Path) -> None:
    """Of sixteen candidates a few are not what the quick vote said; they cost a vote, and others take their place."""
    pictures = {one.key: one for one in [base(50, 0.0), *BASES]}
    candidates = [Case(key, 0, key, lambda _bits: pytest.fail("was read")) for key in pictures]

    def confirmed(test: Soundness, wanted: int) -> list[Base]:
        return falsify.confirm(test, "agreeing", iter(candidates), lambda one: pictures[one.key], wanted)

    test = soundness(tmp_path)
    found = confirmed(test, 4)
    assert len(test.of_kind(found, "agreeing")) == 4
    assert found[0].key == "picture 50"
    assert test.confirm(found)["picture 50"] == "undecided"
    everything = confirmed(test, 1000)
    assert [one.key for one in everything] == list(pictures), "and where there are not enough, all there are"


def test_attempts_on_disagreeing_bases_are_enough_to_mean_something() -> None:
    assert falsify.attempts_on_disagreeing(2000, 30) == 210
    assert falsify.attempts_on_disagreeing(2000, 25) == 200
    assert falsify.attempts_on_disagreeing(20, 30) == 90, "three on each"
    assert falsify.attempts_on_disagreeing(2000, 0) == 0


@pytest.mark.slow
def test_a_control_stands_beside_the_result_and_not_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    folder = write_small(tmp_path / "bundle", size=16, repeats=2)

    def drawn(first: int, count: int) -> list[Case]:
        made = [phantom.make(first + n, opacity=bool(n % 2), rows=64, columns=64) for n in range(count)]
        return [Case(f"{first + n}", n % 2, f"{first + n}", lambda _bits, one=one: one) for n, one in enumerate(made)]

    # With a budget of some grey levels, unlike the small guard's own: there must be something to attack with.
    guard = GUARD.model_copy(update={"eps": 0.004})
    enrol_small(folder, images=[read(one.make(12))[0] for one in drawn(9000, 60)], guard=guard)
    words = dict.fromkeys(("task", "description", "data_source", "intended_use", "splits"), "Toys.")
    recipe = Recipe(
        "phantom",
        ("a", "b"),
        0.1,
        (12,),
        Settings(),
        lambda *_: drawn(100, 12),
        spares=lambda _: drawn(500, 3),
        **words,
    )
    monkeypatch.setitem(RECIPES, "phantom", recipe)
    places = ["--bundle", folder, "--work", tmp_path / "work", "--results", tmp_path / "results", "--threads", "1"]
    argv = ["phantom", *map(str, places), "--bases", "3", "--disagreeing", "2", "--attempts", "4", "--draws", "300"]
    work, results = tmp_path / "work" / "small", tmp_path / "results"

    def lines(name: str) -> int:
        return len((work / f"soundness-{name}.jsonl").read_text().splitlines())

    for place in range(2):
        assert falsify.main([*argv, "--survey-only", "--shard", f"{place}/2"]) == 0
        assert lines("survey") == 6 * (place + 1)
    assert falsify.main([*argv, "--survey-only"]) == 0
    surveyed = lines("survey")
    assert falsify.main([*argv, "--confirm-only", "--shard", "0/2"]) == 0
    part = lines("bases")
    assert falsify.main([*argv, "--confirm-only", "--shard", "1/2"]) == 0
    assert 0 < part < lines("bases")
    assert falsify.main([*argv, "--confirm-only"]) == 0
    confirmed = lines("bases")
    assert not results.exists()
    assert falsify.main([*argv, "--shard", "0/2"]) == 0
    assert not results.exists()
    assert falsify.main(argv) == 0
    assert (lines("survey"), lines("bases")) == (surveyed, confirmed)
    (written,) = results.iterdir()
    assert written.name == "soundness-phantom.json"
    text = written.read_text()
    found = json.loads(text)
    assert "argv" not in found, "an argument may be a path of this machine"
    assert found["command"].endswith("--draws 300")
    assert len(found["fingerprint"]) >= 32
    assert len(found["enrolment"]) == 64
    assert found["attempts_by_kind"]["agreeing"] == 4
    assert found["selection"]["test_files"]["files"] == 12
    assert sum(found["selection"]["quick_then_long"].values()) == sum(found["bases"].values()) >= 3

    assert falsify.main([*argv, "--budget", "0.03"]) == 0
    assert written.read_text() == text
    control = json.loads((results / "soundness-phantom-control-0.03.json").read_text())
    assert control["control"]
    assert control["sound"] is None
    assert control["command"].endswith("--budget 0.03")
    assert lines("bases") == confirmed
    eps = str(found["terms"]["eps"])
    assert falsify.main([*argv, "--budget", eps]) == 1, "with the certificate's own budget it would be no control"
    assert len(list(results.iterdir())) == 2
