"""Sections of the report on tables as the suites assemble them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dicomguard.lab.benchmark.shifts import UNCHANGED
from dicomguard.lab.benchmark.suites import adaptive, certified, natural
from dicomguard.lab.figures import share
from dicomguard.lab.report import further_sections

VICTIM = {
    "training": {"data_set": "blobs", "stands_in_for": {"data_set": None}, "limits": ["Blobs are no patients."]},
    "armed": "shadow",
    "refusal": "too few flips.",
}


def rated(hits: int, count: int = 20) -> dict[str, Any]:
    return share([True] * hits + [False] * (count - hits))


def shifted(hits: int, without_vote: int = 0) -> dict[str, Any]:
    return {**rated(hits), "before": rated(1), "gained": hits, "lost": 1, "without_vote": without_vote}


def open_row(name: str) -> dict[str, Any]:
    return {"detector": name, "files": {"theta": None, "points": [{"none_because": "too few files"}]}, "shifts": None}


def test_natural_change_says_who_has_no_threshold_and_whose_files_get_no_vote(tmp_path: Path) -> None:
    shifts = {UNCHANGED: shifted(2), "files of stripes": shifted(20, without_vote=20)}
    judged = {
        "accuracy": rated(250, 300),
        "shifted_accuracy": {UNCHANGED: rated(19)},
        "rows": [
            {"detector": "ours", "shifts": shifts},
            {"detector": "low margin", "shifts": shifts},
            open_row("Mahalanobis"),
        ],
    }
    found = natural.assemble({"judge/toy/blobs/0": judged})
    page = "\n".join(further_sections.natural(found, tmp_path))
    assert "| as they are | 95.0 (19/20) | 5.0 (1/20) | 5.0 (1/20) |" in page, "of the same files"
    assert "| files of stripes | - | 100.0 (20/20) (+20 -1) no vote | 100.0 (20/20) (+20 -1) |" in page
    assert "**Mahalanobis** is not judged here: too few files" in page
    assert (tmp_path / "natural-toy-blobs-0.png").exists()


def test_certificates_say_what_was_not_looked_at_and_of_which_pictures(tmp_path: Path) -> None:
    parts = {name: rated(12) for name in ("certified", "certified_right", "agrees")}
    numbers = {"eps": 0.004, "sigma": 0.25, "alpha": 1e-6, "looks": [100], "draws_mean": 100.0}
    seconds = {"seconds_mean": 0.2, "seconds_p95": 0.3}
    cell = {**parts, **numbers, **seconds, "by_answer": {"ill": rated(6)}, "unenrolled": rated(3), "victim": VICTIM}
    found = certified.assemble({"certified/toy/blobs/0/0.004": cell})
    page = "\n".join(further_sections.certified(found, tmp_path))
    assert "| 15.0 (3/20) | 100 |" in page
    assert "Blobs are no patients." in page


def test_budgets_stand_in_order_and_plain_attacks_count(tmp_path: Path) -> None:
    names = [f"{attack}, eps {eps:g}" for attack, eps in (("EOT", 0.016), ("PGD", 0.002), ("PGD", 0.032))]
    passed = dict(zip(names, (4, 0, 20), strict=True))
    attacks = {name: {"undetected_success": rated(hits), "detected": rated(20 - hits)} for name, hits in passed.items()}
    unseen = {name: [str(key) for key in range(hits)] for name, hits in passed.items()}
    judged = {
        "accuracy": rated(19),
        "victim": VICTIM,
        "attacks": {name: {"tried": 20, "succeeded": 20} for name in names},
        "succeeded": {name: [str(key) for key in range(20)] for name in names},
        "rows": [
            {
                "detector": "ours",
                "unseen": unseen,
                "files": {"theta": None, "points": [{"clean": rated(1), "attacks": attacks}]},
            },
            {**open_row("Mahalanobis"), "unseen": None},
        ],
    }
    found = adaptive.assemble({"judge/toy/blobs/0": judged})
    page = "\n".join(further_sections.adaptive(found, tmp_path))
    assert "Self-test of the victim: shadow: too few flips.\n" in page
    assert "| attack | eps 0.002 | eps 0.016 | eps 0.032 |" in page
    assert "Broken (90% undetected) by PGD, eps 0.032, beyond 0.016." in page
    assert "**Mahalanobis** is not judged here: too few files" in page
