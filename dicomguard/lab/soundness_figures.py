"""What a soundness test found, in counts and exact intervals; see `soundness` for what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from scipy import stats

from dicomguard.attacks.joint import Budget
from dicomguard.lab.figures import share
from dicomguard.lab.majority import Terms

_TOO_MANY = 1e-3  # so unlikely a number of unconfirmed certificates that the guard's alpha cannot be what it says


def report(
    bases: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], terms: Terms, budget: Budget
) -> dict[str, Any]:
    """Counts and rates of judged bases and attempts, as journal rows.

    Only attempts on agreeing bases on which the node asked the guard count as `judged` in (a); what contradicts a
    confirmed base that disagreed is no less a fault, and stands in `from_disagreeing`. `sound` is None where nothing
    was tested, or where the budget is not the certificate's.
    """
    agreeing = [row for row in rows if row["kind"] == "agreeing"]
    disagreeing = [row for row in rows if row["kind"] == "disagreeing"]
    flips = [row for row in agreeing if row["flipped"]]
    a, elsewhere = _contradictions(agreeing, terms.alpha), _contradictions(disagreeing, terms.alpha)
    control, is_larger = budget.eps != terms.eps, budget.eps > terms.eps
    is_kept = all(one["certified_again"] == 0 and one["binomial_p"] > _TOO_MANY for one in (a, elsewhere))
    return {
        "terms": asdict(terms),
        "budget": asdict(budget),
        "control": control,
        "bases": dict(Counter(row["kind"] for row in bases)),
        "clean_outcomes": {
            kind: dict(Counter(row["outcome"] for row in bases if row["kind"] == kind))
            for kind in sorted({row["kind"] for row in bases})
        },
        "attempts": len(rows),
        "attempts_by_kind": dict(Counter(row["kind"] for row in rows)),
        "flipped": share([row["flipped"] for row in agreeing]),
        "largest_change": max((row["change"] for row in rows), default=0),
        "a": a | {"falsifications": None if is_larger else a["certified_again"]},
        "from_disagreeing": elsewhere,
        "b": _rates(disagreeing, lambda row: row["flipped"] and row["outcome"] == "CERTIFIED"),
        "c": _rates(agreeing, lambda row: row["flipped"] and row["outcome"] == "UNCERTIFIED" and row["passes"]),
        "undetected": _rates(agreeing, lambda row: row["flipped"] and row["passes"]),
        "flips_by_outcome": dict(Counter(row["outcome"] for row in flips)),
        "by_tactic": {
            str(tactic): {
                "flipped": share([row["flipped"] for row in agreeing if row["tactic"] == tactic]),
                "passed": share([row["flipped"] and row["passes"] for row in agreeing if row["tactic"] == tactic]),
            }
            for tactic in sorted({row["tactic"] for row in agreeing})
        },
        "sound": None if control or not a["judged"] else is_kept,
    }


def _contradictions(rows: Sequence[dict[str, Any]], alpha: float) -> dict[str, Any]:
    """Certificates against G of the base among what the guard was asked about, and how likely chance makes so many."""
    judged = [row for row in rows if row["judged"] and row["outcome"] != "UNENROLLED"]
    contradicting = sum(row["contradicts"] for row in judged)
    chance = float(stats.binom.sf(contradicting - 1, len(judged), alpha)) if contradicting else 1.0
    return {
        "judged": len(judged),
        "contradicting": contradicting,
        "certified_again": sum(row["again"] for row in judged),
        "expected_by_chance": len(judged) * alpha,
        "binomial_p": chance,
    }


def _rates(rows: Sequence[dict[str, Any]], hit: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Of all attempts, of those that flipped the model, and of bases on which at least one attempt succeeded.

    Attempts on one base resemble each other, so only the last has an honest interval over images.
    """
    hits = {row["base"] for row in rows if hit(row)}
    return {
        "of_attempts": share([hit(row) for row in rows]),
        "of_flips": share([hit(row) for row in rows if row["flipped"]]),
        "of_bases": share([base in hits for base in sorted({row["base"] for row in rows})]),
    }
