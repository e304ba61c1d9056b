"""Enrol a bundle: guard, feature model, calibration, self-test and study thresholds, from clean images of the site."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomguard.enrol import selftest
from dicomguard.enrol.cleanset import Clean, CleanSet, Gathered, Part
from dicomguard.enrol.distil import Distillation, Lessons, distil, lessons
from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.scoring import calibration, enrolment, features, noise
from dicomguard.scoring.bundle import halved
from dicomguard.scoring.calibration import Calibration, Evidence
from dicomguard.scoring.consistency import Draw, NoiseSettings, Observation, curve
from dicomguard.scoring.enrolment import (
    MINIMUM_AUROC,
    CertifiedShare,
    Enrolled,
    Enrolment,
    PaperMode,
    RequireCost,
    Tolerance,
    Trial,
)
from dicomguard.scoring.features import FeatureModel
from dicomguard.scoring.guard import Guard, GuardSettings, Outcome, Vote, looks_for
from dicomguard.scoring.head import Answer
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Batch, Scorer
from dicomguard.scoring.study_test import BANDS, StudyCalibration

# Not a secret: the noise of an enrolment has only to be independent of the images, and the same when drawn again.
_KEY = b"enrolment"

_BATCH = 16
_PAPER_IMAGES = 120
_TOLERANCE_IMAGES = 60
_TESTED_IMAGES = 40  # of the validation part are attacked
_LEAST_FLIPPED = 5  # fewer flipped images say nothing about an attack
_LEAST_DISTILLED = 60  # fewer pictures teach a guard nothing worth its time
SHARE_STEPS = (200, 500, 1000, 2000)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the site asks for. `eps`: the guard's pixel budget, None for no guard. `window`: its fixed range.

    `sigma` None takes the smallest of a few for which a unanimous vote of some hundred draws certifies `eps`.
    `keep`: an enrolment of the same bundle; its guard is taken over, untrained, where it was made for the same budget
    and from as many images, and only what rests on it is measured anew.
    """

    alpha: float = 0.05
    eps: float | None = 0.004
    guard_alpha: float = 1e-6
    sigma: float | None = None
    window: tuple[float, float] | None = None
    distillation: Distillation = field(default_factory=Distillation)
    share_steps: tuple[int, ...] = SHARE_STEPS
    tested: int = _TESTED_IMAGES
    keep: Enrolled | None = None


Advance = Callable[[str, float], None]


@dataclass(slots=True)
class Measured:
    """The evidence on one part: which pictures, what was seen of each, and what the guard said."""

    places: list[int]
    evidence: list[Evidence]
    votes: list[Vote | None]


def plan(settings: NoiseSettings) -> tuple[tuple[Draw, ...], ...]:
    """The cascade: first one draw at every other level, then one at every level, and a second one."""
    sparse = tuple((level, 0) for level in range(0, len(settings.levels), 2))
    return (sparse, settings.ladder(min(2, settings.repeats)))


def enrol(scorer: Scorer, gathered: Gathered, source: str, wishes: Wishes, out: Path, advance: Advance) -> Enrolment:
    """Everything, written to `out`. `scorer` is the bundle without an enrolment.

    Raises:
        BundleError: too few clean images for what was asked, or a bundle that cannot be calibrated.

    """
    reference, held_back = gathered.parts[Part.REFERENCE], gathered.parts[Part.HELD_BACK]
    calibration.require_enough(len(reference.one_per_patient()), len(held_back.one_per_patient()), wishes.alpha)
    guard, guard_tensors, certified = _make_guard(scorer, gathered, wishes, advance)
    distilled = gathered.parts[Part.DISTILLED]
    model = _feature_model(scorer, distilled if len(distilled) >= _LEAST_DISTILLED else reference, advance)
    scorer.guard, scorer.feature_model = guard, model
    looked = measure(scorer, reference, reference.one_per_patient(), "score reference images", advance)
    held = measure(scorer, held_back, range(len(held_back)), "score held-back images", advance)
    own = set(held_back.one_per_patient())
    fitted = calibration.fit(
        looked.evidence,
        [e for place, e in zip(held.places, held.evidence, strict=True) if place in own],
        alpha=wishes.alpha,
        plan=plan(scorer.noise),
        used=calibration.COMPONENTS if guard else tuple(c for c in calibration.COMPONENTS if c != "guard_share"),
    )
    clean_scores = {place: _score_of(fitted, e) for place, e in zip(held.places, held.evidence, strict=True)}
    by_study = held_back.one_study_per_patient()
    studies = [[clean_scores[place] for place in study] for study in by_study]
    validation = gathered.parts[Part.VALIDATION]
    trials, paper = _test(
        scorer, validation, fitted, [clean_scores[p] for p in sorted(own)], reference, wishes, advance
    )
    weakest = [t for t in trials if t.auroc is not None and t.auroc < MINIMUM_AUROC]
    untested = [t for t in trials if t.flipped < _LEAST_FLIPPED]
    refusal = _refusal(weakest, untested)
    if guard is not None:
        certified = (*certified, _certified_share(held, own, len(distilled)))
    counts = {f"{part.value}": len(gathered.parts[part]) for part in Part}
    armed: Literal["enforce", "shadow"] = "shadow" if refusal else "enforce"
    facts = {
        "bundle": scorer.name,
        "fingerprint": scorer.fingerprint,
        "created": datetime.now(UTC).date().isoformat(),
        "clean_set": {
            "source": source,
            "sha256": gathered.sha256(),
            "images": gathered.images,
            "patients": len(gathered.patients),
            "left_out": len(gathered.left_out),
            "unreadable": gathered.unreadable,
            **counts,
        },
        "alpha": wishes.alpha,
        "calibration": fitted,
        "paper": paper,
        "tolerance": _tolerance(scorer, reference, looked, fitted),
        "guard": None if guard is None else guard.settings,
        "self_test": trials,
        "armed": armed,
        "refusal": refusal,
        "certified": certified,
        "require_cost": () if guard is None else _require_cost(held, by_study),
        "studies": StudyCalibration.fit(studies, alpha=wishes.alpha),
    }
    tensors = guard_tensors | ({} if model is None else model.tensors())
    return enrolment.write(out, facts, tensors)


def _score_of(fitted: Calibration, evidence: Evidence) -> float:
    """The score, infinite where there is none: such an image holds its study."""
    found = fitted.statistic_of(evidence)[0]
    return math.inf if math.isnan(found) else found


def measure(scorer: Scorer, clean: CleanSet, places: Sequence[int], stage: str, advance: Advance) -> Measured:
    """Evidence of the whole cascade for the pictures at `places`."""
    found = Measured(list(places), [], [])
    for start in range(0, len(places), _BATCH):
        chosen = places[start : start + _BATCH]
        seeds = [_seeds(clean.items[place], scorer) for place in chosen]
        # The canonical path: whatever the node scores otherwise is drawn again on it where it is close to a threshold.
        evidence, votes = scorer.look(clean.batch(chosen), seeds, plan(scorer.noise)[-1], canonical=True)
        found.evidence += evidence
        found.votes += votes
        advance(stage, len(chosen) / len(places))
    return found


def _tolerance(scorer: Scorer, clean: CleanSet, exact: Measured, fitted: Calibration) -> Tolerance:
    """Twice the largest distance between the fast and the canonical path's score, over some reference images.

    Images far above the threshold do not count: there distances are large, and decide nothing.
    """
    if scorer.has_one_path:
        return Tolerance(statistic=0.0, path=scorer.path)
    places = exact.places[:_TOLERANCE_IMAGES]
    far = 2 * fitted.threshold
    worst = 0.0
    for start in range(0, len(places), _BATCH):
        chosen = places[start : start + _BATCH]
        seeds = [_seeds(clean.items[place], scorer) for place in chosen]
        pixels_alone = Batch(clean.batch(chosen).pixels)  # no planes: the guard has one path only
        quick, _ = scorer.look(pixels_alone, seeds, plan(scorer.noise)[-1])
        for one, other in zip(quick, exact.evidence[start : start + _BATCH], strict=False):
            same = Evidence(one.seen, other.distances, other.guard_share)
            for stage in range(len(fitted.stages)):
                pair = fitted.statistic_after(same, stage), fitted.statistic_after(other, stage)
                if min(pair) <= far:
                    worst = max(worst, abs(pair[0] - pair[1]))
    return Tolerance(statistic=round(2 * worst, 6), path=scorer.path)


def _seeds(item: Clean, scorer: Scorer) -> Seeds:
    return noise.seeds(_KEY, item.study, item.image.frame, item.sha256, scorer.fingerprint)


def _make_guard(
    scorer: Scorer, gathered: Gathered, wishes: Wishes, advance: Advance
) -> tuple[Guard | None, dict[str, Tensor], tuple[CertifiedShare, ...]]:
    """The guard on all distilled pictures; and, for the statement, what fewer of them would have given."""
    clean = gathered.parts[Part.DISTILLED]
    if wishes.eps is None or len(clean) < _LEAST_DISTILLED:
        return None, {}, ()
    sigma = wishes.sigma or sigma_for(wishes.eps, wishes.guard_alpha)
    looks = looks_for(wishes.eps, sigma, wishes.guard_alpha)
    if not looks:
        raise BundleError(
            f"noise of sigma {sigma:g} cannot certify a budget of {wishes.eps:g}.",
            advice="Ask for a smaller --eps or a larger --sigma.",
        )
    ranges = gathered.ranges()
    if not ranges:
        raise BundleError(
            "no clean image shows anything to a guard: they have palette colours, or ranges without precision.",
            advice="Enrol without a guard: --eps 0.",
        )
    settings = GuardSettings(
        sigma=sigma,
        eps=wishes.eps,
        alpha=wishes.guard_alpha,
        looks=looks,
        window=wishes.window,
        ranges=ranges,
    )
    gathered.hide(ranges)
    kept = _kept_guard(wishes.keep, settings, len(clean), scorer)
    if kept is not None:
        return Guard.from_tensors(settings, kept, scorer.head, scorer.device), kept, _kept_shares(wishes.keep, gathered)
    taught = lessons(scorer, clean, wishes.distillation, advance)
    shares = []
    tested = gathered.parts[Part.HELD_BACK]
    order = torch.tensor(sorted(range(len(clean)), key=lambda place: clean.items[place].key))
    for count in (step for step in wishes.share_steps if step < len(clean)):
        part = Lessons(taught.planes[:, order[:count]], taught.log_odds[:, order[:count]])
        network = distil(part, scorer.head, sigma, wishes.distillation, _named(advance, f"guard of {count} images"))
        smaller = Guard(settings, network, scorer.head, scorer.device)
        shares.append(_share_of(scorer, smaller, tested, count, advance))
    network = distil(taught, scorer.head, sigma, wishes.distillation, advance, width=settings.width)
    tensors = {f"guard.{name}": t for name, t in halved(network.state_dict()).items() if t.is_floating_point()}
    return Guard.from_tensors(settings, tensors, scorer.head, scorer.device), tensors, tuple(shares)


def _kept_guard(
    keep: Enrolled | None, settings: GuardSettings, distilled: int, scorer: Scorer
) -> dict[str, Tensor] | None:
    """The weights of an earlier guard, where it was made for the same bundle, the same budget and as many images."""
    if keep is None or keep.statement.guard is None:
        return None
    earlier = keep.statement.guard.model_copy(update={"ranges": settings.ranges})
    same = keep.statement.fingerprint == scorer.fingerprint and keep.statement.clean_set.distilled == distilled
    if not same or earlier != settings:
        return None
    return {name: tensor for name, tensor in keep.tensors.items() if name.startswith("guard.")}


def _kept_shares(keep: Enrolled | None, gathered: Gathered) -> tuple[CertifiedShare, ...]:
    """What smaller guards of the same clean set were found to certify."""
    if keep is None or keep.statement.clean_set.sha256 != gathered.sha256():
        return ()
    return tuple(share for share in keep.statement.certified if share.distilled in SHARE_STEPS)


def _named(advance: Advance, name: str) -> Advance:
    return lambda _stage, share: advance(name, share)


def sigma_for(eps: float, alpha: float) -> float:
    """The smallest of .25, .32, .4, .5, .64, .8, 1 with which some 250 unanimous draws certify `eps`."""
    for sigma in (0.25, 0.32, 0.4, 0.5, 0.64, 0.8, 1.0):
        looks = looks_for(eps, sigma, alpha)
        if looks and looks[0] <= 250:
            return sigma
    raise BundleError(f"a budget of {eps:g} is too large for a guard of this kind.", advice="Ask for a smaller --eps.")


def _share_of(scorer: Scorer, guard: Guard, clean: CleanSet, distilled: int, advance: Advance) -> CertifiedShare:
    places = clean.one_per_patient()[:200]
    outcomes: list[tuple[Answer, Outcome]] = []
    for start in range(0, len(places), _BATCH):
        chosen = places[start : start + _BATCH]
        batch = clean.batch(chosen)
        assert batch.planes is not None
        odds = scorer.quick_log_odds(batch.pixels)
        for place, plane, answer in zip(chosen, batch.planes, odds.argmax(-1).tolist(), strict=True):
            vote = guard.vote(plane, tuple(answer), _seeds(clean.items[place], scorer).guard)
            outcomes.append((tuple(answer), vote.outcome))
        advance(f"certify with a guard of {distilled} images", len(chosen) / len(places))
    return _counted(outcomes, distilled)


def _certified_share(held: Measured, own: Collection[int], distilled: int) -> CertifiedShare:
    """On one frame of each patient, because the interval beside it takes them for independent."""
    rows = zip(held.places, held.evidence, held.votes, strict=True)
    return _counted([(e.seen.answer, vote.outcome) for place, e, vote in rows if place in own and vote], distilled)


def _require_cost(held: Measured, studies: Sequence[Sequence[int]]) -> tuple[RequireCost, ...]:
    proven = {
        p: vote is not None and vote.outcome is Outcome.CERTIFIED
        for p, vote in zip(held.places, held.votes, strict=True)
    }
    found = []
    for low, high in BANDS:
        members = [study for study in studies if low <= len(study) <= high]
        if members:
            kept = sum(all(proven[place] for place in study) for study in members)
            found.append(RequireCost(low=low, high=high, studies=len(members), held=len(members) - kept))
    return tuple(found)


def _counted(outcomes: Sequence[tuple[Answer, Outcome]], distilled: int) -> CertifiedShare:
    by_answer: dict[Answer, list[bool]] = {}
    for answer, outcome in outcomes:
        by_answer.setdefault(answer, []).append(outcome is Outcome.CERTIFIED)
    return CertifiedShare(
        distilled=distilled,
        certified=sum(outcome is Outcome.CERTIFIED for _, outcome in outcomes),
        agreed=sum(outcome in (Outcome.CERTIFIED, Outcome.UNCERTIFIED) for _, outcome in outcomes),
        tested=len(outcomes),
        weakest=min((sum(found) / len(found) for found in by_answer.values()), default=0.0),
    )


def _feature_model(scorer: Scorer, clean: CleanSet, advance: Advance) -> FeatureModel | None:
    rows: list[NDArray[np.float64]] = []
    answers: list[NDArray[np.int64]] = []
    for start in range(0, len(clean), _BATCH):
        places = range(start, min(start + _BATCH, len(clean)))
        found = scorer.answer(clean.batch(places).pixels)
        rows.append(found.features)
        answers.append(found.log_odds.argmax(-1))
        advance("features", len(places) / len(clean))
    return features.fit(np.concatenate(rows), np.concatenate(answers), scorer.head.classes)


def _test(
    scorer: Scorer,
    validation: CleanSet,
    fitted: Calibration,
    clean_scores: Sequence[float],
    reference: CleanSet,
    wishes: Wishes,
    advance: Advance,
) -> tuple[list[Trial], PaperMode]:
    """Attack the validation part, and choose the paper's level on it."""
    places = validation.with_pixels()[: wishes.tested]
    images = [validation.items[place].image for place in places]
    forged = selftest.forge_all(scorer, images, lambda share: advance("self-test attacks", share))
    trials, attacked = [], []
    for result in forged:
        evidence = _look_at(scorer, result.images, [validation.items[places[p]] for p in result.places], result.attack)
        attacked.append(evidence)
        scores = [fitted.statistic_of(e)[0] for e in evidence]
        margins = [calibration.smallest_margin(e.seen) for e in evidence]
        flags = [fitted.flags(s, m) for s, m in zip(scores, margins, strict=True)]
        value = selftest.auroc(clean_scores, scores)
        trials.append(
            Trial(
                attack=result.attack,
                tried=result.tried,
                flipped=len(scores),
                auroc=value,
                flagged=sum(flags),
                scores=tuple(round(score, 3) for score in scores if math.isfinite(score)),
            )
        )
    return trials, _paper(scorer, reference, attacked[0], advance)


def _look_at(scorer: Scorer, images: Sequence[Image], items: Sequence[Clean], purpose: str) -> list[Evidence]:
    found: list[Evidence] = []
    # The paper's level is chosen on the first attack, for which its whole ladder is drawn.
    draws = scorer.noise.ladder() if purpose == selftest.ATTACKS[0] else plan(scorer.noise)[-1]
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        batch = scorer.prepare(part)
        seeds = [
            noise.seeds(_KEY, item.study, item.image.frame, f"{item.sha256} {purpose}", scorer.fingerprint)
            for item in items[start : start + _BATCH]
        ]
        found += scorer.look(batch, seeds, draws)[0]
    return found


def _paper(scorer: Scorer, reference: CleanSet, attacked: Sequence[Evidence], advance: Advance) -> PaperMode:
    """Theta = 2 std over clean images that were answered rightly, where labels are known; level by Youden's index."""
    places = reference.one_per_patient()[:_PAPER_IMAGES]
    seen: list[Observation] = []
    for start in range(0, len(places), _BATCH):
        chosen = places[start : start + _BATCH]
        seeds = [_seeds(reference.items[place], scorer) for place in chosen]
        pixels_alone = Batch(reference.batch(chosen).pixels)
        seen += [one.seen for one in scorer.look(pixels_alone, seeds, scorer.noise.ladder())[0]]
        advance("paper mode", len(chosen) / len(places))
    right = [
        one
        for place, one in zip(places, seen, strict=True)
        if (truth := reference.items[place].truth) is None or truth == one.answer
    ]
    clean = _drops(right if len(right) > 2 else seen)
    theta = np.maximum(2 * clean.std(0, ddof=1), 1e-9)
    hit = _drops([e.seen for e in attacked]) if attacked else np.empty((0, len(theta)))
    youden = [
        (hit[:, k] > theta[k]).mean() - (clean[:, k] > theta[k]).mean() if len(hit) else 0.0 for k in range(len(theta))
    ]
    level = int(np.argmax(youden)) if len(hit) else len(theta) // 2
    return PaperMode(theta=tuple(map(float, theta)), level=level, images=len(clean))


def _drops(seen: Sequence[Observation]) -> NDArray[np.float64]:
    """Probability drops (images, levels), of several questions the largest."""
    return np.array([curve(one).probability_drops.max(0) for one in seen])


def _refusal(weakest: Sequence[Trial], untested: Sequence[Trial]) -> str:
    if weakest:
        worst = min(weakest, key=lambda trial: trial.auroc or 0.0)
        return (
            f"in the self-test the score tells '{worst.attack}' from clean images with an AUROC of {worst.auroc:.3f}"
            f" only; {MINIMUM_AUROC} are needed."
        )
    if untested:
        return (
            f"'{untested[0].attack}' changed the answer of {untested[0].flipped} of {untested[0].tried} images only;"
            f" {_LEAST_FLIPPED} are needed to say whether the check would see it. Give more clean images."
        )
    return ""
