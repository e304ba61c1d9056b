"""A bundle's model card: what it is, what it was made of, and what was measured, in a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicomguard.lab.figures import worded
from dicomguard.lab.recipes import Recipe
from dicomguard.scoring.calibration import Calibration


def text(recipe: Recipe, folder: Path, calibration: Calibration, reports: Sequence[dict[str, Any]]) -> str:
    """Markdown for docs/README.md of the bundle."""
    training = _training(folder / "docs" / "training.json")
    lines = [
        f"# {recipe.name}",
        "",
        f"{recipe.task}: {recipe.labels[0]} or {recipe.labels[1]}. {recipe.description}",
        "",
        f"**Meant for**: {recipe.intended_use}",
        "",
        f"**Data**: {recipe.data_source}",
        "",
        f"**Splits**: {recipe.splits}",
        "",
        "## Training",
        "",
        (
            f"`scripts/train {recipe.name}`. Chosen on validation: epoch {training.get('epoch', '?')}, balanced "
            f"accuracy {training.get('balanced_accuracy', float('nan')):.3f}; AUROC of the noise check on "
            f"early-stopped BIM {training.get('auroc', float('nan')):.3f} ({training.get('flipped', 0)} files that "
            f"flip, of {training.get('attacked', 0)} attacked)."
        ),
        "",
        "## Calibration",
        "",
        (
            f"Alpha {calibration.alpha:g} on the {calibration.source}; {calibration.images[0]} set the references, "
            f"{calibration.images[1]} the threshold {calibration.threshold:.4f}. Margin floor "
            f"{calibration.margin_floor:.4f}. Paper theta (2 std of {calibration.paper_images} correctly classified "
            f"images): {', '.join(f'{theta:.4f}' for theta in calibration.paper_theta)} at 1 to 5 % noise."
        ),
        "",
        "## Test, measured on files",
        "",
        (
            f"`scripts/bench bundle {recipe.name}`. Flagged = would be quarantined (over the threshold, or low "
            "margin). Early-stopped BIM on correctly classified test images, at native resolution, rounded to stored "
            "bits; only files that still flip count."
        ),
    ]
    for report in reports:
        lines += ["", f"### {report['bits']} stored bits", "", *_table(report)]
    lines += [
        "",
        "## Limits",
        "",
        (
            "- The check is statistical. It is not a proof, and an attacker who knows it and optimises through it "
            "(expectation over the noise) can pass; no such attack is part of these figures."
        ),
        "- Attacks of a larger, fixed strength, other attack families and other scanners were not measured here.",
        "- Test images come from the same source as the calibration ones. On another source expect lower accuracy",
        "  and more alarms: calibrate on the site.",
        (
            "- An image that the classifier finds hard is flagged far more often than others (see the rows on "
            "misclassified and least confident images)."
        ),
        *(f"- {limit}" for limit in recipe.limits),
        "",
    ]
    return "\n".join(lines)


def _table(report: dict[str, Any]) -> list[str]:
    band = report["clean_band"]
    paper = report["paper"][report["paper_level"]]
    rows = [
        ("accuracy on clean test files", worded(report["accuracy"])),
        ("attacked files that flip and are flagged (TPR)", worded(report["attacked_flagged"])),
        ("... over the threshold, without the margin rule", worded(report["attacked_over_threshold"])),
        ("clean files flagged (FPR)", worded(report["clean_flagged"])),
        (
            "95 % beta-binomial band for that count",
            f"{band['low']} to {band['high']} of {band['count']}: {'inside' if band['inside'] else '**outside**'}",
        ),
        ("clean and correctly classified, flagged", worded(report["clean_flagged_correct"])),
        ("clean and misclassified, flagged", worded(report["clean_flagged_misclassified"])),
        ("clean, least confident fifth, flagged", worded(report["clean_flagged_least_confident_fifth"])),
        (f"paper theta at {report['paper_level'] + 1} % noise, TPR", worded(paper["attacked"])),
        ("... FPR on correctly classified", worded(paper["clean_correct"])),
        ("attacked images", str(report["attacked"])),
        ("flipped before rounding", worded(report["flipped"])),
        ("still flipped as files, of those", worded(report["survived_rounding"])),
        ("undetected successes of all attacked", worded(report["undetected_success"])),
        ("AUROC of the score; of low confidence alone", _pair(report["auroc"], report["auroc_low_confidence_alone"])),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _pair(first: float | None, second: float | None) -> str:
    return "none to count" if first is None or second is None else f"{first:.4f}; {second:.4f}"


def _training(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
