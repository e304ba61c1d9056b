from __future__ import annotations

import math

import numpy as np
import pytest

from dicomguard.lab import rules
from dicomguard.lab.specimens import Looked, margin_of
from dicomguard.scoring.calibration import Evidence
from dicomguard.scoring.consistency import NoiseSettings, Observation, curve

SETTINGS = NoiseSettings((0.01, 0.03, 0.05), 2)
LADDER = SETTINGS.ladder()
STRENGTHS = np.array([SETTINGS.levels[level] for level, _ in LADDER])


def looked(rng: np.random.Generator, key: str, *, is_attacked: bool = False, has_guard: bool = True) -> Looked:
    odds = np.array([[0.0, rng.gamma(4, 1)]])
    noisy = odds + 20 * STRENGTHS[:, None, None] * rng.normal(0, 1, (len(LADDER), 1, 2))
    if is_attacked:
        noisy[..., 1] -= 12
    share = rng.binomial(64, 0.2 if is_attacked else 0.97) / 64 if has_guard else None
    return Looked(key, 1, Evidence(Observation(odds, noisy, LADDER), rng.chisquare(5, 1), share), None)


def clean(seed: int, count: int, **options: bool) -> list[Looked]:
    rng = np.random.default_rng(seed)
    return [looked(rng, f"{seed}-{n}", **options) for n in range(count)]


@pytest.fixture(scope="module")
def fitted() -> list[rules.Rule]:
    return rules.rules(SETTINGS, clean(1, 40), clean(2, 60), 0.1)


def test_every_rule_has_a_name_of_its_own_and_the_same_held_back_files(fitted: list[rules.Rule]) -> None:
    names = [rule.name for rule in fitted]
    assert len(set(names)) == len(names) == 9
    assert {rule.held_back for rule in fitted} == {60}
    assert "guard's vote share alone" in names
    without = rules.rules(SETTINGS, clean(1, 40, has_guard=False), clean(2, 60, has_guard=False), 0.1)
    assert [rule.name for rule in without] == [name for name in names if "vote share" not in name]


def test_clean_files_are_seldom_flagged_and_attacked_ones_often(fitted: list[rules.Rule]) -> None:
    fresh, attacked = clean(3, 60), clean(4, 20, is_attacked=True)
    for rule in fitted:
        line = rules.row(rule, 0.1, fresh, {"BIM": attacked, "nothing": []})
        assert line["clean"]["count"] == 60
        assert line["clean"]["rate"] < 0.3
        assert line["band"]["low"] <= 6 <= line["band"]["high"]
        assert line["attacks"]["nothing"]["count"] == 0
        if rule.name.startswith("ours") or "noise check" in rule.name:
            assert line["attacks"]["BIM"]["rate"] == 1
    by_name = {rule.name: rule for rule in fitted}
    assert by_name["guard's vote share alone"].flags(attacked[0])
    assert 1 < rules.row(by_name["ours"], 0.1, fresh, {})["passes_clean"] < 7
    assert rules.row(by_name["ours, whole ladder"], 0.1, fresh, {})["passes_clean"] == 7
    assert rules.row(by_name["confidence alone"], 0.1, fresh, {})["passes_clean"] == 1


def test_answers_that_were_right_are_told_from_wrong_ones(fitted: list[rules.Rule]) -> None:
    files = clean(5, 20)
    wrong = [Looked(one.key, 0, one.evidence, None) for one in clean(6, 10)]
    line = rules.row(fitted[0], 0.1, files + wrong, {})
    assert line["clean_answered_rightly"]["count"] == 20
    assert line["clean_answered_wrongly"]["count"] == 10


def test_a_single_number_is_held_against_its_conformal_threshold() -> None:
    held_back = clean(7, 19)
    rule = rules.single("margin", lambda one: -margin_of(one), held_back, 0.1)
    ranked = sorted(-margin_of(one) for one in held_back)
    assert [rule.flags(one) for one in held_back] == [-margin_of(one) > ranked[17] for one in held_back]
    assert sum(map(rule.flags, held_back)) == 1


def test_the_papers_rule_looks_at_one_level() -> None:
    (one,) = clean(8, 1)
    drop = float(curve(one.evidence.seen).probability_drops[0, 1])
    below = rules.paper((math.inf, drop - 1e-9, math.inf), 1)
    above = rules.paper((-math.inf, drop + 1e-9, -math.inf), 1)
    assert below.flags(one)
    assert not above.flags(one)
    assert below.held_back is None
    assert rules.row(below, 0.1, [one], {})["alpha"] is None
    assert below.passes(one) == 7


def test_a_loss_is_paired_and_has_an_interval() -> None:
    files = clean(9, 40)
    everything = rules.Rule("all", lambda _: True, None, lambda _: 1)
    half = rules.Rule("half", lambda one: int(one.key.split("-")[1]) % 2 == 0, None, lambda _: 1)
    found = rules.paired_loss(everything, half, {"BIM": files, "nothing": []})
    assert set(found) == {"BIM"}
    assert found["BIM"]["loss"] == 0.5
    assert 0.3 < found["BIM"]["low"] < 0.5 < found["BIM"]["high"] < 0.7
    assert rules.paired_loss(half, half, {"BIM": files})["BIM"] == {"loss": 0, "low": 0, "high": 0}
