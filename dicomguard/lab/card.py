"""A bundle's model card: what it is, what it was made of, and what was measured, in a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dicomguard.enrol import statement
from dicomguard.lab.figures import worded
from dicomguard.lab.recipes import Recipe
from dicomguard.scoring.enrolment import Enrolment


def write(recipe: Recipe, folder: Path, enrolment: Enrolment, result: dict[str, Any] | None = None) -> None:
    """Write docs/README.md of the bundle; `result` as scripts/bench files writes it, None where it was not run yet."""
    card = folder / "docs" / "README.md"
    card.parent.mkdir(exist_ok=True)
    card.write_text(_text(recipe, folder, enrolment, result))


def _text(recipe: Recipe, folder: Path, enrolment: Enrolment, result: dict[str, Any] | None) -> str:
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
        "## Test, measured on files",
        "",
    ]
    if result is None:
        lines += [f"Not measured with this enrolment yet: `scripts/bench files {recipe.name}`."]
    else:
        lines += [
            f"`{result['command']}`, with the enrolment that is shipped. Flagged = would be quarantined. Attacks on",
            "correctly classified test images, at native resolution, rounded to stored bits; only files whose answer",
            "still differs count. More rules and certificates: docs/promises.md.",
        ]
        for report in result["reports"]:
            lines += ["", f"### {report['bits']} stored bits", "", *_table(report)]
        if result.get("in_turn"):
            row = result["in_turn"]
            band, depths = row["band"], " and ".join(map(str, row["bits"]))
            lines += [
                "",
                f"Clean test files of {depths} stored bits in turn, as in the enrolment: flagged",
                f"{worded(row['clean'])}, 95 % beta-binomial band {band['low']} to {band['high']}: {_inside(band)}.",
            ]
    lines += ["", statement.page(enrolment).replace("\n## ", "\n### ").replace("# What", "## What", 1)]
    lines += [
        "",
        "## Limits",
        "",
        (
            "- The score is statistical, and an attacker who knows it and optimises through it (expectation over the "
            "noise) can pass; no such attack is part of these figures. Proven is only what the guard certifies."
        ),
        "- Other attack families, adaptive attacks and other scanners were not measured here.",
        "- Test images come from the same source as the calibration ones. On another source expect lower accuracy",
        "  and more alarms: calibrate on the site.",
        (
            "- An image that the classifier finds hard is flagged far more often than others: a wrong answer most of "
            "all."
        ),
        *(f"- {limit}" for limit in recipe.limits),
        "",
    ]
    return "\n".join(lines)


def _table(report: dict[str, Any]) -> list[str]:
    shipped, paper = report["rows"][:2]
    band = shipped["band"]
    inside = "none for one depth, see below"
    if band is not None:
        inside = f"{band['low']} to {band['high']} of {shipped['clean']['count']}: {_inside(band)}"
    rows = [
        ("accuracy on clean test files", worded(report["accuracy"]), ""),
        ("clean files flagged (FPR)", worded(shipped["clean"]), worded(paper["clean"])),
        ("95 % beta-binomial band for that count", inside, ""),
        ("clean and answered rightly, flagged", *_both(shipped, paper, "clean_answered_rightly")),
        ("clean and answered wrongly, flagged", *_both(shipped, paper, "clean_answered_wrongly")),
        *(
            (f"{name}, flagged (TPR)", worded(found), worded(paper["attacks"][name]))
            for name, found in shipped["attacks"].items()
        ),
    ]
    lines = [f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows]
    return [f"| | as shipped, alpha {shipped['alpha']:g} | {paper['rule']} |", "|---|---|---|", *lines]


def _both(shipped: dict[str, Any], paper: dict[str, Any], name: str) -> tuple[str, str]:
    return worded(shipped[name]), worded(paper[name])


def _inside(band: dict[str, Any]) -> str:
    return "inside" if band["inside"] else "**outside**"


def _training(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
