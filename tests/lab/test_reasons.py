from __future__ import annotations

from pathlib import Path

import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab import reasons


def test_reasons_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "reasons.yaml"
    assert reasons.read(path) == {}
    path.write_text("a/b: because\n")
    assert reasons.read(path) == {"a/b": "because"}
    path.write_text("- a\n")
    with pytest.raises(DicomguardError, match="no list of reasons"):
        reasons.read(path)
    for broken in (b"a: [\n", b"a: \xff\n"):
        path.write_bytes(broken)
        with pytest.raises(DicomguardError, match="cannot be read"):
            reasons.read(path)
