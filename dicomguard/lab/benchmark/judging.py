"""Every detector over the same clean and attacked files: fitted, calibrated and judged on disjoint groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dicomguard.enrol.cleanset import is_reference
from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.attacking import Attacked
from dicomguard.lab.benchmark.files import Files
from dicomguard.lab.detectors import judge
from dicomguard.lab.detectors.confidence import Confidence
from dicomguard.lab.detectors.guard import GuardShare
from dicomguard.lab.detectors.knn import NearestNeighbours
from dicomguard.lab.detectors.mahalanobis import Mahalanobis
from dicomguard.lab.detectors.mgm import UnimodalGaussian
from dicomguard.lab.detectors.noise_check import Fixed, FixedLevel, NoiseCheck
from dicomguard.lab.detectors.ours import Ours
from dicomguard.lab.detectors.sight import Detector
from dicomguard.lab.detectors.squeezing import FeatureSqueezing
from dicomguard.lab.detectors.stages import victim_layers
from dicomguard.lab.figures import share
from dicomguard.scoring.scorer import Scorer

_MIDDLE = 2  # the place of 3 % among the noise levels of one to five


def detectors(scorer: Scorer, *, has_guard: bool) -> list[Callable[[], Detector]]:
    """All that need no attacked files to be fitted; the paper's check chooses its level by those of validation."""

    def log_odds(pixels: Any) -> Any:
        return scorer.log_odds(pixels)

    found: list[Callable[[], Detector]] = [
        NoiseCheck,
        lambda: Ours(scorer.noise, with_guard=has_guard),
        lambda: FixedLevel(Fixed.PROBABILITY, _MIDDLE),
        lambda: FixedLevel(Fixed.LOGIT, _MIDDLE),
        lambda: FixedLevel(Fixed.MARGIN),
        lambda: Mahalanobis(victim_layers(scorer)),
        NearestNeighbours,
        UnimodalGaussian,
        lambda: FeatureSqueezing(log_odds),
        Confidence,
    ]
    if has_guard:
        found[2:2] = [lambda: Ours(scorer.noise, with_guard=False), GuardShare]
    return found


def judge_all(
    scorer: Scorer,
    calibration: Files,
    clean: Files,
    validation: Attacked | None,
    attacks: Mapping[str, Attacked],
    shifts: Mapping[str, Files],
    *,
    alphas: Sequence[float] = judge.ALPHAS,
    tell: Callable[[float], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row for each detector: `files` and `floats`, what it makes of attacks after rounding and before.

    `shifts`: clean files with a natural change; a row counts the false alarms on each at the first alpha's threshold,
    the paper's check at its theta. `unseen`: keys of the files that an attack changed without being seen there.

    A third of the calibration's groups fit a detector, the others set its threshold. A detector that cannot be fitted
    on this victim has a row that says why.
    """
    reference = np.array([is_reference(group) for group in calibration.groups], bool)
    fitted_on, held_back = calibration.only(reference), calibration.only(~reference)
    has_guard = bool(len(calibration)) and calibration.sight.evidence[0].guard_share is not None
    rows = []
    makers = detectors(scorer, has_guard=has_guard)
    for place, make in enumerate(makers):
        detector = make()
        row = _row(detector, calibration, fitted_on, held_back, clean, validation, attacks, shifts, alphas)
        rows.append({"detector": detector.name, **row})
        tell((place + 1) / len(makers))
    return rows


def _row(
    detector: Detector,
    calibration: Files,
    fitted_on: Files,
    held_back: Files,
    clean: Files,
    validation: Attacked | None,
    attacks: Mapping[str, Attacked],
    shifts: Mapping[str, Files],
    alphas: Sequence[float],
) -> dict[str, Any]:
    chosen_by = None if validation is None or validation.files is None else validation.files.sight
    # The paper's theta is twice the spread of all that is answered rightly; nothing else of its check is learned.
    is_paper = isinstance(detector, NoiseCheck)
    learned = calibration.only(calibration.right) if is_paper else fitted_on
    try:
        detector.fit(learned.sight, chosen_by)
    except DicomguardError as error:
        return {"none_because": str(error)}
    seen = judge.Clean(clean.keys, detector.scores(clean.sight), clean.right, clean.margins)
    bars = held_back if not is_paper else calibration
    theta = detector.theta if isinstance(detector, NoiseCheck) else None
    calibrated = detector.scores(bars.sight)
    found: dict[str, Any] = {}
    for kind in ("files", "floats"):
        of_kind = {name: _attacked(detector, one, kind) for name, one in attacks.items()}
        found[kind] = judge.judge(detector.name, calibrated, seen, of_kind, alphas=alphas, theta=theta)
    bar = theta if theta is not None else found["files"]["points"][0].get("threshold")
    found["shifts"] = (
        {}
        if bar is None
        else {name: share(judge.flags(detector.scores(one.sight), bar)) for name, one in shifts.items()}
    )
    found["unseen"] = {} if bar is None else {name: _unseen(detector, one, bar) for name, one in attacks.items()}
    if isinstance(detector, NoiseCheck):
        found["level"] = detector.level
        found["thetas"] = detector.thetas.tolist()
    return found


def _attacked(detector: Detector, one: Attacked, kind: str) -> judge.Attacked:
    """Scores of what succeeded; the others have none, and are counted as attempts only."""
    files = one.files if kind == "files" else one.floats
    hits = np.array([a.succeeded if kind == "files" else a.flipped for a in one.attempts], bool)
    scores = np.full(len(hits), -np.inf)
    if files is not None:
        scores[hits] = detector.scores(files.sight)
    return judge.Attacked(tuple(a.key for a in one.attempts), scores, hits)


def _unseen(detector: Detector, one: Attacked, bar: float) -> list[str]:
    if one.files is None:
        return []
    seen = judge.flags(detector.scores(one.files.sight), bar)
    return [key for key, is_seen in zip(one.files.keys, seen, strict=True) if not is_seen]


def described(one: Attacked) -> dict[str, Any]:
    """Success rates with their denominators, sizes and seconds of an attack."""
    linf = np.array([a.linf for a in one.attempts if a.flipped])
    l2 = np.array([a.l2 for a in one.attempts if a.flipped])
    return {
        "tried": len(one.attempts),
        "flipped": sum(a.flipped for a in one.attempts),
        "succeeded": sum(a.succeeded for a in one.attempts),
        "survived": sum(a.succeeded and a.flipped for a in one.attempts),
        "linf_median": float(np.median(linf)) if len(linf) else None,
        "l2_median": float(np.median(l2)) if len(l2) else None,
        "seconds_an_image": float(np.mean([a.seconds for a in one.attempts])) if one.attempts else None,
    }
