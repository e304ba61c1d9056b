"""When an evidence file gets its name; what is read from one: tests/cli/test_reproduce.py."""

import hashlib

import pytest

from dicomguard.errors import LedgerError
from dicomguard.screen.archive import EvidenceError, write

FILES = {"README.txt": b"read me"}


def test_it_is_recorded_before_it_stands_under_its_name(tmp_path):
    path, recorded = tmp_path / "case.zip", []

    def record(sha256):
        assert not path.exists()
        recorded.append(sha256)

    assert [write(path, {}, FILES, record)] == recorded == [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_what_cannot_be_recorded_never_leaves(tmp_path):
    def record(_):
        raise LedgerError("the disk is full")

    with pytest.raises(LedgerError, match="the disk is full"):
        write(tmp_path / "case.zip", {}, FILES, record)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_written_is_not_recorded(tmp_path):
    (tmp_path / "case.zip").symlink_to("nowhere")
    for path, why in ((tmp_path / "case.zip", "exists already"), (tmp_path / "no" / "case.zip", "cannot be written")):
        with pytest.raises(EvidenceError, match=why):
            write(path, {}, FILES, lambda _: pytest.fail("recorded"))
