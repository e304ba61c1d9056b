from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.scoring.small import write_small


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Pictures this small gain nothing from threads, which on a busy machine wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that score a hundred pictures and do not look at the numbers."""
    return write_small(tmp_path_factory.mktemp("tiny-bundle"), size=16, repeats=1)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small-bundle"))
