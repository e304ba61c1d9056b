"""How good a victim is on files: accuracy, recall and AUC with intervals, asked of the one scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomguard.enrol.ranks import auroc
from dicomguard.lab.cases import Case, batches, truths
from dicomguard.lab.figures import share
from dicomguard.scoring import head
from dicomguard.scoring.scorer import Scorer

_CHUNK = 16
_DRAWS = 1000


def figures(
    scorer: Scorer, cases: Sequence[Case], bits: int, *, seed: int, tick: Callable[[float], None]
) -> dict[str, Any]:
    """Of N clean files: accuracy, recall of each label and AUC, each with a 95 % interval.

    Accuracy and recall: exact (Clopper-Pearson). AUC: of the second of two labels, else the mean over labels, each
    against the rest; percentile bootstrap over the files, None where a label does not occur.
    """
    odds = []
    for group in batches(cases, _CHUNK):
        batch = scorer.prepare([case.image(bits) for case in group])
        odds.append(scorer.answer(batch.pixels).log_odds[:, 0])
        tick(len(group) / len(cases))
    log_odds = np.concatenate(odds)
    truth = truths(cases)
    answers = log_odds.argmax(1)
    return {
        "files": len(cases),
        "accuracy": share(answers == truth),
        "recall": {label: share(answers[truth == place] == place) for place, label in enumerate(scorer.labels)},
        "auc": auc(head.probabilities(log_odds), truth, seed=seed),
    }


def auc(shares: NDArray[np.float64], truth: NDArray[np.int64], *, seed: int, draws: int = _DRAWS) -> dict[str, Any]:
    """Area under the ROC curve of probabilities (N, classes) with its percentile bootstrap interval."""
    value = _auc(shares, truth)
    if value is None:
        return {"value": None, "interval": None, "draws": 0}
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, len(truth), len(truth))
        one = _auc(shares[chosen], truth[chosen])
        if one is not None:
            found.append(one)
    if not found:
        return {"value": value, "interval": None, "draws": 0}
    low, high = np.quantile(found, [0.025, 0.975])
    return {"value": value, "interval": [float(low), float(high)], "draws": len(found)}


def _auc(shares: NDArray[np.float64], truth: NDArray[np.int64]) -> float | None:
    """Of the second of two labels; the mean over labels where there are more. None where one has no area."""
    classes = shares.shape[1]
    areas = [
        auroc(shares[truth != label, label], shares[truth == label, label])
        for label in ([1] if classes == 2 else range(classes))
    ]
    return None if None in areas else float(np.mean(np.array(areas, np.float64)))
