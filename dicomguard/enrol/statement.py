"""One page that says what an enrolment promises, and what it does not: for the people who sign for the node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scipy import stats

from dicomguard.enrol.intervals import clopper_pearson
from dicomguard.scoring.enrolment import CertifiedShare, Enrolment
from dicomguard.scoring.study_test import StudyCalibration

_SIZES = (1, 10, 100, 500)
_DILUTED = (1, 2, 10, 100, 500)  # images in a study of which one is attacked
_BITS = (8, 12, 16)


def false_alarm_band(held_back: int, alpha: float, confidence: float = 0.95) -> tuple[float, float]:
    """Where the realised false-alarm rate of this very enrolment lies: Beta(k, n + 1 - k), k = floor(alpha (n + 1)).

    Vovk 2012. The mean over enrolments is at most alpha; one enrolment is somewhat above or below it.
    """
    k = max(int(alpha * (held_back + 1) + 1e-9), 1)
    law = stats.beta(k, held_back + 1 - k)
    tail = (1 - confidence) / 2
    return float(law.ppf(tail)), float(law.ppf(1 - tail))


def hold_rate(share: CertifiedShare, images: int) -> float:
    """What `certificate: require` holds of clean studies of `images` images, if images were independent."""
    return float(1 - (share.certified / max(share.tested, 1)) ** images)


def promised(enrolment: Enrolment) -> list[tuple[int, int]]:
    """Sizes of studies with a promise, from smallest to largest; one image has that of the image threshold."""
    spans = () if enrolment.studies is None else enrolment.studies.promised()
    return [(1, 1), *(span for span in spans if span[0] > 1)]


def page(enrolment: Enrolment) -> str:
    """The statement as Markdown."""
    return "\n".join(_lines(enrolment)) + "\n"


def facts(enrolment: Enrolment) -> dict[str, Any]:
    """The same for machines: the enrolment without the numbers that only the scorer reads."""
    low, high = false_alarm_band(enrolment.calibration.images[1], enrolment.alpha)
    return {
        **enrolment.model_dump(mode="json", exclude={"calibration", "studies"}),
        "threshold": enrolment.calibration.threshold,
        "margin_floor": enrolment.calibration.margin_floor,
        "false_alarm_interval": [low, high],
        "study_sizes_promised": [list(span) for span in promised(enrolment)],
        "require_holds": {str(n): hold_rate(enrolment.certified[-1], n) for n in _SIZES}
        if enrolment.guard is not None and enrolment.certified
        else None,
    }


def _lines(e: Enrolment) -> Iterator[str]:
    c = e.clean_set
    yield f"# What dicomguard promises for {e.bundle}"
    yield ""
    yield f"Bundle fingerprint `{e.fingerprint}`, enrolled {e.created}."
    yield (
        f"Clean set: {c.images} images of {c.patients} patients, or groups that stand in for them ({c.source}), SHA-256"
        f" `{c.sha256}`."
    )
    if c.left_out or c.unreadable:
        yield (
            f"**Not in it**: {c.left_out} image(s) that no guard could look at (palette colour, ranges without"
            f" precision), {c.unreadable} file(s) that are no images or could not be read."
        )
    yield (
        f"Divided by patient: {c.distilled} taught the guard, {c.validation} were attacked, {c.reference} are the"
        f" reference, {c.held_back} were held back for the thresholds."
    )
    yield ""
    yield f"**May be enforced: {'yes' if e.armed == 'enforce' else 'no, shadow only'}.** {e.refusal}".rstrip()
    yield ""
    yield from _alarms(e)
    yield from _studies(e)
    yield from _certificate(e)
    yield from _self_test(e)
    yield "## What is not promised"
    yield ""
    yield "- Nothing about another model: this is about the bundle, and the AI behind the node may be another one."
    yield "- No detection rate against an attacker who knows the check and optimises through it."
    yield "- Nothing where traffic differs from the clean set: another scanner, protocol or compression."
    yield "  'dicomguard drift' watches for that; enrol again when it says so."
    yield "- Nothing about headers, about edits larger than the budget, or about the bundle being right."


def _alarms(e: Enrolment) -> Iterator[str]:
    low, high = false_alarm_band(e.calibration.images[1], e.alpha)
    yield "## False alarms"
    yield ""
    yield (
        f"A clean image like those of the clean set is held with probability at most {e.alpha:g}. With"
        f" {e.calibration.images[1]} held-back images the rate of this enrolment lies between {low:.3f} and {high:.3f}"
        " (95 %)."
    )
    f = e.calibration
    if f.low_margins or f.unenrolled:
        yield (
            f"Among the held-back images that count as alarms, whatever they scored: {f.low_margins} below the margin"
            f" floor, {f.unenrolled} of a kind, a range or a contrast that no other clean image has."
        )
    yield ""


def _studies(e: Enrolment) -> Iterator[str]:
    yield "## Whole studies"
    yield ""
    covered = promised(e)
    sizes = ", ".join(span(low, high) for low, high in covered)
    yield f"The same holds, for each look at it, for a clean study as a whole of {sizes} image(s)."
    yield (
        f"**No promise above {covered[-1][1]} image(s)**, nor between those: too few clean studies of such sizes were"
        f" enrolled ({_needed(e.alpha)} are needed for each band)."
    )
    if e.studies is not None:
        judged = ", ".join(span(low, high) for low, high in e.studies.judged())
        yield (
            f"Studies of {judged} image(s) are judged all the same, where there is no promise by an extrapolated tail."
            " **Of any other size they are held** (`policy.unknown_size`): the clean studies cannot speak for them, and"
            " whoever sends a study could hide one image among many."
        )
    yield ""
    if e.studies is not None:
        yield "| images in the study | clean studies |"
        yield "|---|---|"
        for band in e.studies.bands:
            yield f"| {band.low}-{band.high} | {band.studies} |"
        yield ""


def span(low: int, high: int) -> str:
    """Sizes of studies in words: 1, or 2-20."""
    return str(low) if low == high else f"{low}-{high}"


def _needed(alpha: float) -> int:
    return int(1 / alpha - 1 + 0.999999)


def _certificate(e: Enrolment) -> Iterator[str]:
    yield "## Certificates"
    yield ""
    if e.guard is None:
        yield "None: this bundle was enrolled without a guard (too few clean images, or not asked for)."
        yield ""
        return
    g = e.guard
    where = "what Bits Stored can hold" if g.window is None else f"{g.window[0]:g} to {g.window[1]:g} modality units"
    yield (
        "CERTIFIED means: whatever was done to the stored pixels, as long as none moved by more than eps ="
        f" {g.eps:g} of {where} ({_grey_levels(e)}), the guard's answer on the image as acquired is the answer that"
        f" the bundle gives now. Wrong with probability at most {g.alpha:g} for each image. Noise sigma {g.sigma:g},"
        f" votes read after {', '.join(map(str, g.looks))} draws."
    )
    yield ""
    yield "It proves nothing where guard and bundle disagreed on the image as acquired, and nothing about a study as a"
    yield "whole. The header's window plays no part in the budget."
    yield ""
    yield "| clean images that taught the guard | certified | of the answer with fewest | guard agrees |"
    yield "|---|---|---|---|"
    for share in e.certified:
        low, high = clopper_pearson(share.certified, share.tested)
        yield (
            f"| {share.distilled} | {share.certified}/{share.tested} = {share.certified / max(share.tested, 1):.3f}"
            f" ({low:.3f}-{high:.3f}) | {share.weakest:.3f} | {share.agreed / max(share.tested, 1):.3f} |"
        )
    yield ""
    if e.certified:
        measured = ", ".join(f"{c.held} of {c.studies} with {span(c.low, c.high)} image(s)" for c in e.require_cost)
        yield f"`certificate: require` would have held, of the held-back clean studies: {measured or 'none there'}."
        rates = ", ".join(f"{hold_rate(e.certified[-1], n):.0%} of those with {n}" for n in _SIZES)
        yield f"If the images of a study were independent, which they are not quite: {rates}."
        yield ""


def _grey_levels(e: Enrolment) -> str:
    assert e.guard is not None
    if e.guard.window is not None:
        return f"{e.guard.eps * (e.guard.window[1] - e.guard.window[0]):.3g} units"
    return ", ".join(f"{e.guard.eps * (2**bits - 1):.3g} grey levels of {bits} bits" for bits in _BITS)


def _self_test(e: Enrolment) -> Iterator[str]:
    yield "## Self-test"
    yield ""
    yield "Attacked clean images, rounded to stored bits, that changed the bundle's answer:"
    yield ""
    yield "| attack | tried | answer changed | AUROC | flagged |"
    yield "|---|---|---|---|---|"
    for trial in e.self_test:
        auroc = "-" if trial.auroc is None else f"{trial.auroc:.3f}"
        yield f"| {trial.attack} | {trial.tried} | {trial.flipped} | {auroc} | {trial.flagged} |"
    yield ""
    if e.studies is not None:
        spans = e.studies.judged()
        sizes = [n for n in _DILUTED if any(low <= n <= high for low, high in spans)]
        yield "One attacked image in a study of clean ones that raise no suspicion at all; of those attacked, held:"
        yield ""
        yield f"| images in the study | {' | '.join(map(str, sizes))} |"
        yield "|---" * (len(sizes) + 1) + "|"
        for trial in e.self_test:
            cells = " | ".join(_held(e.studies, trial.scores, n) for n in sizes)
            yield f"| {trial.attack} | {cells} |"
        yield ""


def _held(studies: StudyCalibration, scores: Sequence[float], images: int) -> str:
    found = [studies.judge([score, *[0.0] * (images - 1)]).flagged for score in scores]
    return f"{sum(found)} of {len(found)}"
