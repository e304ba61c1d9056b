"""What every test may use: the data folder, and receipts and files made up on the spot."""

import os
from pathlib import Path

import pytest

# As the command line does, and for the same reason: tests share the processor with the nodes that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real images and DICOM files; tests that need it skip, with the reason, where it is absent."""
    folder = Path(os.environ.get("DICOMGUARD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data: set DICOMGUARD_TEST_DATA (looked for {folder.name}/ beside the checkout)")
    return folder
