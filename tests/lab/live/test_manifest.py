import json
from dataclasses import replace

import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab import whole
from dicomguard.lab.live import manifest
from dicomguard.lab.live.manifest import Row

ROW = Row("1.2", "attacked", path="a.dcm", attack="PGD 0.004", settings={"eps": 0.004}, eps=0.004, flipped=True)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "manifest.jsonl"
    rows = [ROW, Row("1.3", "clean", path="b.dcm"), Row("1.4", "attacked", flipped=False)]
    manifest.write(path, rows)
    assert manifest.read(path) == rows
    assert [row.is_sent for row in rows] == [True, True, False]
    assert [row.is_attack for row in rows] == [True, False, False]


def test_lines_of_other_hands_are_understood(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('\n{"uid": "1.2", "truth": "attacked", "colour": "red", "is_stored": false, "error": "refused"}\n')
    (row,) = manifest.read(path)
    assert row.sop_instance_uid == "1.2"
    assert row.is_sent
    assert row.is_attack
    assert (row.is_stored, row.error) == (False, "refused")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Line 1"),
        ("[1]", "no JSON object"),
        ('{"truth": "clean"}', "no sop_instance_uid"),
        ('{"uid": "1.2"}', "neither clean nor attacked"),
        ('{"uid": "1.2", "truth": "clean", "path": 3}', "path is no text"),
        ('{"uid": "1.2", "truth": "clean"}\n{"uid": "1.2", "truth": "clean"}', "twice"),
        ("\n", "lists nothing"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, said):
    path = tmp_path / "manifest.jsonl"
    path.write_text(text)
    with pytest.raises(DicomguardError, match=said):
        manifest.read(path)


def test_a_manifest_that_is_not_there_or_no_text_is_said_so(tmp_path):
    with pytest.raises(DicomguardError, match="No such file"):
        manifest.read(tmp_path / "none")
    (tmp_path / "raw").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DicomguardError, match="no text"):
        manifest.read(tmp_path / "raw")


def test_a_full_disk_leaves_the_old_manifest(tmp_path, monkeypatch):
    path = tmp_path / "manifest.jsonl"
    manifest.write(path, [ROW])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole.os, "fsync", full)
    with pytest.raises(DicomguardError, match=r"No space left on device.*make room"):
        manifest.write(path, [replace(ROW, path="other.dcm")])
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["a.dcm"]
