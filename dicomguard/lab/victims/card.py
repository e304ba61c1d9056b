"""A victim's model card, from its training.json."""

from __future__ import annotations

from typing import Any

from dicomguard.lab.data import Collection
from dicomguard.lab.figures import worded


def text(report: dict[str, Any], collection: Collection) -> str:
    """What it is, what it was trained on, how good it is on files, and what that does not show."""
    hardening = report["hardening"]
    lines = [
        f"# {report['name']}",
        "",
        f"A victim for experiments: {' or '.join(collection.labels)}. Not a medical device; not for diagnosis.",
        "",
        (
            f"**Network**: {report['victim']}, in place of {report['stands_in_for']['network'] or 'none'}. "
            f"{report['reduction'] or 'Nothing is reduced against the paper.'}"
        ),
        "",
        f"**Weights that training began with**: {report['weights']}.",
        "",
        f"**Data**: {collection.source}"
        + (f" Stands in for {collection.stands_in_for}." if collection.stands_in_for else ""),
        "",
        f"**Chosen by**: {report['chosen_by']}, {report['chosen_figure']:.3f}.",
        "",
    ]
    if hardening is not None:
        lines += [
            (
                f"**Adversarial training**: PGD, eps {hardening['eps']:g}, {hardening['steps']} steps of "
                f"{hardening['relative_step']:g} eps, on {hardening['share']:.0%} of each batch."
            ),
            "",
        ]
    lines += ["## On files", "", "| | validation | test |", "|---|---|---|"]
    both = report["validation"], report["test"]
    lines.append(f"| accuracy | {worded(both[0]['accuracy'])} | {worded(both[1]['accuracy'])} |")
    lines += [
        f"| recall of {label} | {worded(both[0]['recall'][label])} | {worded(both[1]['recall'][label])} |"
        for label in collection.labels
    ]
    lines.append(f"| AUC | {_area(both[0]['auc'])} | {_area(both[1]['auc'])} |")
    lines += ["", f"Pictures by split: {_counts(report['counts'])}.", "", "## Limits", ""]
    lines += [f"- {limit}" for limit in collection.limits] or ["- Measured on pictures of the same source only."]
    lines += ["", "## How it was made", "", f"`{report['command'] or 'dicomguard.lab.victims'}`, seed "]
    lines[-1] += f"{report['seed']}, {report['seconds']:g} s on {report['device']} with {report['threads']} thread(s); "
    lines[-1] += ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."
    return "\n".join([*lines, ""])


def _area(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "not defined"
    if found["interval"] is None:
        return f"{found['value']:.3f}"
    low, high = found["interval"]
    return f"{found['value']:.3f} (95 % bootstrap interval {low:.3f}-{high:.3f})"


def _counts(counts: dict[str, dict[str, int]]) -> str:
    return "; ".join(
        f"{split} " + ", ".join(f"{count} {label}" for label, count in by_label.items())
        for split, by_label in counts.items()
    )
