"""A replay in words and tables: Markdown for people, beside the JSON and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dicomguard.lab.figures import worded
from dicomguard.lab.live.accounts import Account

_MOST = 20


def page(found: dict[str, Any], accounts: Sequence[Account], *, picture: str, command: str) -> str:
    """The page. `found`: `rates.summary` of the accounts; `picture`: a file beside it."""
    lines = [
        "# What the node did with a forged set",
        "",
        f"{found['accounted']} of {found['files']} files are accounted for.",
        "",
        "| where | files |",
        "|---|---|",
        *(f"| {status} | {count} |" for status, count in found["statuses"].items()),
        f"| on record twice (counted above) | {found['arrived_twice']} |",
        "",
        f"![ROC, scores and latency]({picture})",
        "",
        "## Detection on the live path",
        "",
        "Flagged: the image alone would be quarantined (SUSPECT or INCONCLUSIVE). Only attacks that changed the answer",
        "of the stored file count as attacks. Intervals of rates are exact (Clopper-Pearson, 95 %), those of areas are",
        "bootstrapped over studies, or, where no pair is the wrong way round, exact over disjoint pairs of studies.",
        "",
        "| files | strength | flagged (TPR; clean: FPR) | studies held | area under the ROC |",
        "|---|---|---|---|---|",
        _line("clean", found["clean"], "", ""),
        *(_attack_line(name, attack) for name, attack in found["attacks"].items()),
        *(
            _line(f"{name}, answer unchanged", attack["not_flipped"], "", "")
            for name, attack in found["attacks"].items()
            if attack["not_flipped"]["files"]
        ),
        "",
        *_thresholds(found),
        *_latency(found),
        *_missing(accounts),
        f"Made by `{command}`.",
        "",
    ]
    return "\n".join(lines)


def _line(name: str, group: dict[str, Any], strength: str, area: str) -> str:
    undecided = group["files"] - group["decided"]
    flagged = worded(group["flagged"]) + (f"; {undecided} not decided" if undecided else "")
    return f"| {name} | {strength} | {flagged} | {worded(group['studies_held'])} | {area} |"


def _attack_line(name: str, attack: dict[str, Any]) -> str:
    low, high = attack["eps"] or (None, None)
    strength = "" if low is None else f"{low:g}" if low == high else f"{low:g} to {high:g}"
    roc = attack["roc"]
    area = "" if roc is None else f"{roc['area']:.3f} ({roc['interval'][0]:.3f}-{roc['interval'][1]:.3f})"
    return _line(name, attack, strength, area)


def _thresholds(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Decided by bundle {one['bundle']} ({one['fingerprint'][:16]}): threshold {one['statistic']:.4g} at alpha"
        f" {one['alpha']:g}, margin floor {one['margin_floor']:.4g}."
        for one in found["thresholds"]
    ]
    if found["decided_by_another_bundle"]:
        lines.append(
            f"**{found['decided_by_another_bundle']} files were decided by another bundle than the one that was"
            " attacked: these are transferred attacks.**"
        )
    return [*lines, ""] if lines else []


def _latency(found: dict[str, Any]) -> list[str]:
    latency = found["latency"]
    if latency is None:
        return []
    words = (
        f"From a study's first image to its decision, by the ledger's times: median {latency['p50_s']:.2f} s, 95 %"
        f" within {latency['p95_s']:.2f} s, longest {latency['max_s']:.2f} s ({latency['decisions']} decisions). The"
        " quiet time that the node waits for late images (`study.quiet_s`) is part of it, and so is the wait in line of"
        " studies that were sent faster than they were scored."
    )
    return ["## Latency", "", words, ""]


def _missing(accounts: Sequence[Account]) -> list[str]:
    missing = [one for one in accounts if not one.is_accounted]
    if not missing:
        return []
    more = f" The first {_MOST}:" if len(missing) > _MOST else ""
    return [
        "## Not accounted for",
        "",
        f"{len(missing)} files.{more}",
        "",
        *(f"- `{one.row.path or one.row.sop_instance_uid}`: {one.status}; {one.note}" for one in missing[:_MOST]),
        "",
    ]
