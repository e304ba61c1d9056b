"""The one scorer, for the node and for the lab: images in, scores out. Nobody else touches the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dicomguard.decision import GuardVote, Score, Thresholds
from dicomguard.errors import BundleError, DicomguardError
from dicomguard.pixels.image import Image
from dicomguard.pixels.miniature import SIDE
from dicomguard.scoring import consistency, enrolment, head, memory
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.calibration import Calibration, Evidence, smallest_margin
from dicomguard.scoring.cascade import Asked, Cascade, Reached
from dicomguard.scoring.classifier import Classifier, fast_dtype, fused
from dicomguard.scoring.consistency import Draw, NoiseCurve, Observation
from dicomguard.scoring.device import usable
from dicomguard.scoring.enrolment import Enrolled, Enrolment
from dicomguard.scoring.features import FeatureModel
from dicomguard.scoring.guard import Guard, Vote
from dicomguard.scoring.noise import Seeds

_log = logging.getLogger(__name__)

_SALIENCY_WINDOW = 9  # pixels over which a gradient is averaged to be readable

# Images or copies that go through the network at once. On a CPU their activations should stay in cache.
_CHUNK = 16
_DEVICE_CHUNK = 512

# In log-odds. What float32 rounds differently on a card is a thousand times smaller.
_CLOSE_ANSWER = 0.01


@dataclass(frozen=True, slots=True)
class Batch:
    """Images as the networks take them: `pixels` (N, planes, H, W) in [0, 1]; `planes` (N, 1, 64, 64) for the guard."""

    pixels: Tensor
    planes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the protected model says to a batch, in float32: log-odds (N, questions, classes) and features (N, F)."""

    log_odds: NDArray[np.float64]
    features: NDArray[np.float64]


class Scorer:
    """A loaded bundle, with its enrolment where it has one.

    Two paths lead through the network. The canonical one (float32, CPU) decides whatever is close. The fast one is a
    GPU's: float32 for answers, bfloat16 where it has it for noisy copies. Without a GPU there is one path: bfloat16 on
    a CPU gains less than drawing again what is close costs (docs/scoring.md).
    """

    def __init__(self, bundle: Bundle, enrolled: Enrolled | None = None, *, device: str = "cpu") -> None:
        memory.keep_buffers()
        self.name = bundle.metadata.name
        self.labels = bundle.metadata.labels
        self.head = bundle.head
        self.fingerprint = bundle.fingerprint
        self.noise = bundle.inference.noise.settings()
        self.input_size = (bundle.inference.input.size[0], bundle.inference.input.size[1])
        self.preprocess = bundle.inference.preprocess()
        self.device = _device(device)
        self._planes = bundle.inference.input.planes
        given = bundle.inference.input.mean, bundle.inference.input.std
        self._canonical = Classifier(fused(bundle.network), *given).eval()
        dtype = fast_dtype(self.device)
        self._fast = self._answering = self._canonical
        if self.device.type != "cpu":
            # TensorFloat-32 keeps ten bits of a mantissa: as coarse as an attack.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            self._answering = Classifier(fused(bundle.network), *given).eval().to(self.device)
        if self.device.type != "cpu" or dtype is not torch.float32:
            self._fast = Classifier(fused(bundle.network), *given, dtype).eval().to(self.device)
        self.path = f"{str(dtype).removeprefix('torch.')} on {self.device.type}"
        self._try_out()
        self.enrolment: Enrolment | None = None
        self.enrolment_sha256: str | None = None
        self.thresholds: Thresholds | None = None
        self.guard: Guard | None = None
        self.feature_model: FeatureModel | None = None
        if enrolled is not None:
            self._enrol(enrolled)

    @classmethod
    def load(cls, bundle_dir: Path, enrolment_dir: Path | None = None, *, device: str = "cpu") -> Scorer:
        """Read and check a bundle and its enrolment (in the bundle's folder unless named), then run it once.

        Raises:
            BundleError: naming what is wrong and what to do next; see `bundle.Bundle` and `enrolment.read`.

        """
        bundle = Bundle(bundle_dir)
        folder = enrolment_dir or bundle_dir / enrolment.FOLDER
        levels = len(bundle.inference.noise.levels)
        found = enrolment.read(folder, bundle=bundle.metadata.name, fingerprint=bundle.fingerprint, levels=levels)
        if found is None and enrolment_dir is not None:
            raise BundleError(
                f"{enrolment_dir} holds no enrolment.", advice=f"Run 'dicomguard enrol' with --out {enrolment_dir}."
            )
        return cls(bundle, found, device=device)

    @property
    def has_one_path(self) -> bool:
        """True where the fast path is the canonical one: every score is exact."""
        return self._fast is self._canonical

    @property
    def chunk(self) -> int:
        """How many copies go through the network at once on the fast path."""
        return _CHUNK if self.device.type == "cpu" else _DEVICE_CHUNK

    def _enrol(self, enrolled: Enrolled) -> None:
        statement = enrolled.statement
        shape = (self.head.questions, self.head.classes)
        for stage in statement.calibration.stages:
            scales = stage.log_odds_scale
            levels = {level for level, _ in stage.draws}
            if (len(scales), len(scales[0])) != shape or not levels <= set(range(len(self.noise.levels))):
                raise BundleError(
                    f"the enrolment of bundle {self.name} does not fit its labels or noise levels.",
                    advice="Enrol this bundle again.",
                )
        if statement.tolerance.path != self.path and not self.has_one_path:
            _log.warning(
                "Bundle %s was enrolled on the path '%s', this is '%s': every score takes the canonical path, which is"
                " slower. Enrol it again on this machine.",
                self.name,
                statement.tolerance.path,
                self.path,
            )
            self._fast = self._answering = self._canonical
            self.device = torch.device("cpu")
        self.enrolment = statement
        self.enrolment_sha256 = enrolled.sha256
        self.thresholds = statement.thresholds()
        self.feature_model = FeatureModel.from_tensors(enrolled.tensors)
        if statement.guard is not None:
            self.guard = Guard.from_tensors(statement.guard, enrolled.tensors, self.head, self.device)
        # What is scored must be there: a component whose values never come would be passed over in silence.
        fitted = statement.calibration
        for component, part, name in (
            (fitted.feature_distance, self.feature_model, "feature model"),
            (fitted.guard_share, self.guard, "guard"),
        ):
            if component is not None and part is None:
                raise BundleError(
                    f"the enrolment of bundle {self.name} is calibrated for a {name} that it does not hold.",
                    advice="Enrol this bundle again.",
                )
        self._try_out_enrolment()

    def _try_out_enrolment(self) -> None:
        """Score mid gray with everything: an enrolment that does not fit must not be found out by a patient's image."""
        pixels = torch.full((1, self._planes, *self.input_size), 0.5)
        batch = Batch(pixels, torch.full((1, 1, SIDE, SIDE), 0.5))
        try:
            self.score(batch, [Seeds(bytes(32), bytes(32))])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise BundleError(
                f"the enrolment of bundle {self.name} cannot score: {_one_line(error)}.", advice="Enrol it again."
            ) from error

    def prepare(self, images: Sequence[Image]) -> Batch:
        """Presentation values of any size to what the networks take."""
        with torch.inference_mode():
            if not images:
                return Batch(torch.empty(0, self._planes, *self.input_size))
            planes = None if self.guard is None else self.guard.planes(images)
            return Batch(self.preprocess.images(images), planes)

    def score(self, batch: Batch, seeds: Sequence[Seeds]) -> list[Score]:
        """One `Score` for each image of a prepared batch, with the seeds of each (`scoring.noise.seeds`).

        Without an enrolment the whole ladder is drawn, the largest probability drop stands in `statistic`, and there
        are no thresholds.
        """
        calibration = None if self.enrolment is None else self.enrolment.calibration
        if calibration is None:
            draws = self.noise.ladder()
            evidence, _ = self.look(batch, seeds, draws)
            return [self._unenrolled(one.seen, len(draws) + 1) for one in evidence]
        evidence, votes = self.look(batch, seeds, ())
        found = self._cascade(batch.pixels, seeds, calibration).run(evidence)
        return [self._enrolled(reached, vote, calibration) for reached, vote in zip(found, votes, strict=True)]

    def look(
        self,
        batch: Batch,
        seeds: Sequence[Seeds],
        draws: Sequence[Draw],
        *,
        canonical: bool = False,
        answered: Answered | None = None,
    ) -> tuple[list[Evidence], list[Vote | None]]:
        """What the checks see of each image with the named draws, and what the guard says; no cascade, no judgement.

        `answered`: what `answer` has said of the batch already. Taken where that is the path that would be asked here,
        so that it changes no number; a card is asked in its own way nevertheless.
        """
        is_asked_canonically = canonical or self._answering is self._canonical
        if answered is None or not is_asked_canonically:
            answered = self.answer(batch.pixels) if canonical else self._quick_answer(batch.pixels)
        noisy = self._noisy(batch.pixels, seeds, draws, canonical=canonical)
        evidence: list[Evidence] = []
        votes: list[Vote | None] = []
        for place, odds in enumerate(answered.log_odds):
            seen = Observation(odds, noisy[place], tuple(draws))
            vote = None
            if self.guard is not None and batch.planes is not None:
                vote = self.guard.vote(batch.planes[place], seen.answer, seeds[place].guard)
            distances = self._distances(answered, place)
            evidence.append(Evidence(seen, distances, None if vote is None else vote.first_share))
            votes.append(vote)
        return evidence, votes

    def is_on(self, device: str) -> bool:
        """Whether it computes where it was asked to: not where its enrolment is for another path."""
        return self.device.type == torch.device(device).type

    def answer(self, pixels: Tensor) -> Answered:
        """What the protected model says to prepared pixels, on the canonical path."""
        return self._answered(self._canonical, pixels, _CHUNK)

    def _quick_answer(self, pixels: Tensor) -> Answered:
        """The same on the card where there is one; what might be another answer by a hair is asked canonically."""
        if self._answering is self._canonical:
            return self.answer(pixels)
        found = self._answered(self._answering, pixels.to(self.device), self.chunk)
        margins = head.smallest_margins(found.log_odds)
        floor = 0.0 if self.enrolment is None else self.enrolment.calibration.margin_floor
        # Written so that NaN is close, too.
        (close,) = np.nonzero(~((margins > _CLOSE_ANSWER) & (np.abs(margins - floor) > _CLOSE_ANSWER)))
        if len(close):
            exact = self.answer(pixels[close])
            found.log_odds[close], found.features[close] = exact.log_odds, exact.features
        return found

    def _answered(self, network: Classifier, pixels: Tensor, chunk: int) -> Answered:
        odds, features = [], []
        with torch.inference_mode():
            for part in torch.split(pixels, chunk):
                outputs, seen = network(part)
                odds.append(self.head.log_odds(outputs))
                features.append(seen)
        if not odds:
            return Answered(np.empty((0, self.head.questions, self.head.classes)), np.empty((0, 0)))
        return Answered(torch.cat(odds).double().cpu().numpy(), torch.cat(features).double().cpu().numpy())

    def _distances(self, answered: Answered, place: int) -> NDArray[np.float64] | None:
        if self.feature_model is None:
            return None
        return self.feature_model.distances(answered.features[place], head.answer(answered.log_odds[place]))

    def log_odds(self, pixels: Tensor) -> Tensor:
        """Log-odds (N, questions, classes) of prepared pixels on the canonical path; gradients flow."""
        return self.head.log_odds(self._canonical(pixels)[0])

    def device_log_odds(self, pixels: Tensor) -> Tensor:
        """The same in float32 on the card where there is one, brought back to where `pixels` are: for attacks."""
        return self.head.log_odds(self._answering(pixels.to(self.device))[0]).to(pixels.device)

    def quick_log_odds(self, pixels: Tensor) -> Tensor:
        """The same on the fast path, on the CPU, without gradients: for teaching a guard, never for an answer."""
        with torch.inference_mode():
            return self.head.log_odds(self._fast(pixels.to(self.device))[0]).cpu()

    def saliency(self, pixels: Tensor) -> NDArray[np.float32]:
        """Where the answer is most sensitive: |gradient of the margin|, averaged locally, largest value 1.

        Shape (N, planes, H, W) -> (N, H, W), for the picture that goes with the evidence (Simonyan et al. 2013).
        """
        wanted = pixels.detach().clone().requires_grad_()
        with torch.enable_grad():
            odds = self.log_odds(wanted)
            (gradient,) = torch.autograd.grad(head.margins(odds, head.answers(odds)).sum(), wanted)
        strength = gradient.abs().amax(1, keepdim=True)
        strength = F.avg_pool2d(strength, _SALIENCY_WINDOW, stride=1, padding=_SALIENCY_WINDOW // 2)
        strength = strength / strength.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        saliency: NDArray[np.float32] = strength[:, 0].numpy()
        return saliency

    def _noisy(
        self, pixels: Tensor, seeds: Sequence[Seeds], draws: Sequence[Draw], *, canonical: bool
    ) -> NDArray[np.float64]:
        if not draws or not len(pixels):
            return np.empty((len(pixels), len(draws), self.head.questions, self.head.classes))
        network = self._canonical if canonical else self._fast
        place = torch.device("cpu") if canonical else self.device
        return consistency.observe(
            lambda copies: self.head.log_odds(network(copies)[0]),
            pixels.to(place),
            [seed.noise_check for seed in seeds],
            self.noise,
            draws,
            chunk=_CHUNK if canonical else self.chunk,
        )

    def _cascade(self, pixels: Tensor, seeds: Sequence[Seeds], calibration: Calibration) -> Cascade:
        """The stages of the enrolment over prepared pixels."""

        def noisy(places: Sequence[int], draws: Sequence[Draw], canonical: bool) -> NDArray[np.float64]:
            return self._noisy(pixels[list(places)], [seeds[i] for i in places], draws, canonical=canonical)

        def exact(places: Sequence[int]) -> list[Asked]:
            answered = self.answer(pixels[list(places)])
            return [Asked(odds, self._distances(answered, row)) for row, odds in enumerate(answered.log_odds)]

        assert self.enrolment is not None
        tolerance = None if self.has_one_path else self.enrolment.tolerance.statistic
        return Cascade(calibration, noisy, exact, tolerance)

    def _enrolled(self, reached: Reached, vote: Vote | None, calibration: Calibration) -> Score:
        evidence = reached.evidence
        seen = consistency.curve(evidence.seen)
        return Score(
            **self._shown(seen, calibration.stages[reached.stage].standardised(seen)),
            statistic=reached.statistic,
            p_value=calibration.p_value(reached.statistic, smallest_margin(evidence.seen)),
            surprises=calibration.surprises(evidence, reached.stage),
            passes=reached.passes,
            guard=None if vote is None or self.guard is None else _recorded(vote, self.guard),
        )

    def _unenrolled(self, observation: Observation, passes: int) -> Score:
        seen = consistency.curve(observation)
        statistic = float(seen.probability_drops.max())
        return Score(**self._shown(seen, seen.log_odds_drops), statistic=statistic, passes=passes)

    def _shown(self, seen: NoiseCurve, scaled: NDArray[np.float64]) -> dict[str, Any]:
        """What a person is shown: the question whose answer the noise shakes most, and where it shakes it to.

        `scaled`: (questions, levels, classes), the larger the more the noise favours that class.
        """
        highest = np.nan_to_num(scaled, nan=np.inf).max(1)  # question, class
        question, other = (int(i) for i in np.unravel_index(int(highest.argmax()), highest.shape))
        likely = list(seen.answer)
        likely[question] = other
        drops = seen.log_odds_drops[question]
        return {
            "predicted": self.head.name(seen.answer),
            "likely": self.head.name(tuple(likely)),
            "probability": float(seen.probability[question]),
            "margin": float(seen.margin.min()),
            "levels": tuple(self.noise.levels[level] for level in seen.levels),
            "probability_drops": tuple(map(float, seen.probability_drops[question])),
            "logit_drops": tuple(map(float, drops[:, other])),
            "min_noisy_margin": float(seen.noisy_margins[question].min()),
        }

    def _try_out(self) -> None:
        """A forward pass on mid gray: what does not run now must not be found out by a patient's image."""
        try:
            with torch.inference_mode():
                pixels = self.preprocess(torch.full((self._planes, 2 * self.input_size[0], self.input_size[1]), 0.5))
                odds = self.log_odds(pixels.unsqueeze(0))
                self.head.log_odds(self._fast(pixels.unsqueeze(0).to(self.device))[0])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise BundleError(
                f"bundle {self.name}: the network does not run on its own input: {_one_line(error)}.",
                advice="Check the labels, the transforms, the input size and the number of planes against the training"
                " code.",
            ) from error
        if tuple(pixels.shape[1:]) != self.input_size:
            raise BundleError(
                f"bundle {self.name}: the transforms make {tuple(pixels.shape[1:])}, not {self.input_size}.",
                advice="End the transforms with a Resize to the input size.",
            )
        if not odds.isfinite().all():
            raise BundleError(f"bundle {self.name}: the network's outputs are not finite.")


def _recorded(vote: Vote, guard: Guard) -> GuardVote:
    return GuardVote(
        votes=vote.votes,
        draws=vote.draws,
        outcome=vote.outcome.value,
        majority=guard.head.name(vote.majority),
        eps=guard.settings.eps,
        sigma=guard.settings.sigma,
        alpha=guard.settings.alpha,
    )


def _device(name: str) -> torch.device:
    try:
        return usable(name)
    except DicomguardError as error:  # to the node a device is configuration, as the bundle is
        raise BundleError(error.message, advice=error.advice) from error


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
