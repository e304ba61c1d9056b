"""Every detector over the same clean and attacked files: fitted, calibrated and judged on disjoint groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

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
from dicomguard.lab.detectors.ours import Enrolled, Ours
from dicomguard.lab.detectors.sight import Detector
from dicomguard.lab.detectors.squeezing import FeatureSqueezing
from dicomguard.lab.detectors.stages import victim_layers
from dicomguard.lab.figures import clustered, share
from dicomguard.scoring.scorer import Scorer

_MIDDLE = 2  # the place of 3 % among the noise levels of one to five
AT_RATE = "noise check of the paper, at the promised rate"
"""The paper's score against a conformal threshold instead of its 2 std, so that it can be compared with the others."""

_LEARN_FEATURES = (Mahalanobis, NearestNeighbours, UnimodalGaussian)

Maker = Callable[[float], Detector]
"""A fresh detector for a promised false-alarm rate; most do not depend on it."""


@dataclass(frozen=True, slots=True)
class Material:
    """What every detector is judged on.

    A third of the groups of the `calibration` (`reference`) fit a detector, the others (`held_back`) set its threshold;
    those that learn features alone have files of the victim's own `training`, seen without noise, as their papers do.
    `validation`: attacked files by which the paper's noise level is chosen. `shifts`: clean test files with a natural
    change.
    """

    training: Files
    calibration: Files
    reference: Files
    held_back: Files
    clean: Files
    validation: Files | None
    attacks: Mapping[str, Attacked]
    shifts: Mapping[str, Files]

    @classmethod
    def of(
        cls,
        training: Files,
        calibration: Files,
        clean: Files,
        validation: Files | None,
        attacks: Mapping[str, Attacked],
        shifts: Mapping[str, Files],
    ) -> Self:
        """Divide the calibration by group."""
        return cls(training, calibration, *divided(calibration), clean, validation, attacks, shifts)

    @property
    def has_guard(self) -> bool:
        """Whether the files were looked at with a guard."""
        return bool(len(self.clean)) and self.clean.sight.evidence[0].guard_share is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        """What of the attacks was looked at: `files`, and `floats` where those were not left out."""
        return ("files", "floats") if all(one.knows_floats for one in self.attacks.values()) else ("files",)


def divided(calibration: Files) -> tuple[Files, Files]:
    """What fits a detector, and what sets its threshold."""
    is_fitted_on = np.array([is_reference(group) for group in calibration.groups], bool)
    return calibration.only(is_fitted_on), calibration.only(~is_fitted_on)


def published(calibration: Files, validation: Files | None) -> NoiseCheck:
    """The paper's check: its level chosen on the reference, its theta from all clean files that are answered rightly.

    A spread promises no rate, and so nothing is held back from it.

    Raises:
        DicomguardError: see `NoiseCheck.fit`.

    """
    reference, _ = divided(calibration)
    found = NoiseCheck()
    found.fit(reference.only(reference.right).sight, None if validation is None else validation.sight)
    whole = NoiseCheck(level=found.level)
    whole.fit(calibration.only(calibration.right).sight)
    found.thetas = whole.thetas
    return found


def makers(scorer: Scorer, *, has_guard: bool) -> list[Maker]:
    """All that need no attacked files to be fitted; the paper's check chooses its level by those of validation."""
    found: list[Maker] = [
        lambda _: NoiseCheck(),
        lambda alpha: Ours(scorer.noise, with_guard=has_guard, alpha=alpha),
        lambda _: FixedLevel(Fixed.PROBABILITY, _MIDDLE),
        lambda _: FixedLevel(Fixed.LOGIT, _MIDDLE),
        lambda _: FixedLevel(Fixed.MARGIN),
        lambda _: Mahalanobis(victim_layers(scorer)),
        lambda _: NearestNeighbours(),
        lambda _: UnimodalGaussian(),
        lambda _: FeatureSqueezing(lambda pixels: scorer.answer(pixels).log_odds),
        lambda _: Confidence(),
    ]
    if has_guard:
        found[2:2] = [lambda alpha: Ours(scorer.noise, with_guard=False, alpha=alpha), lambda _: GuardShare()]
    enrolment = scorer.enrolment
    if enrolment is not None:
        found.append(lambda _: Enrolled(enrolment.calibration))
    return found


def judge_all(
    scorer: Scorer,
    material: Material,
    *,
    alphas: Sequence[float] = judge.ALPHAS,
    tell: Callable[[float], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row for each detector: `files` and, if seen, `floats`: what it makes of attacks after rounding and before.

    At its first threshold (the paper's check and the enrolment at their own), `shifts` counts the false alarms on each
    natural change, and `unseen` names the files that an attack changed without being seen; None where there is no
    threshold. A detector that cannot be fitted on this victim has a row that says why.
    """
    rows: list[dict[str, Any]] = []
    wanted = makers(scorer, has_guard=material.has_guard)
    for place, make in enumerate(wanted):
        detector = make(alphas[0])
        try:
            detector = _fitted(detector, material)
        except DicomguardError as error:
            rows.append({"detector": detector.name, "none_because": str(error)})
            continue
        scored = _Scored(detector, material)
        if isinstance(detector, NoiseCheck):
            theirs = scored.row(detector.name, alphas, detector.theta)
            levels = {
                "level": detector.level,
                "thetas": detector.thetas.tolist(),
                "levels": _levels(detector, material),
            }
            rows.append({**theirs, **levels})
            rows.append(scored.row(AT_RATE, alphas, None))
        else:
            rows.append(scored.row(detector.name, alphas, detector.theta if isinstance(detector, Enrolled) else None))
        if isinstance(detector, Ours):  # its margin floor belongs to one rate
            _for_each_rate(make, rows[-1], material, alphas)
        tell((place + 1) / len(wanted))
    return rows


def _levels(detector: NoiseCheck, material: Material) -> list[dict[str, Any]]:
    """What the paper's check makes of attacks at each noise level: TPR by attack, and FPR on right answers."""
    found = []
    for level, theta in enumerate(detector.thetas):
        alone = NoiseCheck(level=level)
        alone.thetas = detector.thetas
        scored = _Scored(alone, replace(material, shifts={}))
        at = {kind: scored.at(float(theta), kind) for kind in material.kinds}
        rates = {kind: {name: each["detected"] for name, each in one["attacks"].items()} for kind, one in at.items()}
        found.append({**rates, "correct": at["files"]["strata"]["correct"]})
    return found


def _fitted(detector: Detector, material: Material) -> Detector:
    """Raises DicomguardError where it cannot be fitted."""
    if isinstance(detector, NoiseCheck):
        return published(material.calibration, material.validation)
    learned = material.training if isinstance(detector, _LEARN_FEATURES) else material.reference
    detector.fit(learned.sight, None if material.validation is None else material.validation.sight)
    return detector


def _for_each_rate(make: Maker, row: dict[str, Any], material: Material, alphas: Sequence[float]) -> None:
    """Put in place of the later operating points those of detectors that were fitted for them."""
    for place, alpha in enumerate(alphas[1:], start=1):
        detector = make(alpha)
        try:
            _fitted(detector, material)
        except DicomguardError as error:  # too few files for this rate
            for kind in material.kinds:
                row[kind]["points"][place] = {"alpha": alpha, "none_because": str(error)}
            continue
        own = _Scored(detector, material).row(detector.name, [alpha], None)
        for kind in material.kinds:
            row[kind]["points"][place] = own[kind]["points"][0]


class _Scored:
    """One fitted detector's scores of everything, each computed once."""

    def __init__(self, detector: Detector, material: Material) -> None:
        clean = material.clean
        self._calibrated = detector.scores(material.held_back.sight)
        self._clean = judge.Clean(clean.keys, detector.scores(clean.sight), clean.right, clean.margins)
        self._shifts = {name: (files, detector.scores(files.sight)) for name, files in material.shifts.items()}
        self._attacked = {
            kind: {name: _attacked(detector, one, kind) for name, one in material.attacks.items()}
            for kind in material.kinds
        }

    def at(self, theta: float, kind: str) -> dict[str, Any]:
        """What a given threshold makes of attacks as `files`, or as `floats`."""
        return judge.at_theta(theta, self._clean, self._attacked[kind])

    def row(self, name: str, alphas: Sequence[float], theta: float | None) -> dict[str, Any]:
        found: dict[str, Any] = {"detector": name}
        for kind, of_kind in self._attacked.items():
            found[kind] = judge.judge(name, self._calibrated, self._clean, of_kind, alphas=alphas, theta=theta)
        bar = theta if theta is not None else found["files"]["points"][0].get("threshold")
        found["shifts"] = found["unseen"] = None
        if bar is not None:
            found["shifts"] = {
                shift: self._shifted(files, scores, bar) for shift, (files, scores) in self._shifts.items()
            }
            found["unseen"] = {attack: _unseen(one, bar) for attack, one in self._attacked["files"].items()}
        return found

    def _shifted(self, files: Files, scores: judge.Scores, bar: float) -> dict[str, Any]:
        """Alarms on changed files; of those that are clean test files too, on the same as they are, and on one only."""
        flagged = judge.flags(scores, bar)
        found = clustered(flagged, files.groups)
        # Without a vote of the guard, for files that it does not know; held whatever they show.
        found["without_vote"] = sum(math.isnan(one.guard_share or 0.0) for one in files.sight.evidence)
        where = {key: row for row, key in enumerate(self._clean.keys)}
        pairs = [(where[key], row) for row, key in enumerate(files.keys) if key in where]
        before = judge.flags(self._clean.scores[[row for row, _ in pairs]], bar)
        after = flagged[[row for _, row in pairs]]
        if pairs:
            found["before"] = share(before)
            found["gained"], found["lost"] = int((after & ~before).sum()), int((before & ~after).sum())
        return found


def _attacked(detector: Detector, one: Attacked, kind: str) -> judge.Attacked:
    """Scores of what succeeded; the others have none, and are counted as attempts only."""
    files = one.files if kind == "files" else one.floats
    hits = np.array([a.succeeded if kind == "files" else a.flipped for a in one.attempts], bool)
    scores = np.full(len(hits), -np.inf)
    if files is not None:
        scores[hits] = detector.scores(files.sight)
    return judge.Attacked(tuple(a.key for a in one.attempts), scores, hits)


def _unseen(one: judge.Attacked, bar: float) -> list[str]:
    passed = one.succeeded & ~judge.flags(one.scores, bar)
    return [key for key, is_unseen in zip(one.keys, passed, strict=True) if is_unseen]
