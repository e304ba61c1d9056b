from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab.whole import replacing, write_json, write_text


def test_what_raises_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half of")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stands_under_the_name_before_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "found.npz"
    with replacing(path) as partial:
        partial.write_bytes(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"


def test_a_folder_is_made_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "page.md", "ö\n")
    assert (tmp_path / "new" / "page.md").read_bytes() == "ö\n".encode()
    with pytest.raises(DicomguardError, match=r"found\.json cannot be written"):
        write_json(tmp_path / "new" / "page.md" / "found.json", [])


def test_two_processes_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "inventory.npz"
    other = (
        "import sys; from pathlib import Path; from dicomguard.lab.whole import write_text;"
        " write_text(Path(sys.argv[1]), 'the other')"
    )
    with replacing(path) as partial:
        partial.write_text("half of ")
        subprocess.run([sys.executable, "-c", other, str(path)], check=True)
        assert path.read_text() == "the other"
        with partial.open("a") as file:
            file.write("ours")
    assert path.read_text() == "half of ours"
    assert list(tmp_path.iterdir()) == [path]
