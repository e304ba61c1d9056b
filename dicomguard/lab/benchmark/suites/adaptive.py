"""Attacks that know the detector: how often they succeed unseen at each budget, and what being unseen costs them.

The cost factor of a detector is the median, over files that can be attacked at all, of the smallest budget at which the
best single attack succeeded unseen, over that at which the best single attack succeeds, seen or not. A factor of one
says that the detector costs nothing. Beside it the same for all attacks together, on both sides: for somebody who is
told which of dozens of files passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.kinds.adaptive import AGAINST_ALL, AGAINST_GUARD, KNOWING, NEED_GUARD
from dicomguard.lab.benchmark.profile import Profile
from dicomguard.lab.benchmark.suites.planning import (
    ALPHAS,
    Plan,
    Where,
    cell,
    has_guard,
    known_files,
    place_of,
    places,
    why_not,
)
from dicomguard.lab.figures import share

NAME: Final = "adaptive"
BUDGETS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""The largest one must break every check that is no proof, or the attack is too weak."""
_AT_ALL: Final = ("PGD", "EOT-PGD, 8 draws", AGAINST_ALL, AGAINST_GUARD)
"""Made at every budget: one attack that knows nothing, and one on each of the paper's check, ours and the guard."""
_FEWER: Final[Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "EOT-PGD, 32 draws": (0.016,),
        "orthogonal PGD against ours": (0.016,),
        "best of ten EOT-PGD, 8 draws": (0.016,),
        "black-box, accept or reject": (0.016,),
        "black-box, accept or reject by ours": (0.016,),
    }
)
"""Of attacks that take longest."""
_OTHERWISE: Final = (0.008, 0.016)
_REDRAWN: Final = 1000
_CHECKED: Final = ("PGD", "EOT-PGD, 8 draws")
_CHECKED_AT: Final = (0.002, 0.016)


def plan(profile: Profile, where: Where) -> Plan:
    """A cell of judgement for each victim, over all attacks and budgets.

    Raises:
        DicomguardError: a data set is not there.

    """
    cells: dict[str, Cell] = {}
    for place in places(profile, profile.families(NAME), profile.adaptive_sets, where):
        known = known_files(profile, place, where)
        needs = dict(known)
        for attack in profile.some(tuple(KNOWING), _CHECKED):
            if attack in NEED_GUARD and not has_guard(profile, place, where):
                continue
            budgets = BUDGETS if attack in _AT_ALL else _FEWER.get(attack, _OTHERWISE)
            for eps in profile.some(budgets, _CHECKED_AT):
                needs[f"attack: {attack}, eps {eps:g}"] = cell(
                    "adaptive", f"{place}: {attack} {eps:g}", known, attack=attack, eps=eps, cases=profile.adaptive
                )
        cells[place.called("judge")] = cell("judge", f"{place}: judge adaptive attacks", needs, alphas=ALPHAS)
    return Plan(NAME, profile, cells, assemble)


def assemble(results: Mapping[str, Result]) -> dict[str, Any]:
    """By victim: rates at every budget, and cost factors."""
    grid = []
    for name, judged in results.items():
        _, place, _ = place_of(name)
        rows = [row for row in judged["rows"] if row.get("unseen") is not None]
        grid.append(
            {
                **place.facts,
                "accuracy": judged["accuracy"],
                "victim": {part: judged["victim"][part] for part in ("armed", "refusal") if part in judged["victim"]},
                "attacks": judged["attacks"],
                "detectors": {row["detector"]: _detector(row, judged) for row in rows},
                "none_because": {row["detector"]: why_not(row) for row in judged["rows"] if row.get("unseen") is None},
            }
        )
    return {"grid": grid}


def _detector(row: dict[str, Any], judged: dict[str, Any]) -> dict[str, Any]:
    point = row["files"]["theta"] or row["files"]["points"][0]
    attacks = point.get("attacks", {})
    return {
        "clean": point.get("clean"),
        **{what: {name: one[what] for name, one in attacks.items()} for what in ("undetected_success", "detected")},
        "any": any_of(row["unseen"], max(one["tried"] for one in judged["attacks"].values())),
        "cost": cost(judged["succeeded"], row["unseen"]),
    }


def any_of(unseen: Mapping[str, list[str]], tried: int) -> dict[str, Any]:
    """By budget the share of files that some attack of that budget or less changed unseen."""
    smallest = _smallest(unseen)
    budgets = sorted({parted(name)[1] for name in unseen})
    found = {eps: sum(least <= eps for least in smallest.values()) for eps in budgets}
    return {f"{eps:g}": share([True] * hits + [False] * (tried - hits)) for eps, hits in found.items()}


def cost(succeeded: Mapping[str, list[str]], unseen: Mapping[str, list[str]]) -> dict[str, Any]:
    """Median smallest budgets over the files that any attack changed, and their ratio; None where it is beyond all.

    Both mappings: keys of files by `ATTACK, eps BUDGET`. `success`, `undetected`, `factor`: each by the best single
    attack, the latter by `attack`; `pooled`: by all together. `is_least`: half of the files changed at the smallest
    budget already, so that success costs less than that and the factors are larger. `is_most`: an attack that was not
    made at the smallest budgets might have passed there, so that the factor is smaller. `limit`: the largest budget at
    which every attack was made; beyond it nobody knows. `interval`: 95 % of the factors that other such files would
    have given, each as wide as the steps between budgets: from the largest budget that is too small for every attack
    on the detector (nothing, where one of them passed at the first that it was made at), to the smallest that is
    enough for one. None above where nothing bounds them.
    """
    files = set(_smallest(succeeded))
    if not files:
        return {"files": 0, "success": None, "undetected": None, "factor": None, "interval": None}
    budgets: dict[str, list[float]] = {}
    for name, eps in map(parted, succeeded):
        budgets.setdefault(name, []).append(eps)
    smallest, limit = min(map(min, budgets.values())), min(map(max, budgets.values()))
    reached, singly = _singly(succeeded), _singly(unseen)
    success = min(_median(one, files) for one in reached.values())
    medians = {attack: _median(one, files) for attack, one in singly.items()}
    undetected = min(medians.values(), default=math.inf)
    # What passed at the first budget of an attack might have passed below, unless that is the smallest of all.
    hopeful = {
        name: {key: 0.0 if eps == min(budgets[name]) > smallest else eps for key, eps in one.items()}
        for name, one in singly.items()
    }
    keys = {key for one in hopeful.values() for key in one}
    together = {key: min(one[key] for one in hopeful.values() if key in one) for key in keys}
    pooled = _median(_smallest(succeeded), files), _median(_smallest(unseen), files)
    return {
        "files": len(files),
        **_ratio(success, undetected),
        "attack": min(medians, key=medians.__getitem__) if math.isfinite(undetected) else None,
        "is_least": success <= smallest,
        "is_most": math.isfinite(undetected) and min(_median(one, files) for one in hopeful.values()) < undetected,
        "limit": limit,
        "interval": _interval(reached, singly, sorted(files), budgets),
        "pooled": {
            **_ratio(*pooled),
            "is_least": pooled[0] <= smallest,
            "is_most": math.isfinite(pooled[1]) and _median(together, files) < pooled[1],
            "limit": limit,
        },
    }


def _interval(
    succeeded: Mapping[str, Mapping[str, float]],
    unseen: Mapping[str, Mapping[str, float]],
    files: Sequence[str],
    budgets: Mapping[str, Sequence[float]],
) -> list[float | None]:
    """See `cost`; of medians, over files drawn anew. The first two: smallest budgets of each file, by attack.

    Success alone costs what the best attack at it says: one that also hides, and was made at large budgets only, is
    not taken for cheaper below.
    """
    rng = np.random.default_rng(0)
    reached, passed = (
        {attack: np.array([found.get(attack, {}).get(key, math.inf) for key in files]) for attack in budgets}
        for found in (succeeded, unseen)
    )
    lows, highs = [], []
    for _ in range(_REDRAWN):
        drawn = rng.integers(len(files), size=len(files))
        succeeding, passing = _around_medians(reached, drawn, budgets), _around_medians(passed, drawn, budgets)
        too_small, success = min(succeeding, key=lambda one: one[1])
        lows.append(min(seen for seen, _ in passing) / success if math.isfinite(success) else 0.0)
        highs.append(min(unseen for _, unseen in passing) / too_small if too_small > 0 else math.inf)
    low, high = float(np.quantile(lows, 0.025)), float(np.quantile(highs, 0.975, method="higher"))
    return [low, high if math.isfinite(high) else None]


def _around_medians(
    reached: Mapping[str, NDArray[np.float64]], drawn: NDArray[np.int64], budgets: Mapping[str, Sequence[float]]
) -> list[tuple[float, float]]:
    """For each attack the largest budget that is not enough for half of the files, and the smallest that is.

    Nothing, where the smallest budget that it was made at is enough; beyond all, where the largest is not.
    """
    medians = {attack: float(np.median(smallest[drawn])) for attack, smallest in reached.items()}
    return [
        (max((eps for eps in budgets[attack] if eps < median), default=0.0), median)
        for attack, median in medians.items()
    ]


def _singly(names: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
    """By attack the smallest budget at which it reached each file."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, keys in names.items():
        found.setdefault(parted(name)[0], {})[name] = keys
    return {attack: _smallest(members) for attack, members in found.items()}


def _median(reached: Mapping[str, float], files: set[str]) -> float:
    """Beyond all budgets where not even half of the files were reached."""
    return float(np.median([reached.get(key, math.inf) for key in files]))


def _ratio(success: float, undetected: float) -> dict[str, float | None]:
    is_reached = math.isfinite(undetected)
    return {
        "success": success if math.isfinite(success) else None,
        "undetected": undetected if is_reached else None,
        "factor": undetected / success if is_reached else None,
    }


def parted(name: str) -> tuple[str, float]:
    """`ATTACK, eps BUDGET` as both."""
    attack, _, eps = name.rpartition(", eps ")
    return attack, float(eps)


def _smallest(keys: Mapping[str, list[str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, members in keys.items():
        _, eps = parted(name)
        for key in members:
            found[key] = min(found.get(key, math.inf), eps)
    return found
