from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab.figures import share
from dicomguard.lab.report import further_sections, page, reproduced


def rated(hits: int, count: int = 100) -> dict[str, Any]:
    return share([True] * hits + [False] * (count - hits))


def row(detector: str, tpr: dict[str, int], fpr: int, *, theta: bool = False) -> dict[str, Any]:
    at = {"attacks": {name: {"detected": rated(hits)} for name, hits in tpr.items()}, "strata": {"correct": rated(fpr)}}
    judged = {"theta": at if theta else None, "points": [at]}
    return {"detector": detector, "files": judged, "floats": judged}


def on_test(accuracy: int, recall: int = 93, area: float = 0.97) -> dict[str, Any]:
    return {"accuracy": rated(accuracy), "recall": {"ill": rated(97), "well": rated(recall)}, "auc": {"value": area}}


def noise(early: int, confident: int, own: int) -> dict[str, Any]:
    tpr = {"early-stopped BIM": early, "DeepFool": early, "PGD 0.008": confident}
    rows = [
        row("noise check of the paper", tpr, 4, theta=True),
        row("noise check of the paper, at the promised rate", tpr, 5),
        row("ours", {**tpr, "PGD 0.008": own}, 5),
        row("Mahalanobis", dict.fromkeys(tpr, 50), 5),
    ]
    rows[0]["level"] = 2
    at_level = {kind: {name: rated(hits) for name, hits in tpr.items()} for kind in ("files", "floats")}
    rows[0]["levels"] = [{**at_level, "correct": rated(4)}] * 5
    one = {"family": "toy", "data_set": "blobs", "seed": 0, "attacks": {name: {} for name in tpr}, "rows": rows}
    one |= {"random_noise": {"0.16": rated(2)}, "victim": {"training": {"test": on_test(95)}}}
    return {"grid": [one]}


def claims(found: dict[str, Any]) -> dict[str, reproduced.Claim]:
    return {claim.id: claim for claim in reproduced._noise_consistency(found)}


def test_a_claim_holds_within_three_points_and_not_beyond() -> None:
    assert claims(noise(94, 20, 90))["noise-consistency/floats-toy"].holds
    missed = claims(noise(92, 20, 90))["noise-consistency/floats-toy"]
    assert missed.holds is False
    assert missed.measured.startswith("92.0 | 4.0")


def test_ours_must_find_more_than_the_paper() -> None:
    assert claims(noise(97, 20, 40))["ours/toy-PGD-0.008"].holds
    assert claims(noise(97, 20, 20))["ours/toy-PGD-0.008"].holds is None, "as many is not more"
    assert claims(noise(97, 20, 24))["ours/toy-PGD-0.008"].holds is None, "nor are a few more"
    assert claims(noise(97, 40, 20))["ours/toy-PGD-0.008"].holds is False
    assert claims(noise(97, 100, 100))["ours/toy-PGD-0.008"].holds, "nobody finds more than all"
    assert claims(noise(97, 100, 90))["ours/toy-PGD-0.008"].holds is False
    at_rate = noise(97, 20, 40)
    tpr = {"early-stopped BIM": 97, "DeepFool": 97, "PGD 0.008": 70}
    at_rate["grid"][0]["rows"][1] = row("noise check of the paper, at the promised rate", tpr, 5)
    assert claims(at_rate)["ours/toy-PGD-0.008"].holds is False, "nor less than the paper's check at the same rate"
    at_best = noise(97, 20, 40)
    levels = at_best["grid"][0]["rows"][0]["levels"]
    levels[4] = {kind: {name: rated(70) for name in tpr} for kind in ("files", "floats")} | {"correct": rated(4)}
    assert claims(at_best)["ours/toy-PGD-0.008"].holds is False, (
        "nor less than at the level that is best for the attack"
    )
    assert "40.0 | 5.0 against 20.0 | 4.0, 20.0 | 5.0, 70.0 | 4.0" in claims(at_best)["ours/toy-PGD-0.008"].measured


def test_the_papers_own_way_takes_the_best_level_of_each_attack() -> None:
    found = noise(90, 20, 40)
    assert claims(found)["noise-consistency/best-toy"].holds is False
    levels = found["grid"][0]["rows"][0]["levels"]
    levels[3] = {"floats": {"early-stopped BIM": rated(99)}, "files": {}, "correct": rated(5)}
    levels[4] = {"floats": {"DeepFool": rated(97)}, "files": {}, "correct": rated(3)}
    assert claims(found)["noise-consistency/best-toy"].measured == "98.0 | 4.0 (2 of 2 cells)"
    assert claims(found)["noise-consistency/best-toy"].holds
    assert claims(found)["noise-consistency/floats-toy"].holds is False


def test_victims_that_a_node_would_not_arm_are_named() -> None:
    found = noise(97, 20, 40)
    assert "arm" not in claims(found)["ours/toy-PGD-0.008"].measured
    found["grid"][0]["victim"]["armed"] = "shadow"
    assert claims(found)["ours/toy-PGD-0.008"].measured.endswith("a node would not arm it for blobs")


def test_a_handful_of_successes_does_not_enter_a_mean() -> None:
    found = noise(97, 20, 40)
    paper = found["grid"][0]["rows"][0]
    paper["floats"]["points"][0]["attacks"]["DeepFool"]["detected"] = rated(0, 9)
    paper["floats"]["theta"] = paper["floats"]["points"][0]
    assert claims(found)["noise-consistency/floats-toy"].measured == "97.0 | 4.0 (1 of 2 cells)"


def test_a_victim_that_a_check_cannot_judge_is_counted_and_said() -> None:
    found = noise(97, 20, 40)
    other = noise(97, 20, 40)["grid"][0] | {"data_set": "stripes"}
    paper, _, own, distance = other["rows"]
    for missing in (paper, own, distance):
        del missing["files"], missing["floats"]
    found["grid"].append(other)
    told = claims(found)
    assert told["noise-consistency/floats-toy"].measured == "97.0 | 4.0 (2 of 4 cells)"
    assert told["noise-consistency/best-toy"].measured == "97.0 | 4.0 (2 of 4 cells)"
    assert told["ours/toy-PGD-0.008"].measured.endswith("100 files of 1 of 2 victims")
    assert told["noise-consistency/mahalanobis"].measured.endswith("of 200 successes, floats (2 cells of 4)")


def test_mahalanobis_is_compared_on_the_same_cells_and_by_an_interval() -> None:
    assert claims(noise(97, 20, 40))["noise-consistency/mahalanobis"].holds
    assert claims(noise(53, 20, 40))["noise-consistency/mahalanobis"].holds is None
    assert claims(noise(20, 20, 40))["noise-consistency/mahalanobis"].holds is False


def test_fusing_must_not_lose_what_a_part_finds() -> None:
    found = noise(97, 20, 98)
    assert claims(found)["ours/parts-toy"].holds
    vote = row("guard's vote share", {"early-stopped BIM": 97, "DeepFool": 97, "PGD 0.008": 100}, 5)
    found["grid"][0]["rows"].append(vote)
    told = claims(found)["ours/parts-toy"]
    assert told.holds
    assert (
        told.measured
        == "3 of 3 cells; at worst 98.0 (98/100) against 100.0 (100/100) (PGD 0.008 on blobs, guard's vote share)"
    )
    found["grid"][0]["rows"][2] = row("ours", {"early-stopped BIM": 97, "DeepFool": 97, "PGD 0.008": 96}, 5)
    assert claims(found)["ours/parts-toy"].holds is None
    found["grid"][0]["rows"][2] = row("ours", {"early-stopped BIM": 97, "DeepFool": 97, "PGD 0.008": 60}, 5)
    assert claims(found)["ours/parts-toy"].holds is False


def test_seeds_are_no_further_evidence() -> None:
    found = noise(97, 20, 24)
    found["grid"] = [found["grid"][0] | {"seed": seed} for seed in range(8)]
    assert claims(found)["ours/toy-PGD-0.008"].holds is None
    assert claims(found)["ours/toy-7-PGD-0.008"].holds is None


def test_victims_random_noise_and_the_promised_rate_are_claims() -> None:
    found = noise(97, 20, 21)
    assert claims(found)["noise-consistency/accuracy-toy"].holds
    assert claims(found)["noise-consistency/random-noise"].holds
    assert "ours/promised-rate" not in claims(found), "there is no band"
    one = found["grid"][0]
    one["random_noise"]["0.16"] = rated(9)
    one["victim"]["training"]["test"] = on_test(95, recall=80)
    own = next(row for row in one["rows"] if row["detector"] == "ours")
    at = own["files"]["points"][0]
    at |= {"band": {"low": 1, "high": 9}, "alpha": 0.05, "calibrated_on": 300, "clean": rated(30, 200)}
    assert claims(found)["noise-consistency/accuracy-toy"].holds is False
    assert claims(found)["noise-consistency/random-noise"].holds is False
    assert claims(found)["ours/promised-rate"].holds is False
    assert claims(found)["ours/promised-rate"].measured == "0 of 1: not toy on blobs"
    at["clean"] = rated(0, 200)
    assert claims(found)["ours/promised-rate"].holds, "fewer than promised is no fault"
    one["victim"]["training"]["test"] = on_test(95, area=0.9)
    assert claims(found)["noise-consistency/accuracy-toy"].holds is False


@pytest.mark.parametrize(
    ("interval", "holds"),
    [((2.0, 8.0), True), ((2.0, None), True), ((1.0, 4.0), None), ((0.5, 1.9), False), ((0.0, None), None)],
)
def test_an_interval_that_has_both_tells_nothing(interval: tuple[float, float | None], holds: bool | None) -> None:
    assert reproduced._costs_enough({"interval": interval}) is holds


@pytest.mark.parametrize(("success", "words"), [(0.004, "at least 8.0"), (0.032, "at least 1.0"), (None, "be told")])
def test_what_nobody_passes_costs_more_than_was_tried(success: float | None, words: str) -> None:
    cost = {"factor": None, "success": success, "limit": 0.032, "is_least": False, "is_most": False}
    assert further_sections.factor(cost).endswith(words)
    assert further_sections.factor({**cost, "interval": [4.0, None]}).endswith("(4.0 to any)")


def joel(
    nothing: int,
    detected: int,
    hardened: int,
    *,
    noise: int = 2,
    more: tuple[float, float] = (-0.02, 0.02),
    published: int = 80,
) -> dict[str, Any]:
    def one(victim: str, protocol: str, accuracy: int) -> dict[str, Any]:
        rate = hardened if victim == "hardened" else nothing
        test = {
            "accuracy": rated(accuracy),
            "flagged": rated(detected),
            "clean_flagged": rated(2),
            "more": {"mean": 0.0, "interval": [-0.01, 0.01]},
            "victim": rated(rate, 200),
            "combined": {"A1": detected / 100},
        }
        quiet = {**test, "flagged": rated(noise), "more": {"mean": (noise - 2) / 100, "interval": more}}
        tests = {"BIM 0.004": test, "BIM 0.008": test, "random noise 0.004": test, "random noise 0.006": quiet}
        row = {"detector": "LR detector", "reductions": ["small"], "clean_flagged": rated(2), "tests": tests}
        facts = {"data_set": "blobs", "task": "brain_mri", "seed": 0, "victim": victim, "protocol": protocol}
        taught = {"taught_on": {"attack": "BIM", "eps": 0.006}, "clean_accuracy": rated(97)}
        return {**facts, **taught, "rows": [row]}

    grid = [one("plain", "paper", published), one("plain", "closed", 70), one("hardened", "closed", 70)]
    return {"grid": grid, "taught_on": {"blobs": 0.006}, "table_2": ["BIM", 0.004]}


def joel_claims(**found: Any) -> dict[str, bool | None]:
    return {claim.id.removeprefix("joel2023/"): claim.holds for claim in reproduced._joel(joel(**found))}


def test_an_attack_that_takes_nothing_judges_no_defence() -> None:
    attacked = joel_claims(nothing=102, detected=75, hardened=160)
    assert attacked == {
        "paper-LR": True,
        "noise-blobs": True,
        "baseline-blobs": True,
        "defence-blobs": True,
        "hardened-blobs": True,
    }
    idle = joel_claims(nothing=192, detected=75, hardened=193)
    assert idle["baseline-blobs"] is False, "what their attack does to the victim does not reproduce"
    assert idle["defence-blobs"] is None
    assert idle["hardened-blobs"] is None, "one picture more is no difference"
    assert joel_claims(nothing=102, detected=55, hardened=160)["defence-blobs"] is None, "inside of the interval"
    assert joel_claims(nothing=102, detected=40, hardened=160)["defence-blobs"] is False


def test_accuracies_outside_of_the_papers_range_do_not_reproduce_and_noise_is_not_to_be_flagged() -> None:
    assert joel_claims(nothing=102, detected=75, hardened=160, published=60)["paper-LR"] is False
    assert joel_claims(nothing=102, detected=75, hardened=160, published=100)["paper-LR"] is False
    assert joel_claims(nothing=102, detected=75, hardened=160, noise=40, more=(0.3, 0.45))["noise-blobs"] is False
    assert joel_claims(nothing=102, detected=75, hardened=160, noise=5, more=(-0.1, 0.2))["noise-blobs"] is None
    little = joel_claims(nothing=102, detected=75, hardened=160, noise=6, more=(0.001, 0.09))
    assert little["noise-blobs"] is None, "one of five by chance"


def test_what_does_not_hold_has_its_reason_or_says_that_it_has_none() -> None:
    page = "".join(
        reproduced.section({"noise-consistency": noise(92, 20, 21)}, {"noise-consistency/floats-toy": "it is a toy"})
    )
    assert "**no**: it is a toy (noise-consistency/floats-toy)" in page
    assert "**no**: reason not written yet (noise-consistency/files-toy)" in page
    assert "".join(reproduced.section({"certified": {"grid": []}}, {})) == ""


def test_an_adaptive_attack_must_break_the_paper_within_the_budget() -> None:
    def found(at: dict[str, int], changed: int = 100) -> reproduced.Claim:
        unseen = {f"EOT, eps {eps}": rated(hits) for eps, hits in at.items()} | {"PGD, eps 0.016": rated(3)}
        one = {
            "family": "toy",
            "data_set": "blobs",
            "seed": 0,
            "victim": {},
            "attacks": {name: {"tried": 100, "succeeded": changed} for name in unseen},
            "detectors": {"noise check of the paper": {"undetected_success": unseen}},
        }
        (claim,) = reproduced._adaptive({"grid": [one]})
        return claim

    assert found({"0.008": 40, "0.016": 95}).holds
    assert "EOT, eps 0.016" in found({"0.008": 40, "0.016": 95}).measured
    assert found({"0.008": 40, "0.016": 80, "0.032": 99}).holds is False, "beyond the budget it does not count"
    assert found({"0.016": 70}, changed=80).holds is None, "what cannot be changed cannot pass unseen"


@pytest.mark.parametrize(("largest", "holds"), [(95, True), (80, None)])
def test_attacks_that_break_nothing_say_nothing(largest: int, holds: bool | None) -> None:
    cost = {"files": 9, "factor": 4.0, "success": 0.004, "is_least": False, "is_most": False, "interval": [2.0, 8.0]}
    unseen = {"EOT, eps 0.016": rated(30), "PGD, eps 0.032": rated(largest)}
    one = {
        "family": "toy",
        "data_set": "blobs",
        "seed": 1,
        "victim": {"armed": "shadow"},
        "attacks": {name: {"tried": 100, "succeeded": 100} for name in unseen},
        "detectors": {
            name: {"undetected_success": unseen, "cost": cost} for name in ("noise check of the paper", "ours")
        },
    }
    _, claim = reproduced._adaptive({"grid": [one]})
    assert (claim.id, claim.holds) == ("adaptive/cost-toy-blobs-1", holds)
    assert ("not even the largest budget" in claim.measured) is (holds is None)
    assert "a node would not arm it" in claim.measured
    verdict = further_sections._verdict("ours", unseen)
    assert ("too weak" in verdict) is (holds is None)
    assert ("Broken (90% undetected) by PGD, eps 0.032, beyond" in verdict) is (holds is True)


def test_attacks_on_the_shipped_certificates_keep_their_three_rates_apart() -> None:
    one = {
        "bundle": "toy",
        "terms": {"eps": 0.004},
        "attempts": 200,
        "a": {
            "judged": 90,
            "falsifications": 0,
            "contradicting": 1,
            "expected_by_chance": 9e-05,
            "binomial_p": 9e-05,
        },
        "b": {"of_flips": rated(44)},
        "c": {"of_flips": rated(2)},
        "undetected": {"of_flips": rated(7)},
    }
    page = "".join(further_sections.soundness([one]))
    assert "| toy | 0.004 | 200 | 1 | 9e-05 expected, p 9e-05 | 0 of 90 | 44.0" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| toy |"))
    rates = row.split(" | ")[-3:]
    assert [one.split()[0] for one in rates] == ["44.0", "2.0", "7.0"]
    assert "Not measured here" in "".join(further_sections.soundness([]))


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "cannot be read"), ("{", "cannot be read"), ("{}", "of another version")]
)
def test_tables_that_are_none_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "lab-natural-cpu.json").write_text(text)
    with pytest.raises(DicomguardError, match=words):
        page.read(tmp_path, "natural", "cpu")
    assert page.read(tmp_path, "adaptive", "cpu") is None
