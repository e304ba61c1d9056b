"""The page on results that are made up: what it shows, and above all what it does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dicomguard.lab import promises_page, targets
from dicomguard.scoring.calibration import STATISTIC

FINGERPRINT = "ab" * 32


def rate(hits: int, count: int) -> dict[str, Any]:
    return {"hits": hits, "count": count, "rate": hits / count, "interval": [0.1, 0.9]}


def row(rule: str, alpha: float | None, band: dict[str, Any] | None, hits: int = 280) -> dict[str, Any]:
    attacks = {"BIM": rate(hits, 300), "PGD 0.004": rate(300, 300)}
    return {"rule": rule, "alpha": alpha, "clean": rate(10, 200), "band": band, "passes_clean": 6.5, "attacks": attacks}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Results and bundles; the only bundle, `b`, is enrolled."""
    folder = tmp_path / "bundles" / "b" / "enrolment"
    folder.mkdir(parents=True)
    (folder / "enrolment.json").write_text(json.dumps({"fingerprint": FINGERPRINT}))
    (tmp_path / "results").mkdir()
    return tmp_path / "results", tmp_path / "bundles"


def put(places: tuple[Path, Path], name: str, result: dict[str, Any], **more: Any) -> None:
    sha256 = hashlib.sha256((places[1] / "b" / "enrolment" / "enrolment.json").read_bytes()).hexdigest()
    whole = {"fingerprint": FINGERPRINT, "enrolment": sha256, "command": f"scripts/bench {name}", **result, **more}
    (places[0] / f"{name}.json").write_text(json.dumps(whole))


def score() -> dict[str, Any]:
    inside = {"low": 3, "high": 18, "inside": True}
    rows = [row("as shipped", 0.05, None), row("paper", None, None), row("ours", 0.05, inside)]
    rows += [row("ours", 0.01, {"low": 0, "high": 6, "inside": False}), row("noise check alone", 0.05, inside)]
    loss = {"loss": 0.004, "low": -0.01, "high": 0.02}
    report = {
        "bits": 12,
        "accuracy": rate(190, 200),
        "tried": {"BIM": [310, 305], "PGD 0.004": [300, 300]},
        "rows": rows,
        "cascade_loss": {"0.05": {"BIM": loss}},
        "certificates": None,
    }
    return {"reports": [report], "in_turn": row("as shipped", 0.05, inside) | {"bits": [8, 12]}}


def certificates() -> dict[str, Any]:
    facts = {"sigma": 0.25, "looks": [92], "draws_mean": 99, "seconds_mean": 0.2, "seconds_p95": 0.5, "threads": 2}
    rows = [
        {"eps": eps, "shipped": False, "certified": rate(80, 100), "agrees": rate(90, 100), **facts}
        for eps in (0.004, 0.008, 0.012, 0.016)
    ]
    return {"rows": rows}


def page(places: tuple[Path, Path]) -> str:
    return promises_page.page(*places, ["b"])


def line(text: str, words: str) -> str:
    (found,) = [one for one in text.splitlines() if one.startswith(f"| {words}")]
    return found


def test_a_missed_target_says_by_how_much_and_why(places: tuple[Path, Path]) -> None:
    put(places, "score-b", score())
    put(places, "certificates-b", certificates())
    (places[0] / "reasons.yaml").write_text("b/certificates-0.004: the guard saw few pictures\n")
    text = page(places)
    assert line(text, "certified clean files at eps 0.004").endswith(
        "**no**, by 0.050; the guard saw few pictures (b/certificates-0.004) |"
    )
    assert line(text, "certified clean files at eps 0.008").endswith("| yes |")
    assert line(text, "certified clean files at eps 0.016").endswith("0.800 (80/100, 0.100-0.900) |  |")
    assert "BIM by 0.037; reason not written yet (b/score-tpr-0.05-12)" in text
    assert line(text, "each attack flagged at alpha 0.01, 12 bits").endswith("| yes |")
    assert "4 files above; reason not written yet (b/score-fpr-0.01-12)" in line(
        text, "clean files flagged, calibrated at alpha 0.01"
    )
    assert line(text, "seconds of the guard").endswith("| yes |")
    assert line(text, "passes of the noise check alone").endswith("| 6.5 | yes |")


def test_the_band_as_shipped_is_that_of_the_depths_in_turn(places: tuple[Path, Path]) -> None:
    put(places, "score-b", score())
    text = page(places)
    assert line(text, "clean files flagged as shipped").endswith("| 0.050: 10 of 200, band 3-18 | yes |")
    assert "| as shipped | 0.05 | 0.050 (10/200, 0.100-0.900) |  | 6.5 |" in text
    assert "8 and 12 stored bits in turn 0.050 (10/200, 0.100-0.900) are flagged, band 3-18." in text
    put(places, "score-b", score() | {"in_turn": None})
    assert line(page(places), "clean files flagged as shipped").endswith("| not measured yet |  |")


@pytest.mark.parametrize("changed", [{"fingerprint": "cd" * 32}, {"enrolment": "0" * 64}, {"enrolment": None}])
def test_no_figure_of_another_enrolment_is_shown(places: tuple[Path, Path], changed: dict[str, Any]) -> None:
    put(places, "score-b", score(), **changed)
    put(places, "certificates-b", certificates(), **changed)
    text = page(places)
    assert "*score: measured with another enrolment: run `scripts/bench files b` again.*" in text
    assert "measured with another enrolment" in line(text, "certified clean files at eps 0.004")
    assert "0.800" not in text
    assert "as shipped |" not in text
    assert "yes |" not in text


@pytest.mark.parametrize("kind", ["score", "certificates", "soundness", "speed"])
def test_a_result_of_an_earlier_format_is_no_error_and_no_figure(places: tuple[Path, Path], kind: str) -> None:
    put(places, f"{kind}-b", {})
    put(places, "speed-b-cuda", {"throughput": {"images_per_second": 3}})
    text = page(places)
    assert f"*{kind}: not measured yet as this page needs it" in text
    assert "*card: not measured yet as this page needs it" in text
    assert "yes |" not in text


def test_every_target_is_listed_where_nothing_was_measured(places: tuple[Path, Path]) -> None:
    text = page(places)
    for target in (*targets.of_bundle("b", {}), *targets.of_studies({})):
        assert "not measured yet" in line(text, f"{target.words} |")
    assert text.count("| not measured yet") >= 25


def study(alpha: float, **more: Any) -> dict[str, Any]:
    held = {"promise": True, "one_split": rate(9, 30), "band": [0, 5], "mean_of_splits": 0.09, "inside": False}
    held |= {"studies": 60}
    fewest = {"bim": 1, "pgd4": None, "pgd8": 14, "loud": 1}
    sizes = {
        size: {
            "false_holds": held,
            "fewest": fewest,
            "aim": aim,
            "power_alpha": alpha,
            "fewest_by_reference": {"28": {"bim": None}, "200": {"bim": 4}},
        }
        for size, aim in (("10", 2), ("100", 5), ("500", 12))
    }
    sizes["1"] = {"false_holds": held}
    return {"alpha": alpha, "statistic": STATISTIC, "reference_images": 2000, "sizes": sizes, "command": "x"} | more


def test_studies_say_what_they_miss_and_how_many_references_they_had(places: tuple[Path, Path]) -> None:
    put(places, "study-power-alpha-0.05", study(0.05))
    text = page(places)
    assert "pgd4 never; pgd8 by 2; reason not written yet (studies/power-0.05-500)" in text
    assert "by 4 studies; reason not written yet (studies/hold-0.05-1)" in text
    assert "2000 here" in text
    assert "| 500 | 28 | bim none | 12 |" in text
    put(places, "study-power-alpha-0.05", study(0.05, statistic="an earlier one"))
    text = page(places)
    assert "*studies: measured with another definition of the score" in text
    assert "2000 here" not in text
