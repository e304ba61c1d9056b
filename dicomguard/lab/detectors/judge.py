"""From scores to figures that can be defended: thresholds set on clean files alone, every share with its denominator.

A threshold is fixed on clean calibration files that the detector was not fitted on, and never on what it is then tested
with. False alarms are counted on clean test files, whole and by stratum; detection on attacked files whose answer did
change; and what a hospital cares about, attacks that succeed unseen, on all files that were attacked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.roc import auroc_interval
from dicomguard.lab.figures import beta_binomial_band, share
from dicomguard.scoring.calibration import images_needed

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]

ALPHAS = (0.05, 0.01)
_LOW = 0.2  # the share of clean files with the least confident answers that is counted apart
_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class Clean:
    """Clean test files: `keys`, `scores`, whether the victim was `right`, and its `margins`; all (N,)."""

    keys: tuple[str, ...]
    scores: Scores
    right: Flags
    margins: Scores


@dataclass(frozen=True, slots=True)
class Attacked:
    """Files that one attack was tried on: `keys` of the clean files, `scores`, and whether each `succeeded`; all (N,).

    Succeeded: the answer was right, and is another one after rounding to stored bits.
    """

    keys: tuple[str, ...]
    scores: Scores
    succeeded: Flags


def threshold(calibration: ArrayLike, alpha: float) -> float:
    """The split-conformal threshold: the ceil((n + 1)(1 - alpha))-th smallest score of clean files.

    P(a clean file like them scores more) <= alpha (Vovk 2012). The detector must not have been fitted on them.

    Raises:
        DicomguardError: too few files for `alpha`, NaN among the scores, or more files than alpha allows that the
            detector cannot see.

    """
    scores = np.sort(np.asarray(calibration, np.float64))
    needed = images_needed(alpha)
    if len(scores) < needed:
        raise DicomguardError(
            f"a false-alarm rate of {alpha:g} needs {needed} clean files to set a threshold on, not {len(scores)}.",
            advice="Give more clean files to the calibration split, or take a larger rate.",
        )
    if np.isnan(scores).any():
        raise DicomguardError("a clean file scores NaN.", advice="This detector is broken: it must score infinity.")
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    found = float(scores[rank - 1])
    if math.isinf(found) and found > 0:
        raise DicomguardError(
            f"the detector cannot see {int(np.isinf(scores).sum())} of {len(scores)} clean files: more than {alpha:g}.",
            advice="It has no threshold at this rate; take a larger one, or leave it out for this victim.",
        )
    return found


def flags(scores: ArrayLike, bar: float) -> Flags:
    """True where a score is above the threshold; NaN and infinity always are."""
    found: Flags = ~(np.asarray(scores, np.float64) <= min(bar, _LARGEST))
    return found


def operating_point(
    alpha: float,
    calibration: Scores,
    clean: Clean,
    attacked: Mapping[str, Attacked],
    *,
    exchangeable: bool = True,
    daily: int = 2000,
    prevalence: float = 1e-4,
) -> dict[str, Any]:
    """Threshold at a promised false-alarm rate, and everything that follows from it. JSON-ready.

    `exchangeable`: whether the clean test files are like those of the calibration, so that a band is promised.

    Raises:
        DicomguardError: as `threshold`.

    """
    bar = threshold(calibration, alpha)
    found = _counted(bar, clean, attacked, daily, prevalence)
    band = None
    if exchangeable and len(clean.scores):
        low, high = beta_binomial_band(len(calibration), alpha, len(clean.scores))
        band = {"low": low, "high": high, "inside": bool(low <= found["clean"]["hits"] <= high)}
    return {"alpha": alpha, "calibrated_on": len(calibration), **found, "band": band}


def at_theta(
    theta: float,
    clean: Clean,
    attacked: Mapping[str, Attacked],
    *,
    daily: int = 2000,
    prevalence: float = 1e-4,
) -> dict[str, Any]:
    """The same at a given threshold, such as the noise-consistency paper's 2 std: no rate is promised, so no band."""
    found = _counted(theta, clean, attacked, daily, prevalence)
    return {"alpha": None, "calibrated_on": None, **found, "band": None}


def _counted(
    bar: float, clean: Clean, attacked: Mapping[str, Attacked], daily: int, prevalence: float
) -> dict[str, Any]:
    alarms = flags(clean.scores, bar)
    is_low = low_confidence(clean.margins)
    rate = float(alarms.mean()) if len(alarms) else math.nan
    return {
        "threshold": bar,
        "clean": share(alarms),
        "strata": {
            "correct": share(alarms[clean.right]),
            "misclassified": share(alarms[~clean.right]),
            "low confidence": share(alarms[is_low]),
        },
        "alarms_a_day": {"images": daily, "alarms": None if math.isnan(rate) else rate * daily},
        "attacks": {name: _attack(one, bar, rate, prevalence) for name, one in attacked.items()},
    }


def _attack(one: Attacked, bar: float, false_alarms: float, prevalence: float) -> dict[str, Any]:
    seen = flags(one.scores, bar)
    detected = share(seen[one.succeeded])
    return {
        "success": share(one.succeeded),
        "detected": detected,
        "undetected_success": share(one.succeeded & ~seen),
        "prevalence": prevalence,
        "ppv": None if detected["rate"] is None else ppv(detected["rate"], false_alarms, prevalence),
    }


def low_confidence(margins: Scores) -> Flags:
    """The fifth of the files whose answers are the least certain: |margin| at or below its lowest quintile."""
    size = np.abs(margins)
    found: Flags = size <= np.quantile(size, _LOW) if len(size) else np.zeros(0, bool)
    return found


def ppv(tpr: float, fpr: float, prevalence: float) -> float | None:
    """The share of flagged files that are attacked, at a prevalence of attacks; None where nothing is flagged."""
    flagged = tpr * prevalence + fpr * (1 - prevalence)
    return tpr * prevalence / flagged if flagged > 0 else None


def judge(
    name: str,
    calibration: Scores,
    clean: Clean,
    attacked: Mapping[str, Attacked],
    *,
    alphas: Sequence[float] = ALPHAS,
    theta: float | None = None,
    exchangeable: bool = True,
    seed: int = 2026,
) -> dict[str, Any]:
    """One detector's line of a table. JSON-ready.

    Operating points at each alpha (those for which the calibration files are too few say so), at `theta` where there is
    one, and the AUROC of clean files that were answered rightly against successful attacks, with a bootstrap interval
    that is paired by key.
    """
    points: list[dict[str, Any]] = []
    for alpha in alphas:
        try:
            points.append(operating_point(alpha, calibration, clean, attacked, exchangeable=exchangeable))
        except DicomguardError as error:
            points.append({"alpha": alpha, "none_because": str(error)})
    right = np.asarray(clean.right, bool)
    kept = [key for key, is_right in zip(clean.keys, right, strict=True) if is_right]
    return {
        "detector": name,
        "points": points,
        "theta": None if theta is None else at_theta(theta, clean, attacked),
        "auroc": {
            attack: auroc_interval(
                clean.scores[right],
                one.scores[one.succeeded],
                kept,
                [key for key, hit in zip(one.keys, one.succeeded, strict=True) if hit],
                seed=seed,
            )
            for attack, one in attacked.items()
        },
    }


def combined_accuracy(
    clean_flags: ArrayLike, clean_correct: ArrayLike, attacked_flags: ArrayLike, attacked_correct: ArrayLike
) -> dict[str, float | None]:
    """Victim and detector together, in the three ways that Joel et al. 2023 may be read (Table 2). All (N,) bool.

    `A1`, their formula: correct answers among what passes / (what passes + clean files wrongly rejected); attacked
    files that are rejected vanish from it. `A2`: (correct answers that pass + attacked files rejected) / all. `A3`, the
    share of undetected success: attacked files that pass with a wrong answer / attacked files. The lower, the better.
    None where there is nothing to count.
    """
    rejected, correct = np.asarray(clean_flags, bool), np.asarray(clean_correct, bool)
    caught, still = np.asarray(attacked_flags, bool), np.asarray(attacked_correct, bool)
    if rejected.shape != correct.shape or caught.shape != still.shape:
        raise ValueError("as many flags as answers are needed")
    good = int((~rejected & correct).sum() + (~caught & still).sum())
    passed = int((~rejected).sum() + (~caught).sum())
    return {
        "A1": _ratio(good, passed + int(rejected.sum())),
        "A2": _ratio(good + int(caught.sum()), len(rejected) + len(caught)),
        "A3": _ratio(int((~caught & ~still).sum()), len(caught)),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
