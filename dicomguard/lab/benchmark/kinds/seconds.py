"""Cells that say what checking costs beside the victim's own pass: the other half of what attacks cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.files import opened
from dicomguard.lab.benchmark.kinds.opening import collection_of, scorer_of
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.datasets import Split
from dicomguard.scoring.scorer import Batch

_ROUNDS: Final = 5
_BATCH: Final = 8  # as the node forms them
ALONE: Final = "the victim alone"
"""What the others are compared with."""
PAPER: Final = "the paper's check, its whole ladder"


def seconds(settings: dict[str, Any], place: Place) -> Result:
    """Seconds an image on `cases` clean test files, in batches as the node's: the victim alone, and with each check.

    Rounds alternate, so that whatever else the machine does hits all alike; the median of the rounds, and its ratio to
    the victim alone, are given.
    """
    scorer, collection = scorer_of(place), collection_of(place)
    cases = collection.cases(Split.TEST)[: settings["cases"]]
    files = [opened(case, case.make(collection.bits), scorer.fingerprint) for case in cases]
    batches = [
        (scorer.prepare([one.image for one in part]), [one.seeds for one in part])
        for part in (files[start : start + _BATCH] for start in range(0, len(files), _BATCH))
    ]
    ladder = scorer.noise.ladder()
    ways: dict[str, Callable[[], object]] = {
        ALONE: lambda: [scorer.look(Batch(batch.pixels), seeds, ()) for batch, seeds in batches],
        PAPER: lambda: [scorer.look(Batch(batch.pixels), seeds, ladder) for batch, seeds in batches],
    }
    if scorer.enrolment is not None and scorer.guard is not None:
        # Whose score has a vote in it cannot be asked for it without one: what the network does for it, to the end.
        draws = scorer.enrolment.calibration.stages[-1].draws
        ways["ours, without the guard"] = lambda: [
            scorer.look(Batch(batch.pixels), seeds, draws) for batch, seeds in batches
        ]
    if scorer.enrolment is not None:
        ways["ours"] = lambda: [scorer.score(batch, seeds) for batch, seeds in batches]
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for done in range(_ROUNDS):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - started) / len(files))
        place.tell((done + 1) / _ROUNDS)
    alone = statistics.median(taken[ALONE])
    return {
        "fingerprint": scorer.fingerprint,
        "files": len(files),
        "device": str(scorer.device),
        "ways": {
            name: {
                "seconds_an_image": statistics.median(rounds),
                "times_alone": statistics.median(rounds) / alone,
            }
            for name, rounds in taken.items()
        },
    }
