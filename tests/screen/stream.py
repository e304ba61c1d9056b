"""Decisions of an enrolled bundle as the screener records them, many at a time, with chosen p-values."""

import itertools
from datetime import UTC, datetime

import numpy as np

from dicomguard.decision import Decision, Disposition, InstanceDecision, Reason, Verdict
from dicomguard.study import Uid

_count = itertools.count(1)
ALPHA, IMAGES = 0.05, 300


def decision(p_value, *, sender="CR1", enrolment="e" * 64, bundle="chest-xray", patient=None, held=False):
    number = next(_count)
    study = Uid(f"1.2.{number}")
    scores = {
        "frames": 1,
        "enrolment": enrolment,
        "calibration_images": IMAGES,
        "thresholds": {"alpha": ALPHA},
        "p_values": [float(p_value)],
        "statistics": [-np.log(float(p_value))],
    }
    verdict = Verdict.SUSPECT if held else Verdict.CLEAN
    reasons = (Reason.SCORE_OVER_THRESHOLD,) if held else ()
    part = InstanceDecision(
        Uid(f"{study}.1"), Uid("1.2.840.10008.5.1.4.1.1.1.1"), Uid(f"{study}.2"), Uid("1.2.840.10008.1.2.1"),
        f"{number:064x}", 1, f"{number}.dcm", verdict, reasons, "quarantine" if held else "forward", "enforce",
        bundle, "f" * 64, "", scores,
    )  # fmt: skip
    return Decision(
        f"{number:032x}", f"claim-{number}", 1, study, Disposition.QUARANTINE if held else Disposition.FORWARD,
        verdict, reasons, bundle, "f" * 64, "enforce", f"{sender}@127.0.0.1", datetime(2026, 3, 1, tzinfo=UTC),
        datetime(2026, 3, 1, 0, 1, tzinfo=UTC), (), (part,), patient,
    )  # fmt: skip


def record(ledger, p_values, **changes):
    ledger.record_decisions([decision(p, **changes) for p in p_values])


def uniform(n, *, offset=0):
    """As even as can be: every rank as often as any other, in a scattered order."""
    ranks = (np.arange(n) * 7919 + 13 + offset) % n
    return (1 + np.floor((ranks + 0.5) * (IMAGES + 1) / n)) / (IMAGES + 1)


def moved(n):
    """All more surprising than half of the clean images; none flagged more than they should be."""
    even = uniform(n)
    return np.where(even <= ALPHA, even, np.maximum(np.floor(even * 0.5 * (IMAGES + 1)) / (IMAGES + 1), 0.06))


def flooded(n):
    """Every third one as surprising as can be, the rest as ever."""
    even = uniform(n)
    even[::3] = 1 / (IMAGES + 1)
    return even
