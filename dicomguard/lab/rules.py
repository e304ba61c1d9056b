"""Rules of detection over what was looked at once: ours in parts and whole, the paper's, and confidence alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomguard.enrol.enrolling import plan
from dicomguard.lab.figures import beta_binomial_band, share
from dicomguard.lab.specimens import Looked, margin_of
from dicomguard.scoring import calibration
from dicomguard.scoring.calibration import COMPONENTS, NOISE_COMPONENTS, Calibration, smallest_margin
from dicomguard.scoring.consistency import Draw, NoiseSettings, curve

Flags = Callable[[Looked], bool]
_BOOTSTRAPS = 10_000
_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class Rule:
    """A named way to flag a file. `held_back`: calibration files behind its threshold, None where there is no alpha."""

    name: str
    flags: Flags
    held_back: int | None
    passes: Callable[[Looked], int]


def fitted(name: str, fit: Calibration) -> Rule:
    """The rule of a calibration: over the threshold, or low margin."""

    def flags(looked: Looked) -> bool:
        return fit.flags(fit.statistic_of(looked.evidence)[0], smallest_margin(looked.evidence.seen))

    def passes(looked: Looked) -> int:
        return 1 + len(fit.stages[fit.statistic_of(looked.evidence)[1]].draws)

    return Rule(name, flags, fit.images[1], passes)


def single(name: str, value: Callable[[Looked], float], held_back: Sequence[Looked], alpha: float) -> Rule:
    """One number against its conformal threshold; larger is more suspicious."""
    scores = sorted(value(one) for one in held_back)
    threshold = scores[math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9) - 1]
    # Infinite: no number to go by, which no threshold passes.
    return Rule(name, lambda one: not value(one) <= min(threshold, _LARGEST), len(scores), lambda _: 1)


def rules(
    settings: NoiseSettings, reference: Sequence[Looked], held_back: Sequence[Looked], alpha: float
) -> list[Rule]:
    """All rules at one alpha, fitted on the calibration split."""
    has_guard = reference[0].evidence.guard_share is not None
    # As in an enrolment, whose reference has a say in what the guard takes for enrolled: all of it gets a vote.
    voted = [one.evidence for one in reference if not math.isnan(one.evidence.guard_share or 0.0)]
    parts = voted, [one.evidence for one in held_back]
    whole = COMPONENTS if has_guard else tuple(c for c in COMPONENTS if c != "guard_share")

    def fit(stages: Sequence[Sequence[Draw]], used: Sequence[str]) -> Calibration:
        return calibration.fit(*parts, alpha=alpha, plan=stages, used=used)

    ladder = [settings.ladder()]
    found = [
        fitted("ours", fit(plan(settings), whole)),
        fitted("ours, whole ladder", fit(ladder, whole)),
        fitted("noise check alone", fit(plan(settings), NOISE_COMPONENTS)),
        fitted("noise check alone, whole ladder", fit(ladder, NOISE_COMPONENTS)),
        *(
            fitted(f"{name.replace('_', ' ')} alone, whole ladder", fit(ladder, (name,)))
            for name in NOISE_COMPONENTS[:2]
        ),
        single("feature distance alone", _distance, held_back, alpha),
        single("confidence alone", lambda one: -margin_of(one), held_back, alpha),
    ]
    if has_guard:
        found.insert(-1, single("guard's vote share alone", _dissent, held_back, alpha))
    return found


def paper(theta: Sequence[float], level: int) -> Rule:
    """The noise-consistency paper: the probability drop at one level against 2 std of it."""
    return Rule(
        f"paper: theta at {level + 1} % noise",
        lambda one: bool(curve(one.evidence.seen).probability_drops[:, level].max() > theta[level]),
        None,
        lambda one: 1 + len(one.evidence.seen.draws),
    )


def _dissent(one: Looked) -> float:
    share = one.evidence.guard_share
    return math.inf if share is None or math.isnan(share) else -share


def _distance(one: Looked) -> float:
    return float(one.evidence.distances.max()) if one.evidence.distances is not None else 0.0


def row(
    rule: Rule,
    alpha: float,
    clean: Sequence[Looked],
    attacked: Mapping[str, Sequence[Looked]],
    *,
    is_exchangeable: bool = True,
) -> dict[str, Any]:
    """One line of the table: false alarms with their band, TPR on each attack, mean passes.

    No band where the clean files are not like those behind the threshold (`is_exchangeable`).
    """
    flags = np.array([rule.flags(one) for one in clean], bool)
    right = np.array([one.evidence.seen.answer == (one.truth,) for one in clean], bool)
    band = None
    if rule.held_back is not None and is_exchangeable:
        low, high = beta_binomial_band(rule.held_back, alpha, len(clean))
        band = {"low": low, "high": high, "inside": bool(low <= flags.sum() <= high)}
    return {
        "rule": rule.name,
        "alpha": alpha if rule.held_back is not None else None,
        "clean": share(flags),
        "clean_answered_rightly": share(flags[right]),
        "clean_answered_wrongly": share(flags[~right]),
        "band": band,
        "passes_clean": float(np.mean([rule.passes(one) for one in clean])) if len(clean) else None,
        "attacks": {name: share([rule.flags(one) for one in files]) for name, files in attacked.items()},
    }


def paired_loss(
    full: Rule, short: Rule, attacked: Mapping[str, Sequence[Looked]], seed: int = 2026
) -> dict[str, dict[str, float]]:
    """TPR of the whole ladder minus that of the cascade, on the same files: mean and 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, files in attacked.items():
        gap = np.array([full.flags(one) for one in files], float) - np.array([short.flags(one) for one in files], float)
        if len(gap):
            drawn: NDArray[np.float64] = rng.choice(gap, (_BOOTSTRAPS, len(gap))).mean(1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            found[name] = {"loss": float(gap.mean()), "low": float(low), "high": float(high)}
    return found
