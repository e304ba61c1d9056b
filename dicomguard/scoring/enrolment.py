"""What a node needs beside a bundle: measured on clean images of the site, bound to the bundle by its fingerprint.

    enrolment.json           calibration, guard settings, self-test, promises; pins the tensors' SHA-256
    enrolment.safetensors    the guard's weights and the feature model

The name of an enrolment is the SHA-256 of its JSON, which stands in every decision that was made with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from dicomguard.decision import Thresholds
from dicomguard.errors import BundleError
from dicomguard.scoring.calibration import Calibration, Unit
from dicomguard.scoring.component import Finite, Positive
from dicomguard.scoring.files import parse_named, read_pinned
from dicomguard.scoring.guard import GuardSettings
from dicomguard.scoring.study_test import STATISTIC as STUDY_STATISTIC
from dicomguard.scoring.study_test import StudyCalibration

FOLDER = Path("enrolment")  # below the bundle's folder, unless the configuration names another
STATEMENT = Path("enrolment.json")
TENSORS = Path("enrolment.safetensors")
MINIMUM_AUROC = 0.9

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CleanSet(_Frozen):
    """The trusted images. `sha256`: over the sorted SHA-256 of their data sets, one a line.

    `left_out`: images that no guard could look at; `unreadable`: files that are no images or could not be read.
    """

    source: Annotated[str, Field(max_length=500)]
    sha256: Digest
    images: Count
    patients: Count
    left_out: Count = 0
    unreadable: Count = 0
    distilled: Count
    validation: Count
    reference: Count
    held_back: Count


class PaperMode(_Frozen):
    """theta[l] = 2 std of the probability drop at each level over the whole ladder of draws (the noise-consistency
    paper, section 2.3); `level` was chosen on validation. Beside our score in every picture, not acted upon.
    """

    theta: tuple[Positive, ...]
    level: Count
    images: Count


class Trial(_Frozen):
    """One attack of the self-test: images that still flip as files, of those tried, and the score's AUROC on them.

    `scores` of the flipped ones, for what they would do to a study of clean images.
    """

    attack: str
    tried: Count
    flipped: Count
    auroc: Annotated[float, Field(ge=0, le=1)] | None
    flagged: Count
    scores: tuple[Finite, ...] = ()


class CertifiedShare(_Frozen):
    """Of `tested` held-back clean images, `certified` with a guard distilled from `distilled` images.

    `weakest`: the share among images with the answer of which fewest are certified. A guard that says the same to every
    image certifies the most frequent answer and nothing else.
    """

    distilled: Count
    certified: Count
    agreed: Count
    tested: Count
    weakest: Annotated[float, Field(ge=0, le=1)]


class RequireCost(_Frozen):
    """Of `studies` held-back clean studies with `low` to `high` images, `held` where every image must be certified."""

    low: Count
    high: Count
    studies: Count
    held: Count


class Tolerance(_Frozen):
    """How far the fast path's score may be from the canonical one: the largest distance over clean images, doubled.

    `path` says which fast path that was; on another one nothing is known, and the canonical path does all the work.
    """

    statistic: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    path: Annotated[str, Field(max_length=100)]


class Enrolment(_Frozen):
    """enrolment.json. `armed` is the strongest mode that the self-test allows, `refusal` why it is not `enforce`."""

    format: Literal[1] = 1
    bundle: str
    fingerprint: Digest
    tensors_sha256: Digest
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    clean_set: CleanSet
    alpha: Unit
    calibration: Calibration
    paper: PaperMode
    tolerance: Tolerance
    guard: GuardSettings | None
    self_test: tuple[Trial, ...]
    armed: Literal["enforce", "shadow"]
    refusal: str
    certified: tuple[CertifiedShare, ...]
    require_cost: tuple[RequireCost, ...] = ()
    studies: StudyCalibration | None = None

    @model_validator(mode="after")
    def _one_alpha(self) -> Self:
        if self.calibration.alpha != self.alpha or (self.studies is not None and self.studies.alpha != self.alpha):
            raise ValueError("the statement and its calibrations name different alphas")
        if self.studies is not None and self.studies.statistic != STUDY_STATISTIC:
            raise ValueError("the studies were calibrated with another statistic than this version's: enrol again")
        return self

    def thresholds(self) -> Thresholds:
        """What a decision holds a score against."""
        return Thresholds(
            self.calibration.threshold,
            self.alpha,
            self.calibration.margin_floor,
            self.paper.theta,
            self.paper.level,
        )


@dataclass(frozen=True, slots=True)
class Enrolled:
    """An enrolment as it was read: the statement, its name, and the tensors."""

    statement: Enrolment
    sha256: str
    tensors: Mapping[str, Tensor]


def read(folder: Path, *, bundle: str, fingerprint: str, levels: int) -> Enrolled | None:
    """The enrolment in `folder`; None where there is none. `levels`: how many noise levels the bundle has.

    Raises:
        BundleError: it is malformed, truncated, or was made for another scorer; the text says what to do.

    """
    path = folder / STATEMENT
    if not path.exists():
        return None
    statement, sha256 = parse_named(Enrolment, path)
    if statement.fingerprint != fingerprint:
        raise BundleError(
            f"{path} belongs to the fingerprint {statement.fingerprint[:12]}..., bundle {bundle} has "
            f"{fingerprint[:12]}...: weights, transforms, noise settings or the statistic have changed since.",
            advice="Enrol this bundle again, or restore the files that it was enrolled with.",
        )
    stages = statement.calibration.stages
    if len(statement.paper.theta) != levels or len(statement.calibration.exits) != len(stages) - 1:
        raise BundleError(f"{path} does not fit the bundle's noise levels.", advice="Enrol this bundle again.")
    data = read_pinned(folder / TENSORS, statement.tensors_sha256)
    try:
        tensors: dict[str, Tensor] = load_safetensors(data)
    except SafetensorError as error:
        raise BundleError(f"{folder / TENSORS} is no safetensors file: {error}.", advice="Enrol again.") from error
    return Enrolled(statement, sha256, tensors)


def write(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Enrolment:
    """Store an enrolment; `facts` is everything of `Enrolment` but the checksum. The statement comes last, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save_safetensors({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    statement = Enrolment(**facts, tensors_sha256=hashlib.sha256(data).hexdigest())
    text = json.dumps(statement.model_dump(mode="json"), separators=(",", ":")) + "\n"
    for name, content in ((TENSORS, data), (STATEMENT, text.encode())):
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, folder / name)  # noqa: PTH105 - atomic, also over an enrolment that is there
    return statement
