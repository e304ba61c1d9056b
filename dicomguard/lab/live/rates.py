"""What the live path found, with denominators: TPR | FPR at the node's own thresholds, ROC, and latency.

"Flagged" means that an image alone would be quarantined under the default policy, as everywhere in this project. Of
attacked files those count whose answer had changed once they were stored; the others are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicomguard.enrol.intervals import clopper_pearson
from dicomguard.enrol.ranks import auroc
from dicomguard.lab.figures import share
from dicomguard.lab.live.accounts import Account, Status, latency_s

Floats = NDArray[np.float64]
_DRAWS: Final = 1000
_UNNAMED: Final = "unnamed attack"


def summary(accounts: Sequence[Account]) -> dict[str, Any]:
    """All figures as plain values for JSON."""
    clean = [one for one in accounts if one.row.truth == "clean"]
    by_attack: dict[str, list[Account]] = {}
    for one in accounts:
        if one.row.truth == "attacked":
            by_attack.setdefault(one.row.attack or _UNNAMED, []).append(one)
    counts = Counter(one.status for one in accounts)
    return {
        "files": len(accounts),
        "accounted": sum(one.is_accounted for one in accounts),
        "statuses": {status.value: counts[status] for status in Status},
        "arrived_twice": sum(one.records > 1 for one in accounts),
        "decided_by_another_bundle": sum(one.is_other_model for one in accounts),
        "thresholds": _thresholds(accounts),
        "clean": _group(clean),
        "attacks": {name: _attack(of, clean) for name, of in by_attack.items()},
        "latency": _latency(accounts),
    }


def _attack(accounts: Sequence[Account], clean: Sequence[Account]) -> dict[str, Any]:
    working = [one for one in accounts if one.row.is_attack]
    strengths = [one.row.eps for one in working if one.row.eps is not None]
    return {
        **_group(working),
        "eps": [min(strengths), max(strengths)] if strengths else None,
        "roc": _roc(working, clean),
        "not_flipped": _group([one for one in accounts if not one.row.is_attack]),
    }


def _group(accounts: Sequence[Account]) -> dict[str, Any]:
    decided = [one for one in accounts if one.is_decided]
    held: dict[str, bool] = {}
    for one in decided:
        uid = str(one.decision.study_instance_uid) if one.decision else one.row.study_instance_uid
        held[uid] = held.get(uid, False) or one.status is Status.QUARANTINED
    return {
        "files": len(accounts),
        "decided": len(decided),
        "scored": len(_statistics(decided)),
        "flagged": share([one.is_flagged for one in decided]),
        "studies_held": share(list(held.values())),
    }


def _statistics(accounts: Sequence[Account]) -> Floats:
    return np.array([one.statistic for one in accounts if one.statistic is not None], np.float64)


def roc_points(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates of "statistic at least t" for every t, from (0, 0) to (1, 1)."""
    cuts = np.unique(np.concatenate([positives, negatives]))[::-1]
    false = np.array([0.0, *((negatives >= cut).mean() for cut in cuts)])
    true = np.array([0.0, *((positives >= cut).mean() for cut in cuts)])
    return false, true


def _roc(working: Sequence[Account], clean: Sequence[Account]) -> dict[str, Any] | None:
    """Area with a bootstrap interval over studies, whose images are no independent draws.

    Where not one pair is the wrong way round (or every one is) a bootstrap sees no spread: then the interval is exact
    for as many disjoint pairs of studies as there are.
    """
    sides = [_by_study(working), _by_study(clean)]
    if not all(sides):
        return None
    positives, negatives = (np.concatenate(side) for side in sides)
    area = auroc(negatives, positives)
    assert area is not None  # a study is there for an image that was scored
    pairs = min(map(len, sides))
    low, high = clopper_pearson(round(area * pairs), pairs) if area in (0.0, 1.0) else _bootstrapped(*sides)
    false, true = roc_points(positives, negatives)
    return {
        "area": area,
        "interval": [low, high],
        "attacked": len(positives),
        "clean": len(negatives),
        "false_positive_rate": false.tolist(),
        "true_positive_rate": true.tolist(),
    }


def _bootstrapped(positives: Sequence[Floats], negatives: Sequence[Floats]) -> tuple[float, float]:
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(_DRAWS):
        attacked, clean = (
            np.concatenate([side[n] for n in random.integers(0, len(side), len(side))])
            for side in (positives, negatives)
        )
        drawn.append(auroc(clean, attacked))
    low, high = np.quantile(np.array(drawn, np.float64), [0.025, 0.975])
    return float(low), float(high)


def _by_study(accounts: Sequence[Account]) -> list[Floats]:
    studies: dict[str, list[float]] = {}
    for one in accounts:
        if one.statistic is not None and one.decision is not None:
            studies.setdefault(str(one.decision.study_instance_uid), []).append(one.statistic)
    return [np.array(values, np.float64) for values in studies.values()]


def _thresholds(accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """Each set of thresholds that decided, with the bundle that it belongs to."""
    found: list[dict[str, Any]] = []
    for one in accounts:
        if one.instance is not None and one.is_decided and one.thresholds is not None:
            values = {name: one.thresholds[name] for name in ("statistic", "alpha", "margin_floor")}
            entry = {"bundle": one.instance.bundle, "fingerprint": one.instance.fingerprint, **values}
            if entry not in found:
                found.append(entry)
    return found


def latencies_s(accounts: Sequence[Account]) -> Floats:
    """One value for each decision that has a file of the set."""
    decisions = {one.decision.decision_id: one.decision for one in accounts if one.is_decided and one.decision}
    return np.array([latency_s(decision) for decision in decisions.values()], np.float64)


def _latency(accounts: Sequence[Account]) -> dict[str, Any] | None:
    found = latencies_s(accounts)
    if not len(found):
        return None
    p50, p95 = (float(np.quantile(found, q)) for q in (0.5, 0.95))
    return {
        "decisions": len(found),
        "p50_s": p50,
        "p95_s": p95,
        "min_s": float(found.min()),
        "max_s": float(found.max()),
    }
