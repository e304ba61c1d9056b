"""What a detector is given of many files of one victim, looked at once by the one scorer; and what a detector is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dicomguard.errors import DicomguardError
from dicomguard.lab.whole import replacing
from dicomguard.pixels.image import Image
from dicomguard.scoring.calibration import Evidence
from dicomguard.scoring.consistency import Draw, Observation
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Scorer

Scores = NDArray[np.float64]
Tick = Callable[[int], None]

_BATCH = 32
_FORMAT = 1
_ARRAYS = ("format", "pixels", "log_odds", "features", "clean", "noisy", "draws")


@dataclass(frozen=True, slots=True)
class Sight:
    """N files as one victim sees them.

    `pixels`: (N, planes, H, W) float32 in [0, 1], prepared, before normalisation. `log_odds`: (N, questions, classes)
    and `features`: (N, F) of the canonical path. `evidence`: N of them, all with the same draws.

    Raises ValueError where the parts do not belong together.
    """

    pixels: Tensor
    log_odds: Scores
    features: Scores
    evidence: tuple[Evidence, ...]

    def __post_init__(self) -> None:
        counts = {len(self.pixels), len(self.log_odds), len(self.features), len(self.evidence)}
        if len(counts) != 1 or self.pixels.ndim != 4 or self.log_odds.ndim != 3 or self.features.ndim != 2:
            raise ValueError(f"a sight's parts do not fit: {counts} files")
        if any(one.seen.draws != self.draws for one in self.evidence):
            raise ValueError("a sight's files were not looked at with the same draws")
        for part in ("distances", "guard_share"):
            if len({getattr(one, part) is None for one in self.evidence}) > 1:
                raise ValueError(f"some files of a sight have {part}, others have none")

    def __len__(self) -> int:
        return len(self.evidence)

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Every draw of noise that each file was looked at with."""
        return self.evidence[0].seen.draws if self.evidence else ()

    @property
    def answers(self) -> NDArray[np.int64]:
        """The class of each question: (N, questions)."""
        found: NDArray[np.int64] = self.log_odds.argmax(-1)
        return found

    def only(self, which: ArrayLike) -> Sight:
        """The files at `which`: places, in that order and as often as named, or one truth value for each file."""
        places = np.asarray(which)
        if places.dtype == bool:
            if places.shape != (len(self),):
                raise ValueError(f"{len(self)} files need as many truth values, not {places.shape}")
            (places,) = np.nonzero(places)
        places = places.astype(np.int64)
        return Sight(
            self.pixels[torch.from_numpy(places)],
            self.log_odds[places],
            self.features[places],
            tuple(self.evidence[i] for i in places),
        )

    def save(self, path: Path) -> None:
        """Write to an npz file without pickle, first beside it: `path` is never a part of a file.

        Raises:
            DicomguardError: the folder is absent, or its disk full.

        """
        arrays: dict[str, NDArray[np.generic]] = {
            "format": np.array(_FORMAT),
            "pixels": self.pixels.numpy(),
            "log_odds": self.log_odds,
            "features": self.features,
            "draws": np.array(self.draws, np.int64).reshape(-1, 2),
            "clean": np.array([one.seen.clean for one in self.evidence]),
            "noisy": np.array([one.seen.noisy for one in self.evidence]),
        }
        distances = [one.distances for one in self.evidence if one.distances is not None]
        shares = [one.guard_share for one in self.evidence if one.guard_share is not None]
        if distances:
            arrays["distances"] = np.array(distances)
        if shares:
            arrays["guard_share"] = np.array(shares)
        try:
            with replacing(path) as partial, partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as error:
            raise DicomguardError(
                f"{path} cannot be written: {error}.", advice="Make room, or choose another folder for results."
            ) from error


def load(path: Path) -> Sight:
    """The inverse of `Sight.save`.

    Raises:
        DicomguardError: the file is absent, cut off, or none of ours.

    """
    try:
        # Opened here, because numpy leaves a file open that turns out not to be one of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            found = {name: kept[name] for name in kept.files}
        return _sight(found)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise DicomguardError(
            f"{path} cannot be read as what a detector saw: {error}.", advice="Delete it; the next run makes it again."
        ) from error


def _sight(found: Mapping[str, NDArray[Any]]) -> Sight:
    if missing := [name for name in _ARRAYS if name not in found]:
        raise ValueError(f"it has no {missing[0]}")
    if int(found["format"]) != _FORMAT:
        raise ValueError(f"its format is {int(found['format'])}, not {_FORMAT}")
    draws = tuple((int(level), int(repeat)) for level, repeat in found["draws"])
    count = len(found["pixels"])
    distances, shares = found.get("distances", [None] * count), found.get("guard_share", [None] * count)
    seen = [Observation(c, n, draws) for c, n in zip(found["clean"], found["noisy"], strict=True)]
    evidence = [
        Evidence(one, None if far is None else np.asarray(far, np.float64), None if vote is None else float(vote))
        for one, far, vote in zip(seen, distances, shares, strict=True)
    ]
    return Sight(torch.from_numpy(found["pixels"]), found["log_odds"], found["features"], tuple(evidence))


def joined(sights: Sequence[Sight]) -> Sight:
    """All files of several sights of one victim, one after another. Raises ValueError where they do not fit."""
    if not sights:
        raise ValueError("there is no sight to join")
    filled = [sight for sight in sights if len(sight)] or [sights[0]]
    if len({(s.pixels.shape[1:], s.log_odds.shape[1:], s.features.shape[1:]) for s in filled}) > 1:
        raise ValueError("sights of different victims cannot be joined")
    return Sight(
        torch.cat([sight.pixels for sight in filled]),
        np.concatenate([sight.log_odds for sight in filled]),
        np.concatenate([sight.features for sight in filled]),
        tuple(one for sight in filled for one in sight.evidence),
    )


def look(
    scorer: Scorer,
    images: Sequence[Image],
    seeds: Sequence[Seeds],
    draws: Sequence[Draw] | None = None,
    *,
    batch: int = _BATCH,
    tick: Tick | None = None,
) -> Sight:
    """Look at images with `draws` of noise, else the whole ladder of the bundle's, each with its own seeds.

    `tick` counts images. Without any draws, `()`, what is seen is pixels, answers, features and the guard's share.

    Neighbours change nothing (but the last bits of a float). An image with adversarial floats in its `pixels` is seen
    as such; what comes from a file is rounded already.

    Raises:
        DicomguardError: there are no images.
        ValueError: not as many seeds as images.

    """
    if len(images) != len(seeds):
        raise ValueError(f"{len(images)} images need as many seeds, not {len(seeds)}")
    if not images:
        raise DicomguardError("there are no images to look at.", advice="Check the data set and its split.")
    drawn = scorer.noise.ladder() if draws is None else draws
    parts = []
    for start in range(0, len(images), batch):
        prepared = scorer.prepare(images[start : start + batch])
        answered = scorer.answer(prepared.pixels)
        evidence, _ = scorer.look(prepared, seeds[start : start + batch], drawn, answered=answered)
        # What comes out of inference mode takes no gradients; detectors may be attacked.
        pixels = prepared.pixels.cpu().clone()
        parts.append(Sight(pixels, answered.log_odds, answered.features, tuple(evidence)))
        if tick is not None:
            tick(len(pixels))
    return joined(parts)


class Detector(Protocol):
    """Anything that tells attacked files from clean ones. It sets no threshold; see `judge`."""

    name: str

    def fit(self, calibration: Sight, attacked: Sight | None = None, *, seed: int = 0) -> None:
        """Learn from clean files; from attacked ones only what is supervised, or says that it chooses by them.

        The files that a threshold is set on afterwards must be others: no detector is as surprised by what it learned.

        Raises:
            DicomguardError: too few files, a class without any, numbers that are not finite.

        """
        ...

    def scores(self, sight: Sight) -> Scores:
        """One number for each file, (N,): larger is more suspicious, infinite where the detector cannot see it.

        Never NaN. A file's score does not depend on the others.
        """
        ...


def failed_closed(values: ArrayLike) -> Scores:
    """Scores as they are, infinite in place of NaN: no number is no innocence."""
    found = np.asarray(values, np.float64)
    return np.where(np.isnan(found), np.inf, found)


def require(calibration: Sight, least: int, name: str) -> None:
    """Refuse to fit on too few files, or on such as have no finite features or log-odds.

    Raises:
        DicomguardError: saying which and how many.

    """
    if len(calibration) < least:
        raise DicomguardError(
            f"{name} needs {least} clean files to be fitted on, not {len(calibration)}.",
            advice="Give more clean files to the calibration split, or leave this detector out.",
        )
    numbers = np.concatenate([calibration.features, calibration.log_odds.reshape(len(calibration), -1)], 1)
    broken: NDArray[np.bool_] = ~np.isfinite(numbers).all(1)
    if broken.any():
        raise DicomguardError(
            f"{name} cannot be fitted: {int(broken.sum())} of {len(broken)} clean files have features or log-odds that"
            f" are NaN or infinite, the first at place {int(broken.argmax())}.",
            advice="Check the victim's weights and transforms on that file.",
        )


def require_features(calibration: Sight, name: str) -> None:
    """Refuse a victim without features.

    Raises:
        DicomguardError: its network has no linear layer.

    """
    if not calibration.features.shape[1]:
        raise DicomguardError(
            f"{name} needs features, and this victim's network has no linear layer that is given any.",
            advice="Leave this detector out for this victim.",
        )
