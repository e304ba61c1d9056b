"""One p-value for each study and protected model, drawn from its decision when that is recorded. Pure.

The images of a study are pictures of one patient by one device within minutes: three hundred slices are not three
hundred draws. So one frame stands for the study, and which one hangs on the decision's id, which the node makes after
the images came: no sender can choose what is counted, and anybody with the ledger can draw again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dicomguard.decision import Decision, InstanceDecision
from dicomguard.study import Uid


@dataclass(frozen=True, slots=True)
class Draw:
    """The conformal p-value of one frame. `images` is m, the held-back clean images that it is relative to.

    `number` rises with every draw that is recorded, whoever records it; 0 before that. `sender` is the calling AE
    title: an address may change, and a site names its modalities by their titles.
    """

    decision_id: str
    study_instance_uid: Uid
    bundle: str
    enrolment: str
    sender: str
    patient_key: str | None
    p_value: float
    images: int
    alpha: float
    at: datetime
    number: int = 0


@dataclass(frozen=True, slots=True)
class DrawGroup:
    """What draws have in common that are looked at together; `sender` None: those of all senders."""

    bundle: str
    enrolment: str
    images: int
    alpha: float
    sender: str | None = None

    @classmethod
    def of(cls, draw: Draw) -> DrawGroup:
        """The one of its sender."""
        return cls(draw.bundle, draw.enrolment, draw.images, draw.alpha, draw.sender)

    @property
    def of_all(self) -> DrawGroup:
        """The same of all senders."""
        return replace(self, sender=None)


@dataclass(frozen=True, slots=True)
class Tally:
    """How many draws a group has, and the number of the newest of them."""

    draws: int
    newest: int


def drawn_from(decision: Decision) -> list[Draw]:
    """One draw for each bundle that scored images of this decision against an enrolment; often none or one."""
    by_bundle: dict[str, list[InstanceDecision]] = {}
    for instance in decision.instances:
        if instance.bundle is not None and _p_values(instance.scores):
            by_bundle.setdefault(instance.bundle, []).append(instance)
    return [_draw(decision, bundle, instances) for bundle, instances in by_bundle.items()]


def _draw(decision: Decision, bundle: str, instances: list[InstanceDecision]) -> Draw:
    frames = [(instance, p) for instance in instances for p in _p_values(instance.scores)]
    digest = hashlib.sha256(f"{decision.decision_id} {bundle}".encode("utf-8", "replace")).digest()
    instance, p_value = frames[int.from_bytes(digest) % len(frames)]
    scores = instance.scores
    assert scores is not None
    return Draw(
        decision_id=decision.decision_id,
        study_instance_uid=decision.study_instance_uid,
        bundle=bundle,
        enrolment=scores["enrolment"],
        sender=decision.peer.rpartition("@")[0] or decision.peer,
        patient_key=decision.patient_key,
        p_value=p_value,
        images=scores["calibration_images"],
        alpha=float(scores["thresholds"]["alpha"]),
        at=decision.decided_at,
    )


def _p_values(scores: Mapping[str, Any] | None) -> list[float]:
    """Those of every frame that has one; none where there is no enrolment to be relative to.

    A frame whose numbers were not finite has none, whatever stands in its place (a conformal p-value of NaN is the
    smallest that there is): it was held for that, and it is no draw of anything.
    """
    if not scores or not isinstance(scores.get("enrolment"), str) or not isinstance(scores.get("thresholds"), dict):
        return []
    images, alpha = scores.get("calibration_images"), scores["thresholds"].get("alpha")
    if not isinstance(images, int) or images < 1 or not isinstance(alpha, float) or not 0 < alpha < 1:
        return []
    statistics, p_values = scores.get("statistics") or [], scores.get("p_values") or []
    if len(statistics) != len(p_values):
        return []
    # The smallest that there is, 1 / (m + 1), may have lost its last digit on the way through JSON.
    least = (1 - 1e-9) / (images + 1)
    found = [p for p, statistic in zip(p_values, statistics, strict=True) if _is_finite(statistic) and _is_finite(p)]
    return [float(p) for p in found if least <= p <= 1]


def _is_finite(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
