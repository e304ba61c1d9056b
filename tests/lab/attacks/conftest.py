from __future__ import annotations

import pytest
import torch

from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import enrol_small, write_small

_HEADS = {
    "one logit": {},
    "classes": {"labels": ("effusion", "mass", "nodule")},
    "findings": {"labels": ("effusion", "mass", "nodule"), "head": "multilabel"},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=list(_HEADS))
def enrolled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Scorer]:
    """A bundle of each kind of head with random weights, enrolled without a guard, and its scorer."""
    folder = tmp_path_factory.mktemp("bundle")
    write_small(folder, size=16, repeats=2, **_HEADS[request.param])
    enrol_small(folder, guard=None)
    return Bundle(folder), Scorer.load(folder)
