"""Calibrate a scorer on clean images: the shipped bundles, an imported model, or a site of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.scoring import calibration, noise
from dicomguard.scoring.calibration import Calibration
from dicomguard.scoring.consistency import NoiseCurve
from dicomguard.scoring.scorer import Scorer

# Not a secret: calibration noise has only to be independent of the images, and the same when it is drawn again.
_KEY = b"calibration"


def calibrate(
    scorer: Scorer,
    images: Iterable[Image],
    groups: Sequence[str],
    *,
    source: str,
    alpha: float = 0.05,
    truths: Sequence[str] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Calibration:
    """Score clean images one by one (they may come from a generator) and fit; `bundle.write_calibration` stores it.

    `groups`: one name for each image, the same for images of one patient. `truths`: their labels, where known; the
    paper's theta then uses the correctly classified ones only. `source` says in words where the images came from.

    Raises:
        BundleError: too few images for `alpha` (found out before any is scored), a label that the bundle does not
            have, or scores that cannot be calibrated.

    """
    calibration.require_enough(groups, alpha)
    unknown = sorted(set(truths or ()) - set(scorer.labels))
    if unknown:
        raise BundleError(
            f"label {unknown[0]!r} is none of the bundle's.", advice=f"Use {scorer.labels[0]} or {scorer.labels[1]}."
        )
    curves: list[NoiseCurve] = []
    for index, image in enumerate(images):
        seed = noise.seed(_KEY, str(index), image.frame, "", scorer.fingerprint, "calibration")
        curves += scorer.curves(scorer.prepare([image]), [seed])
        advance()
    if not len(curves) == len(groups) == len(truths if truths is not None else groups):
        raise BundleError(f"{len(curves)} images, {len(groups)} groups: one for each is needed.")
    correct = None
    if truths is not None:
        correct = [scorer.labels[curve.logit >= 0] == truth for curve, truth in zip(curves, truths, strict=True)]
    return calibration.fit(
        curves, groups, fingerprint=scorer.fingerprint, source=source, alpha=alpha, is_correct=correct
    )
