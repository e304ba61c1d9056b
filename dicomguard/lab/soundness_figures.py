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
    """Counts and rates of judged bases and attempts, as journal rows. `sound` is None where nothing was tested."""
    agreeing = [row for row in rows if row["kind"] == "agreeing"]
    disagreeing = [row for row in rows if row["kind"] == "disagreeing"]
    flips = [row for row in agreeing if row["flipped"]]
    judged = [row for row in rows if row["judged"] and row["kind"] != "undecided"]
    contradicting = sum(row["contradicts"] for row in judged)
    falsified = sum(row["again"] for row in judged)
    chance = float(stats.binom.sf(contradicting - 1, len(judged), terms.alpha)) if contradicting else 1.0
    control = budget.eps > terms.eps
    return {
        "terms": asdict(terms),
        "budget": asdict(budget),
        "control": control,
        "bases": dict(Counter(row["kind"] for row in bases)),
        "clean_certified": share([row["outcome"] == "CERTIFIED" for row in bases]),
        "clean_disagreeing": share([row["kind"] == "disagreeing" for row in bases if row["kind"] != "undecided"]),
        "attempts": len(rows),
        "flipped": share([row["flipped"] for row in agreeing]),
        "largest_change": max((row["change"] for row in rows), default=0),
        "a": {
            "judged": len(judged),
            "contradicting": contradicting,
            "certified_again": falsified,
            "falsifications": None if control else falsified,
            "expected_by_chance": len(judged) * terms.alpha,
            "binomial_p": chance,
        },
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
        "sound": None if control or not flips else falsified == 0 and chance > _TOO_MANY,
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
