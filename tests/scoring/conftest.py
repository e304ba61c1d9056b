from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.scoring.small import enrol_small, write_small


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Pictures this small gain nothing from threads, which on a busy machine wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that score a hundred pictures and do not look at the numbers."""
    return write_small(tmp_path_factory.mktemp("tiny-bundle"), size=16, repeats=2)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small-bundle"))


@pytest.fixture(scope="session")
def enrolled_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny one, with all that an enrolment can hold. Copy it before changing anything."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("enrolled") / "bundle"))
    enrol_small(folder)
    return folder


@pytest.fixture(scope="session", params=["softmax", "multilabel"])
def three_labels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An enrolled bundle with three labels that exclude each other, and one where each stands alone."""
    folder = tmp_path_factory.mktemp(request.param)
    write_small(folder, size=16, repeats=2, labels=("effusion", "mass", "nodule"), head=request.param)
    enrol_small(folder)
    return folder
