from __future__ import annotations

from pathlib import Path

import pytest

from tests.scoring.small import write_small


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small-bundle"))
