"""A data set's own splits as the clean images of an enrolment: what taught the victim may teach its guard, no more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from dicomguard.enrol.cleanset import Clean, Gathered, Part, is_reference
from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split
from dicomguard.lab.stored import read
from dicomguard.scoring.scorer import Scorer

# The guard only imitates the victim, so it may learn from the same pictures; thresholds need unseen ones.
_PARTS = {Split.TRAIN: Part.DISTILLED, Split.VALIDATION: Part.VALIDATION}


def gathered(
    scorer: Scorer,
    cases: Mapping[Split, Sequence[Case]],
    bits: Sequence[int],
    advance: Callable[[float], None],
    *,
    wants_guard: bool = True,
) -> Gathered:
    """Read the cases of every split but the test split as files, of several depths in turn where there are several."""
    found = Gathered(scorer, None, wants_guard=wants_guard)
    members = [(split, case) for split, part in cases.items() if split is not Split.TEST for case in part]
    for (split, case), depth in zip(members, itertools.cycle(bits), strict=False):
        part = _PARTS.get(split) or (Part.REFERENCE if is_reference(case.group) else Part.HELD_BACK)
        image, digest = read(case.make(depth))
        found.add(Clean(image, case.group, case.key, digest, (case.truth,), part))
        advance(1 / len(members))
    return found
