from __future__ import annotations

import csv
import hashlib
import json
import struct

import loopback as peers
import pytest
from loopback import CR, CT, EXPLICIT, JPEG, data_set

from dicomguard.errors import DeliveryError, DicomguardError
from dicomguard.replay import send
from dicomguard.scu import Timeouts
from dicomguard.study import AeTitle, Peer

IMAGE = (CR, EXPLICIT)
HASTY = Timeouts(connect_s=1, acse_s=0.4, dimse_s=0.4, network_s=0.4)


def write(path, uid, *, syntaxes=IMAGE, data=None):
    sop_class, syntax = syntaxes
    meta = (
        peers.element(2, 0x0001, b"OB", b"\0\1")
        + peers.element(2, 0x0002, b"UI", sop_class.encode())
        + peers.element(2, 0x0003, b"UI", uid.encode())
        + peers.element(2, 0x0010, b"UI", syntax.encode())
    )
    data = data_set(uid, sop_class_uid=sop_class) if data is None else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + peers.element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + data)
    return data


def to(scp):
    return Peer(AeTitle("AI"), "127.0.0.1", scp.port)


def test_files_and_folders_go_out_byte_for_byte(make_scp, tmp_path):
    scp = make_scp([IMAGE, (CT, JPEG)])
    sent = {"1.1": write(tmp_path / "a" / "b" / "x.dcm", "1.1"), "1.2": write(tmp_path / "a" / "y", "1.2")}
    sent["1.3"] = write(tmp_path / "z.dcm", "1.3", syntaxes=(CT, JPEG), data=b"\0\1" * 70_000)
    told = []
    results = send(
        [tmp_path / "a", tmp_path / "z.dcm", tmp_path / "a" / "y"],
        to(scp),
        calling=AeTitle("REPLAY"),
        progress=lambda done, total: told.append((done, total)),
    )
    assert [(r.path.name, r.sop_instance_uid, r.status, r.error, r.is_stored) for r in results] == [
        ("x.dcm", "1.1", 0, "", True),
        ("y", "1.2", 0, "", True),
        ("z.dcm", "1.3", 0, "", True),
    ]
    assert scp.digests == {uid: hashlib.sha256(data).hexdigest() for uid, data in sent.items()}
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_is_no_dicom_is_named_and_skipped(make_scp, tmp_path):
    scp = make_scp([IMAGE])
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.dcm").write_bytes(bytes(128) + b"DICM" + struct.pack("<HH2s", 2, 0, b"UL"))
    (tmp_path / "c.dcm").write_bytes(bytes(128) + b"DICM" + peers.element(2, 0x0003, b"UI", b"1.9"))
    (tmp_path / "d.dcm").write_bytes(bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x0003, b"UI", 9000))
    write(tmp_path / "e.dcm", "1.1")
    results = send([tmp_path, tmp_path / "nowhere"], to(scp), calling=AeTitle("REPLAY"))
    assert [(r.path.name, r.error) for r in results] == [
        ("a.txt", "skipped: no DICOM file (no DICM after the preamble)"),
        ("b.dcm", "skipped: its file meta information is cut off"),
        ("c.dcm", "skipped: it lacks MediaStorageSOPClassUID, TransferSyntaxUID"),
        ("d.dcm", "skipped: it lacks MediaStorageSOPClassUID, MediaStorageSOPInstanceUID, TransferSyntaxUID"),
        ("e.dcm", ""),
        ("nowhere", "cannot be read: No such file or directory"),
    ]
    assert [r.is_stored for r in results] == [False] * 4 + [True, False]


def test_refusals_are_reported_and_the_others_go_on(make_scp, tmp_path):
    scp = make_scp([IMAGE])
    scp.status = lambda uid: 0xA900 if uid == "1.2" else 0
    for uid in ("1.1", "1.2", "1.4"):
        write(tmp_path / f"{uid}.dcm", uid)
    write(tmp_path / "1.3.dcm", "1.3", syntaxes=(CT, JPEG))
    results = send([tmp_path], to(scp), calling=AeTitle("REPLAY"))
    assert [(r.sop_instance_uid, r.status) for r in results] == [("1.1", 0), ("1.2", 0xA900), ("1.3", None), ("1.4", 0)]
    assert results[1].error == "status 0xA900"
    assert "accepts no context" in results[2].error
    assert results[1].to_json()["status"] == "0xA900"


def test_an_instance_that_ends_the_association_does_not_end_the_replay(scripted, tmp_path):
    def script(connection):
        connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
        message = 0
        while True:
            data = peers.read_message(connection)
            message += 1
            if b"6.6.6" in data:
                return
            connection.sendall(peers.response(message, 0))

    peer = scripted(script)
    for name, uid in (("a", "1.1"), ("b", "6.6.6"), ("c", "1.2")):
        write(tmp_path / name, uid)
    results = send([tmp_path], to(peer), calling=AeTitle("REPLAY"), timeouts=HASTY)
    assert [(r.sop_instance_uid, r.status) for r in results] == [("1.1", 0), ("6.6.6", None), ("1.2", 0)]
    assert "closed" in results[1].error
    assert peer.connections == 2


def test_no_association_at_all_is_an_error_and_later_failures_are_reported(scripted, tmp_path):
    write(tmp_path / "a", "1.1")
    write(tmp_path / "b", "1.2")
    with pytest.raises(DeliveryError, match="No connection"):
        send([tmp_path], Peer(AeTitle("AI"), "127.0.0.1", 9), calling=AeTitle("REPLAY"))
    state = {"first": True}

    def script(connection):
        if state.pop("first", False):
            connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
            peers.read_message(connection)
        else:
            peers.read_pdu(connection)
            connection.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 2, 3, 2]))

    peer = scripted(script)
    results = send([tmp_path], to(peer), calling=AeTitle("REPLAY"), timeouts=HASTY)
    assert [r.status for r in results] == [None, None]
    assert "rejected for now" in results[1].error


def test_more_contexts_than_one_association_carries(make_scp, tmp_path):
    scp = make_scp([(CR, EXPLICIT)])
    for number in range(130):
        write(tmp_path / f"{number:03}", f"1.{number}", syntaxes=(f"1.2.3.{number}", EXPLICIT))
    write(tmp_path / "200", "2.1")
    results = send([tmp_path], to(scp), calling=AeTitle("REPLAY"))
    assert len(results) == 131
    assert [r.sop_instance_uid for r in results if r.is_stored] == ["2.1"]
    assert scp.associations == 2


def test_a_json_manifest_is_carried_along(make_scp, tmp_path):
    scp = make_scp([IMAGE])
    write(tmp_path / "f" / "a", "1.1")
    write(tmp_path / "f" / "b", "1.2")
    manifest = tmp_path / "f" / "truth.jsonl"
    rows = [{"path": "a", "label": "normal"}, {"uid": "1.2", "attack": "bim", "eps": 0.01}, {"path": "none"}]
    manifest.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    send([tmp_path / "f" / "a", tmp_path / "f" / "b"], to(scp), calling=AeTitle("REPLAY"), manifest=manifest)
    written = [json.loads(line) for line in (tmp_path / "f" / "truth.sent.jsonl").read_text().splitlines()]
    stored = {"status": "0x0000", "is_stored": True, "error": ""}
    assert written[0] == rows[0] | stored | {"sop_instance_uid": "1.1"}
    assert written[1] == rows[1] | stored | {"sop_instance_uid": "1.2"}
    assert (written[2]["is_stored"], written[2]["error"]) == (False, "not among the files sent")


def test_files_of_one_uid_are_told_apart_by_their_paths(make_scp, tmp_path):
    scp = make_scp([IMAGE])
    scp.status = lambda uid: 0xA700 if len(scp.received) == 2 else 0
    for name in ("clean", "attacked"):
        write(tmp_path / name, "1.1")
    manifest = tmp_path / "truth.jsonl"
    manifest.write_text(
        "".join(json.dumps({"path": n, "sop_instance_uid": "1.1"}) + "\n" for n in ("clean", "attacked"))
    )
    send([tmp_path / "clean", tmp_path / "attacked"], to(scp), calling=AeTitle("REPLAY"), manifest=manifest)
    written = [json.loads(line) for line in (tmp_path / "truth.sent.jsonl").read_text().splitlines()]
    assert [row["status"] for row in written] == ["0x0000", "0xA700"]


def test_a_csv_manifest_is_carried_along(make_scp, tmp_path):
    scp = make_scp([IMAGE])
    write(tmp_path / "a", "1.1")
    manifest = tmp_path / "truth.csv"
    manifest.write_text("path,label\na,normal\n")
    send([tmp_path / "a"], to(scp), calling=AeTitle("REPLAY"), manifest=manifest)
    with (tmp_path / "truth.sent.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["label"], row["sop_instance_uid"], row["status"]) == ("normal", "1.1", "0x0000")


@pytest.mark.parametrize(
    ("name", "text"),
    [("truth.jsonl", "{"), ("truth.jsonl", "[1]\n"), ("truth.csv", "path,label\na," + "x" * 200_000)],
    ids=["no JSON", "no object", "endless field"],
)
def test_an_unreadable_manifest_is_refused_before_anything_is_sent(make_scp, tmp_path, name, text):
    scp = make_scp([IMAGE])
    write(tmp_path / "a", "1.1")
    manifest = tmp_path / name
    manifest.write_text(text)
    with pytest.raises(DicomguardError, match="manifest"):
        send([tmp_path / "a"], to(scp), calling=AeTitle("REPLAY"), manifest=manifest)
    assert scp.received == []


def test_a_manifest_alone_says_what_to_send_and_in_which_order(make_scp, tmp_path, monkeypatch):
    scp = make_scp([IMAGE])
    write(tmp_path / "f" / "x" / "a", "1.1")
    write(tmp_path / "f" / "b", "1.2")
    write(tmp_path / "f" / "not listed", "1.3")
    manifest = tmp_path / "f" / "manifest.jsonl"
    rows = [{"path": "b", "truth": "clean"}, {"path": None, "uid": "9"}, {"path": "x/a", "eps": 0.01}, {"path": "gone"}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path / "f" / "x")
    sent = send([], to(scp), calling=AeTitle("REPLAY"), manifest=manifest)
    assert [(r.sop_instance_uid, r.status) for r in sent] == [("1.2", 0), ("1.1", 0), ("", None)]
    assert sent[2].error == "cannot be read: No such file or directory"
    written = [json.loads(line) for line in (tmp_path / "f" / "manifest.sent.jsonl").read_text().splitlines()]
    assert [(row["sop_instance_uid"], row["is_stored"]) for row in written] == [
        ("1.2", True),
        ("9", False),
        ("1.1", True),
        ("", False),
    ]
    assert (written[0]["truth"], written[2]["eps"]) == ("clean", 0.01)
    assert not (tmp_path / "f" / "manifest.sent.jsonl.partial").exists()


def test_a_manifest_without_files_sends_nothing(make_scp, tmp_path):
    scp = make_scp([IMAGE])
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"uid": "1.2", "path": null}\n')
    with pytest.raises(DicomguardError, match="lists no file"):
        send([], to(scp), calling=AeTitle("REPLAY"), manifest=manifest)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert send([empty], to(scp), calling=AeTitle("REPLAY"), manifest=manifest) == []
    assert scp.received == []
