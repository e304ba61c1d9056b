"""The five supervised detectors of Joel et al. 2023, run as they ran them and with the leaks closed.

What leaks in the published protocol: the epoch is chosen on the test files; attacked pictures are floats while clean
ones are k/255, so that a detector may learn what a file can never hold; pictures of one patient stand on both sides;
and nothing but attacks is ever seen to change a picture, so that a detector may learn change. `Protocol` says which of
these are open.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomguard.attacks.rounded import rounded
from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors.joel_features import DeepFeatures, FeatureDetector, Kind, default_features
from dicomguard.lab.detectors.joel_networks import PAPER as PAPER_PROFILE
from dicomguard.lab.detectors.joel_networks import DeepDetector, Profile
from dicomguard.lab.detectors.judge import flags
from dicomguard.lab.detectors.roc import auroc_interval
from dicomguard.lab.detectors.sight import Scores, Sight, joined
from dicomguard.lab.detectors.supervised import Supervised
from dicomguard.lab.figures import clustered, share
from dicomguard.pixels.image import Image

_TEST = 1 / 3
_VALIDATION = 1 / 5  # of what is not test
_GROUPS = 6


@dataclass(frozen=True, slots=True)
class Protocol:
    """Which leaks are open. `select_on_test`: the epoch. `by_image`: the split is by picture, whoever the patient is.

    `floats`: attacked pictures before they are stored, and clean ones with the 256 values of their picture files.
    `augmented`: clean pictures are also taught and chosen with after harmless changes. `flatten`: deep features as the
    paper took them, see `joel_features`.
    """

    name: str
    select_on_test: bool = False
    by_image: bool = False
    floats: bool = False
    augmented: bool = False
    flatten: bool = False


PAPER = Protocol("paper", select_on_test=True, by_image=True, floats=True, flatten=True)
"""As published."""
FLOATS = Protocol("floats", floats=True, augmented=True)
"""The second leak alone."""
CHANGE = Protocol("change")
"""The last one alone: whatever is changed is attacked."""
CLOSED = Protocol("closed", augmented=True)
PROTOCOLS = {protocol.name: protocol for protocol in (PAPER, FLOATS, CHANGE, CLOSED)}


@dataclass(frozen=True, slots=True)
class Pairs:
    """N pictures of one victim: `clean`, attacked before rounding (`floats`) and as a file holds it (`stored`).

    `keys` name the pictures, `groups` their patients. Attacks that failed are kept, as theirs were. `harmless`: the
    clean pictures, as often as one likes, after changes that are no attack.
    """

    clean: Sight
    floats: Sight
    stored: Sight
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    harmless: tuple[Sight, ...] = ()

    def __post_init__(self) -> None:
        parts: tuple[Sized, ...] = (self.clean, self.floats, self.stored, self.keys, self.groups, *self.harmless)
        if len({len(part) for part in parts}) != 1:
            raise ValueError("pairs need as many attacked pictures, keys and groups as clean pictures")

    def attacked(self, protocol: Protocol) -> Sight:
        """The attacked pictures that a protocol shows."""
        return self.floats if protocol.floats else self.stored

    def lessons(self, places: NDArray[np.int64], protocol: Protocol) -> tuple[Sight, Sight]:
        """Clean and attacked pictures to teach or choose with, as many of the one as of the other."""
        harmless = self.harmless if protocol.augmented else ()
        clean = joined([one.only(places) for one in (self.clean, *harmless)])
        return clean, joined([self.attacked(protocol).only(places)] * (1 + len(harmless)))


@dataclass(frozen=True, slots=True)
class Parts:
    """Places of the pictures that teach, choose and test. With `select_on_test` the last two are the same."""

    train: NDArray[np.int64]
    selection: NDArray[np.int64]
    test: NDArray[np.int64]


def split(groups: Sequence[str], protocol: Protocol, *, seed: int = 0) -> Parts:
    """Two to one, as the paper; a fifth of the first part chooses the epoch where the test does not.

    Raises:
        DicomguardError: fewer than six patients (or pictures, where the split is by those).

    """
    names = [f"{i}" for i in range(len(groups))] if protocol.by_image else list(groups)
    distinct = sorted(set(names))
    if len(distinct) < _GROUPS:
        what = "pictures" if protocol.by_image else "patients"
        raise DicomguardError(
            f"{len(distinct)} {what} cannot be divided into those that teach, choose and test a detector.",
            advice=f"Give pictures of at least {_GROUPS} {what}.",
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    tested = max(round(len(distinct) * _TEST), 1)
    chosen = 0 if protocol.select_on_test else max(round((len(distinct) - tested) * _VALIDATION), 1)
    part_of = {distinct[g]: 0 if i < tested else 1 if i < tested + chosen else 2 for i, g in enumerate(order)}
    part = np.array([part_of[name] for name in names])
    test = np.flatnonzero(part == 0)
    return Parts(np.flatnonzero(part == 2), test if protocol.select_on_test else np.flatnonzero(part == 1), test)


@dataclass(frozen=True, slots=True)
class Trial:
    """A detector that was taught and tested under one protocol. `clean`, `attacked`: scores of the test pictures.

    `figures`: JSON-ready.
    """

    test: NDArray[np.int64]
    clean: Scores
    attacked: Scores
    figures: dict[str, Any]


def trial(detector: Supervised, pairs: Pairs, protocol: Protocol, *, seed: int = 0) -> Trial:
    """Teach and test `detector`.

    `figures`: `accuracy`, the share answered rightly of clean and attacked test pictures together, by the detector's
    own decision, as the paper counts, its interval over patients; `clean_flagged` and `attacked_flagged`; AUROC with
    its interval, paired by picture; how many pictures were in each part; `shared_patients`: test pictures whose patient
    taught, too.

    Raises:
        DicomguardError: as `split` and the detector's `fit`; no harmless changes where the protocol asks for them.

    """
    if protocol.augmented and not pairs.harmless:
        raise DicomguardError("clean pictures after harmless changes are needed, and there are none.")
    parts = split(pairs.groups, protocol, seed=seed)
    selection = pairs.lessons(parts.selection, protocol)
    detector.fit(*pairs.lessons(parts.train, protocol), seed=seed, selection=selection)
    clean, caught = (
        detector.scores(pairs.clean.only(parts.test)),
        detector.scores(pairs.attacked(protocol).only(parts.test)),
    )
    keys, groups = [pairs.keys[i] for i in parts.test], [pairs.groups[i] for i in parts.test]
    taught = {pairs.groups[i] for i in parts.train}
    figures = {
        "detector": detector.name,
        "protocol": protocol.name,
        "seed": seed,
        "reductions": list(detector.reductions),
        "accuracy": clustered(np.concatenate([~flags(clean, 0), flags(caught, 0)]), 2 * groups),
        "clean_flagged": share(flags(clean, 0)),
        "attacked_flagged": share(flags(caught, 0)),
        "auroc": auroc_interval(clean, caught, keys, keys, seed=seed),
        "pictures": {"train": len(parts.train), "selection": len(parts.selection), "test": len(parts.test)},
        "shared_patients": int(sum(pairs.groups[i] in taught for i in parts.test)),
    }
    return Trial(parts.test, clean, caught, figures)


def five(
    profile: Profile = PAPER_PROFILE,
    *,
    features: DeepFeatures | None = None,
    resnet: Path | None = None,
    densenet: Path | None = None,
    download: bool = False,
    flatten: bool = False,
    device: str = "cpu",
) -> list[Supervised]:
    """Fresh detectors: ResNet-50, DenseNet-121, and LR, RF, SVM on shared deep features.

    `resnet`, `densenet`: files with ImageNet weights; `download`: see `backbones`. What is reduced is in `reductions`.

    Raises:
        DicomguardError: weights that cannot be read, or none at all for the features.

    """
    shared = features or default_features(densenet, download=download, flatten=flatten)
    files = {"resnet50": resnet, "densenet121": densenet}
    deep = [
        DeepDetector(kind, profile, weights=None if profile.small else file, download=download, device=device)
        for kind, file in files.items()
    ]
    return [*deep, *(FeatureDetector(kind, shared) for kind in Kind)]


def with_uniform_noise(images: Sequence[Image], eps: float, *, seed: int = 0, stored: bool = True) -> list[Image]:
    """Each image plus noise of its own, uniform in [-eps, eps] of the unit range: no attack at all.

    `stored`: rounded to stored bits, as a file would hold it.

    Raises:
        DicomguardError: an image without a way back to stored values.

    """
    found = []
    for place, image in enumerate(images):
        rng = np.random.default_rng([seed, place])
        noisy = np.clip(image.pixels + rng.uniform(-eps, eps, image.pixels.shape), 0, 1).astype(np.float32)
        found.append(rounded(image, noisy) if stored else replace(image, pixels=noisy))
    return found
