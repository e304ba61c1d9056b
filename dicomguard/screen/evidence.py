"""What a person gets to see of a held study: the numbers as JSON, the noise curve and the saliency as pictures.

Written by the screener, which has the model at hand; whoever shows it computes nothing.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np

mpl.use("agg")  # no display on a server; before pyplot is ever touched

from matplotlib.figure import Figure  # after the backend is chosen

from dicomguard.decision import Decision, Fault, Policy, Score, Verdict  # as above
from dicomguard.plain_json import finite  # as above
from dicomguard.scoring.scorer import Scorer  # as above
from dicomguard.screen.examine import Examined, Examiner  # as above
from dicomguard.screen.verdicts import worst_frame  # as above

# Pictures of the worst instances only: a held study of 2,000 slices must not spend minutes on drawing.
_MAX_PICTURES = 12


def collect(
    decision: Decision, examined: Sequence[Examined], examiner: Examiner, policy: Policy
) -> Iterator[tuple[str, bytes]]:
    """File names and contents for one held decision: `evidence.json` and, per flagged instance, two pictures."""
    summary = {
        "decision": decision.to_json(),
        "seed": "HMAC-SHA256(site key, SOP Instance UID, frame, SHA-256 of the data set, fingerprint, purpose);"
        " 'dicomguard evidence export' gives out those of this decision, never the key",
        "receipts": [item.instance.receipt.to_json() for item in examined],
    }
    yield "evidence.json", json.dumps(finite(summary), indent=1, allow_nan=False).encode()
    for item, scorer, worst in _worst_first(decision, examined, policy)[:_MAX_PICTURES]:
        thresholds = scorer.thresholds
        stem = item.instance.path.stem
        if thresholds is not None and worst.is_finite:
            theta = dict(zip(scorer.noise.levels, thresholds.paper_theta, strict=True))
            yield f"{stem}.noise.png", noise_curve(worst, theta, thresholds.statistic)
        seen = examiner.saliency(item, worst.frame)
        if seen is not None:
            image, prepared, saliency = seen
            yield f"{stem}.saliency.png", saliency_picture(prepared.numpy(), saliency.numpy(), image.frame)


def _worst_first(
    decision: Decision, examined: Sequence[Examined], policy: Policy
) -> list[tuple[Examined, Scorer, Score]]:
    """The scored instances that have a reason, with their worst frames: suspects first, then by their statistics."""
    by_digest = {e.instance.receipt.sha256: e for e in examined}
    found: list[tuple[tuple[bool, float], Examined, Scorer, Score]] = []
    for instance in decision.instances:
        item = by_digest.get(instance.sha256) if instance.reasons else None
        if item is None or item.model is None or isinstance(item.finding, Fault):
            continue
        scorer = item.model.scorer
        worst = worst_frame(item.finding, scorer.thresholds, policy)
        height = worst.statistic if worst.is_finite else math.inf
        found.append(((instance.verdict is not Verdict.SUSPECT, -height), item, scorer, worst))
    return [(item, scorer, worst) for _, item, scorer, worst in sorted(found, key=lambda one: one[0])]


def noise_curve(score: Score, theta: Mapping[float, float], threshold: float) -> bytes:
    """PNG: drop of the predicted class's probability and log-odds against the noise level, with the paper's theta.

    `theta`: noise level (fraction of the input range) -> threshold. Only the levels that were drawn are shown: a look
    that found nothing ends early.
    """
    percent = [100 * level for level in score.levels]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(percent, score.probability_drops, "o-", color="#b2182b", label="this image")
    drawn = [level for level in score.levels if level in theta]
    left.plot(
        [100 * level for level in drawn],
        [theta[level] for level in drawn],
        "s--",
        color="#555555",
        label="theta = 2 std of clean images",
    )
    left.set(ylabel="drop of probability", ylim=(min(-0.05, *score.probability_drops), 1.05))
    left.legend(frameon=False)
    towards = f" to '{score.likely}'" if score.likely else ""
    right.plot(percent, score.logit_drops, "o-", color="#2166ac", label=f"this image{towards}")
    right.axhline(score.margin, color="#555555", linestyle=":", label="margin without noise")
    highest = max(score.margin, *score.logit_drops)
    right.set(ylabel="drop of margin (logit)", ylim=(min(-0.1 * highest, *score.logit_drops), 1.4 * highest))
    right.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.set(xlabel="noise (% of input range)", xticks=percent)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"frame {score.frame}: '{score.predicted}' with {score.probability:.3f};"
        f" statistic {score.statistic:.2f}, threshold {threshold:.2f}, p-value {score.p_value:.2g}",
        fontsize=10,
    )
    return _png(figure)


def saliency_picture(prepared: np.ndarray, saliency: np.ndarray, frame: int) -> bytes:
    """PNG: the image (planes, H, W) as the model sees it, and beside it what its answer depends on (H, W)."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    plain, overlaid = figure.subplots(1, 2)
    grey = prepared[0] if prepared.shape[0] != 3 else np.moveaxis(prepared, 0, -1)
    span = float(np.percentile(saliency, 99.5)) or 1.0
    plain.imshow(grey, cmap="gray", vmin=0, vmax=1)
    plain.set_title(f"frame {frame}, as the model sees it", fontsize=10)
    overlaid.imshow(grey, cmap="gray", vmin=0, vmax=1)
    overlaid.imshow(saliency, cmap="inferno", vmin=0, vmax=span, alpha=np.clip(saliency / span, 0, 1) * 0.8)
    overlaid.set_title("what the answer depends on most", fontsize=10)
    for axes in (plain, overlaid):
        axes.set_axis_off()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
