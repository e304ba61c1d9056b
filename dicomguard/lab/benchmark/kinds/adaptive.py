"""Cells of attacks that know the detector, at one budget each, judged on the files that they leave behind.

The attacker has the victim, the clean files of the calibration, the detectors and their thresholds; not the site's key,
so that the noise that it prepares for is never the noise that is drawn. Strangers at the door have none of that, and
ask the node itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.joint import Budget, Pair, Tactic, joint_attack, log_vote
from dicomguard.attacks.margins import CHUNK, Margins
from dicomguard.attacks.suite import Attack
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.best_of import best_of
from dicomguard.lab.attacks.blackbox import blackbox
from dicomguard.lab.attacks.deep import DeepNetwork, mahalanobis
from dicomguard.lab.attacks.descend import Descent
from dicomguard.lab.attacks.fused import enrolled_score, paper_score
from dicomguard.lab.attacks.matching import FeatureMatching, choose_guides, feature_matching, logit_matching
from dicomguard.lab.attacks.noise_check import NoiseCheck
from dicomguard.lab.attacks.noise_eot import NoiseEOT, Typical, noise_eot, others
from dicomguard.lab.attacks.orthogonal import DetectorScore, Orthogonal, orthogonal_pgd
from dicomguard.lab.attacks.square import Square
from dicomguard.lab.attacks.suite import pgd_at
from dicomguard.lab.benchmark.attacking import attack_files, described, forged, load_left
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import Files, Opened, load_files, looked, opened, seed_of
from dicomguard.lab.benchmark.judging import divided, published
from dicomguard.lab.benchmark.kinds.opening import BUNDLE, collection_of, scorer_of
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.detectors import judge
from dicomguard.lab.detectors.noise_check import NoiseCheck as PaperCheck
from dicomguard.lab.detectors.ours import Ours
from dicomguard.lab.detectors.sight import Detector, Sight
from dicomguard.scoring import features, head
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.consistency import Draw
from dicomguard.scoring.scorer import Scorer

AGAINST_GUARD: Final = "victim and guard at once"
AGAINST_ALL: Final = "EOT-PGD, 8 draws, features and guard"
NEED_GUARD: Final = (AGAINST_GUARD, AGAINST_ALL)
"""Attacks that know the guard; the victim must have one."""
_ALPHA = 0.05
_QUERIES = 200
_GUARD_DRAWS = 8
_GUARD_STEPS = 60
_KEYS = 3  # of the attacker's own, under each of which a picture should pass
# How far past a threshold counts as reached: what is just below it under one noise is above it under the next, and
# rounding moves the margin back. Shares of the threshold, and log-odds.
_BELOW_PAPER, _BELOW_OURS, _PAST = 0.5, 0.1, 0.5
# With noise: against the noise check, too.
_TACTICS = (Tactic(0.5, 0.5), Tactic(0.5, 1.0, 0.03), Tactic(0.8, 0.5), Tactic(0.2, 1.0, 0.03))


class Attacker:
    """What an attacker knows of one victim: the network, the clean files, the detectors and their thresholds.

    `cases`: what is attacked, by the attack called `name`, as files of `bits`.
    """

    def __init__(
        self,
        scorer: Scorer,
        deep: DeepNetwork,
        calibration: Files,
        validation: Files | None,
        cases: Sequence[Case],
        name: str,
        bits: int,
    ) -> None:
        self.scorer = scorer
        self.levels = (1 << bits) - 1
        self._bits, self._name = bits, name
        self._cases = {seed_of(case.key, name): case for case in cases}
        self.deep = deep
        self.clean = calibration
        self.typical = Typical.of([one.seen for one in calibration.sight.evidence], len(scorer.noise.levels))
        self._pool = calibration.sight.only(calibration.right)
        self._validation = validation

    def paper(self) -> PaperCheck:
        """The paper's check as the defender has it: its level and theta."""
        return published(self.clean, self._validation)

    def ours(self, *, with_guard: bool) -> tuple[Ours, float]:
        """Our fused score as the defender has it, and its threshold."""
        found = Ours(self.scorer.noise, with_guard=with_guard, alpha=_ALPHA)
        reference, held_back = divided(self.clean)
        found.fit(reference.sight)
        return found, judge.threshold(found.scores(held_back.sight), _ALPHA)

    def sources(self, seeds: Sequence[int]) -> list[Opened]:
        """The clean files of the cases that have these seeds."""
        cases = [self._cases[seed] for seed in seeds]
        return [opened(case, case.make(self._bits), self.scorer.fingerprint) for case in cases]

    def sent(self, sources: Sequence[Opened], pixels: Tensor, draws: Sequence[Draw]) -> Sight:
        """What the node sees of presentation pixels (n, C, H, W), each as a file, under noise of its own."""
        planes = pixels.detach().cpu().numpy().astype(np.float32)
        name, fingerprint = self._name, self.scorer.fingerprint
        pairs = zip(sources, planes, strict=True)
        return looked(self.scorer, [forged(one, new, name, fingerprint) for one, new in pairs], draws).sight

    def pair(self) -> Pair:
        """Victim and guard as functions of presentation values, which are stored values over `levels`.

        Raises:
            DicomguardError: the victim has no guard.

        """
        guard = self.scorer.guard
        if guard is None:
            raise DicomguardError(f"{self.scorer.name} has no guard to attack.", advice="Enrol it with a budget.")

        def model(pixels: Tensor) -> Tensor:
            return self.scorer.device_log_odds(self.prepare(pixels, torch.arange(len(pixels))))

        return Pair(model, guard.logits, guard.settings.sigma)

    def votes(self, targets: Tensor, seeds: Sequence[int]) -> Margins:
        """-log of the guard's mean probability of `targets` (n, questions) over draws of its noise, fresh each time.

        Raises:
            DicomguardError: the victim has no guard.

        """
        pair = self.pair()
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds]

        def unlike(current: Tensor, which: Tensor) -> Tensor:
            planes = pair.planes(current)
            shape = (_GUARD_DRAWS, *planes.shape[1:])
            noise = torch.stack([torch.randn(shape, generator=drawn[place]) for place in which.tolist()]).to(planes)
            return -log_vote(pair, planes, noise, targets[which])

        return unlike

    def check(self, seeds: Sequence[int]) -> NoiseCheck:
        """The noise check with noise of the attacker's own."""
        return NoiseCheck(self.scorer.device_log_odds, self.scorer.noise, seeds, self.prepare)

    def seen(self, current: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds and features of presentation pixels; gradients flow."""
        return self.deep(self.prepare(current, torch.arange(len(current))))

    def prepare(self, current: Tensor, which: Tensor) -> Tensor:
        """Presentation pixels as the victim takes them."""
        del which
        return torch.stack([self.scorer.preprocess(one) for one in current])

    def prepared(self, pixels: Tensor) -> Tensor:
        """The same without gradients, for a whole batch."""
        with torch.no_grad():
            return self.prepare(pixels, torch.arange(len(pixels)))

    def guides(self, pixels: Tensor) -> Tensor:
        """For each image the clean one of another class whose features are nearest."""
        with torch.no_grad():
            odds, seen = self.deep(self.prepared(pixels))
        pool, answers = torch.from_numpy(self._pool.features), torch.from_numpy(self._pool.answers)
        return self._pool.pixels[choose_guides(seen.double(), head.answers(odds), pool, answers)]

    def distance(self) -> Margins:
        """The Mahalanobis distance to the class that the image is answered with now, over its usual size."""
        sight = self.clean.sight
        model = features.fit(sight.features, sight.answers, sight.log_odds.shape[-1])
        assert model is not None
        usual = np.median(
            [model.distances(f, tuple(a)).max() for f, a in zip(sight.features, sight.answers, strict=True)]
        )

        def far(current: Tensor, which: Tensor) -> Tensor:
            odds, seen = self.deep(self.prepare(current, which))
            found = mahalanobis(model, seen, head.answers(odds)).amax(1) / float(usual)
            return found.to(odds)

        return far


def _alone(run: Callable[[Tensor, Sequence[int], int], Attacked]) -> Attack:
    """An attack of pixels, seeds and chunk that looks at log-odds of its own instead of margins."""

    def attack(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        del margins
        return run(pixels, seeds, chunk)

    return attack


def _eot(
    attacker: Attacker,
    eps: float,
    draws: int,
    *,
    hides: bool = False,
    persuades: bool = False,
    random_start: bool = False,
    one_sided: bool = True,
) -> Attack:
    """`hides`: its feature distance, too. `persuades`: the guard, too."""
    distance = attacker.distance() if hides else None
    settings = NoiseEOT(Descent(eps=eps, random_start=random_start), draws=draws, one_sided=one_sided)

    def run(pixels: Tensor, seeds: Sequence[int], chunk: int) -> Attacked:
        odds, own, prepare = attacker.scorer.device_log_odds, attacker.scorer.noise, attacker.prepare
        with torch.no_grad():
            wanted = attacker.typical.wanted(others(odds(attacker.prepared(pixels))))
        hide = _sum(distance, attacker.votes(wanted.targets, seeds)) if persuades else distance
        return noise_eot(odds, wanted, own, pixels, seeds, settings, hide=hide, prepare=prepare, chunk=chunk)

    return _alone(run)


def _sum(one: Margins | None, other: Margins) -> Margins:
    return other if one is None else lambda current, which: one(current, which) + other(current, which)


def _logits(attacker: Attacker, eps: float, draws: int) -> Attack:
    settings = NoiseEOT(Descent(eps=eps), draws=draws)

    def run(pixels: Tensor, seeds: Sequence[int], chunk: int) -> Attacked:
        odds, own, guides = attacker.scorer.device_log_odds, attacker.scorer.noise, attacker.guides(pixels)
        return logit_matching(odds, guides, own, pixels, seeds, settings, prepare=attacker.prepare, chunk=chunk)

    return _alone(run)


def _features(attacker: Attacker, eps: float, draws: int) -> Attack:
    settings = FeatureMatching(Descent(eps=eps), draws=draws)

    def run(pixels: Tensor, seeds: Sequence[int], chunk: int) -> Attacked:
        deep, own, guides = attacker.deep, attacker.scorer.noise, attacker.guides(pixels)
        return feature_matching(deep, guides, pixels, seeds, settings, noise=own, prepare=attacker.prepare, chunk=chunk)

    return _alone(run)


def _orthogonal_to_paper(attacker: Attacker, eps: float) -> Attack:
    paper = attacker.paper()
    settings = Orthogonal(eps=eps, slack=(_BELOW_PAPER * paper.theta, _PAST))

    def attack(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        score = paper_score(attacker.check(seeds), paper.level)
        return orthogonal_pgd(margins, score, paper.theta, pixels, seeds, settings, chunk=chunk).attacked

    return attack


def _ours(attacker: Attacker) -> tuple[Callable[[Sequence[int]], DetectorScore], float, float]:
    """Ours without the guard: its score under noise of the attacker's own, its threshold, and its least margin."""
    ours, bar = attacker.ours(with_guard=False)
    assert ours.calibration is not None
    fitted = ours.calibration
    model = ours.feature_model or attacker.scorer.feature_model
    return (
        lambda seeds: enrolled_score(attacker.seen, attacker.check(seeds), fitted, model),
        bar,
        fitted.margin_floor,
    )


def _orthogonal_to_ours(attacker: Attacker, eps: float) -> Attack:
    score_of, bar, floor = _ours(attacker)
    settings = Orthogonal(eps=eps, slack=(_BELOW_OURS * bar, floor + _PAST))

    def attack(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        score = score_of(seeds)
        return orthogonal_pgd(margins, score, bar, pixels, seeds, settings, chunk=chunk).attacked

    return attack


def _best(attacker: Attacker, eps: float) -> Attack:
    paper = attacker.paper()
    once = _eot(attacker, eps, 8, random_start=True)

    def attack(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        score = paper_score(attacker.check(seeds), paper.level)

        def worst(current: Tensor, which: Tensor) -> Tensor:
            return torch.stack([score(current, which, key) for key in range(_KEYS)]).amax(0)

        enough = (1 - _BELOW_PAPER) * paper.theta
        return best_of(once, worst, margins, pixels, seeds, attempts=10, threshold=enough, chunk=chunk).attacked

    return attack


def _stranger(attacker: Attacker, eps: float) -> Attack:
    paper = attacker.paper()
    # What is drawn beyond its level has no say.
    draws = [draw for draw in attacker.scorer.noise.ladder() if draw[0] <= paper.level]
    return _asking(attacker, paper, paper.theta, eps, draws)


def _stranger_to_ours(attacker: Attacker, eps: float) -> Attack:
    ours, bar = attacker.ours(with_guard=attacker.scorer.guard is not None)
    return _asking(attacker, ours, bar, eps, attacker.scorer.noise.ladder())


def _asking(attacker: Attacker, detector: Detector, bar: float, eps: float, draws: Sequence[Draw]) -> Attack:
    """Somebody who knows nothing but how sure the victim is, and whether a file was let through.

    Every query is a file, and the noise is the node's: what was let through once is let through.
    """

    def attack(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        sources = attacker.sources(seeds)

        def accepts(current: Tensor, which: Tensor) -> Tensor:
            seen = attacker.sent([sources[place] for place in which.tolist()], current, draws)
            return torch.from_numpy(~judge.flags(detector.scores(seen), bar)).to(current.device)

        return blackbox(margins, accepts, pixels, seeds, Square(eps=eps, queries=_QUERIES), chunk=chunk).attacked

    return attack


def _and_guard(attacker: Attacker, eps: float) -> Attack:
    """Victim and guard at once: of several tactics the flip with the largest share of the guard's votes."""
    pair, levels = attacker.pair(), attacker.levels
    budget = Budget(eps, levels, steps=_GUARD_STEPS)

    def run(pixels: Tensor, seeds: Sequence[int], chunk: int) -> Attacked:
        del chunk
        stored = (pixels * levels).round().long()
        with torch.no_grad():
            targets = others(attacker.scorer.device_log_odds(attacker.prepared(pixels)))
        found, best = Attacked.untried(pixels), torch.full((len(pixels),), -torch.inf)
        for place, tactic in enumerate(_TACTICS):
            own = [seed + place for seed in seeds]
            tried = joint_attack(pair, stored, targets, [tactic] * len(pixels), own, budget)
            merit = torch.where(tried.flipped, tried.vote, tried.vote - 1)
            which = (merit > best).nonzero()[:, 0]
            best[which] = merit[which]
            found.record(which, tried.stored[which] / levels, tried.margin[which], radius=eps)
        return found

    return _alone(run)


KNOWING: Final[Mapping[str, Callable[[Attacker, float], Attack]]] = MappingProxyType(
    {
        "PGD": lambda _, eps: pgd_at(eps),
        "EOT-PGD, 1 draw": lambda attacker, eps: _eot(attacker, eps, 1),
        "EOT-PGD, 8 draws": lambda attacker, eps: _eot(attacker, eps, 8),
        "EOT-PGD, 32 draws": lambda attacker, eps: _eot(attacker, eps, 32),
        "EOT-PGD, 8 draws, to typical log-odds": lambda attacker, eps: _eot(attacker, eps, 8, one_sided=False),
        "EOT-PGD, 8 draws, and features": lambda attacker, eps: _eot(attacker, eps, 8, hides=True),
        "logit matching": lambda attacker, eps: _logits(attacker, eps, 0),
        "logit matching, 8 draws": lambda attacker, eps: _logits(attacker, eps, 8),
        "feature matching, 8 draws": lambda attacker, eps: _features(attacker, eps, 8),
        "orthogonal PGD against the paper's check": _orthogonal_to_paper,
        "orthogonal PGD against ours": _orthogonal_to_ours,
        "best of ten EOT-PGD, 8 draws": _best,
        "black-box, accept or reject": _stranger,
        "black-box, accept or reject by ours": _stranger_to_ours,
        AGAINST_ALL: lambda attacker, eps: _eot(attacker, eps, 8, hides=True, persuades=True),
        AGAINST_GUARD: _and_guard,
    }
)
"""By name and budget; PGD knows of no detector, and is what the others are compared with."""


def adaptive(settings: dict[str, Any], place: Place) -> Result:
    """Attack the first `cases` test files with `attack` at `eps`, all of them."""
    scorer, collection = scorer_of(place), collection_of(place)
    clean = load_files(place.folders["clean"], "calibration")
    validation = load_left(place.of("validation: ").values())
    deep = DeepNetwork(Bundle(place.folders["victim"] / BUNDLE), device=place.device)
    cases = collection.cases(Split.TEST)[: settings["cases"]]
    name = f"{settings['attack']} {settings['eps']:g}"
    attacker = Attacker(scorer, deep, clean, validation, cases, name, collection.bits)
    found = attack_files(
        scorer,
        KNOWING[settings["attack"]](attacker, settings["eps"]),
        cases,
        collection.bits,
        place.folder,
        name=name,
        wanted=None,
        sees_floats=False,
        advance=added(place.tell),
    )
    return {"fingerprint": scorer.fingerprint, **described(found)}
