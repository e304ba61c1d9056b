"""What cannot be stored gets the right status, what can be kept is kept with its fault, and the association goes on."""

import errno
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest
import senders
from senders import CT, DEFLATED, EXPLICIT, Aborted, Sender, data_set, element, new_uid, until

from dicomguard.spool.incoming import Incoming

STUDY = "2.25.5"


def fine(sender):
    """The association still works, and so does storage."""
    uid = new_uid()
    return sender.store(uid, data_set(uid, STUDY)).status == 0x0000


def faults(node):
    return sorted(instance.receipt.fault for instance in node.instances if instance.receipt.fault)


@pytest.mark.parametrize(
    ("command_uid", "data_uid", "command_class", "data_class"),
    [
        ("2.25.1", "2.25.2", CT, CT),
        ("2.25.1", "2.25.1", CT, "1.2.840.10008.5.1.4.1.1.4"),
        ("2.25.1", "2.25.1", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4"),
    ],
    ids=["instance", "class", "context"],
)
def test_uids_that_contradict_each_other_are_a900_and_kept(node, command_uid, data_uid, command_class, data_class):
    data = data_set(data_uid, STUDY, sop_class=data_class)
    with Sender(node.port) as sender:
        response = sender.store(command_uid, data, sop_class=command_class)
        assert response.status == 0xA900
        assert 0 < len(response.comment) <= 64
        assert faults(node) == ["uid_mismatch"]
        assert node.instances[0].path.read_bytes().endswith(data)
        assert fine(sender)


@pytest.mark.parametrize(
    ("data", "fault", "status"),
    [
        (b"", "missing_uid", 0xC104),
        (element(8, 0x16, "UI", CT.encode()) + element(8, 0x18, "UI", b"2.25.1"), "missing_uid", 0xC104),
        (data_set("2.25.1", ""), "missing_uid", 0xC104),
        (data_set("2.25.1", "2.25.5")[:50], "unparsable", 0xC101),
        (os.urandom(7), "unparsable", 0xC101),
        (b"\x08\0\x05\0CS\xff\xff" + bytes(20), "missing_uid", 0xC104),
        (b"\x08\0\x05\0\x01\x02\xff\xff" + bytes(20), "unparsable", 0xC101),
        (data_set("2.25.1", "../../etc/cron.d/x"), "invalid_uid", 0xC105),
        (data_set("2.25.1", "2.25.5", series="a\0b"), "invalid_uid", 0xC105),
        (data_set("2.25.1", "1" * 65), "invalid_uid", 0xC105),
        (data_set("2.25.1", "1" * 10_000), "invalid_uid", 0xC105),
        (
            b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff"
            + b"\xfe\xff\0\xe0\xff\xff\xff\xff\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" * 300,
            "unparsable",
            0xC101,
        ),
        (b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 100_000, "unparsable", 0xC101),
    ],
    ids=[
        "empty",
        "no-study",
        "empty-study",
        "cut",
        "noise",
        "long-value",
        "no-vr",
        "path",
        "nul",
        "65",
        "10k",
        "nested",
        "items",
    ],
)
def test_a_head_that_is_not_right_is_kept_with_its_fault(node, data, fault, status):
    with Sender(node.port) as sender:
        assert sender.store("2.25.1", data).status == status
        assert faults(node) == [fault]
        assert node.instances[0].path.read_bytes().endswith(data)
        assert fine(sender)


@pytest.mark.parametrize(
    "uid",
    ["../x", "/etc/x", "a\0b", "1" * 65, "1" * 10_000, "CON", "\u202e1.2", ""],
    ids=["dots", "absolute", "nul", "65", "10k", "con", "rtl", "empty"],
)
def test_hostile_instance_uids_stay_out_of_the_file_system(node, uid):
    raw = uid.encode()
    command = senders.command_set(
        (
            (0x0002, CT.encode()),
            (0x0100, struct.pack("<H", 1)),
            (0x0110, struct.pack("<H", 9)),
            (0x0800, struct.pack("<H", 1)),
            (0x1000, raw),
        )
    )
    data = element(8, 0x16, "UI", CT.encode()) + element(8, 0x18, "UI", raw) + element(0x20, 0xD, "UI", STUDY.encode())
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, command) + senders.p_data(1, 2, data))
        assert sender.response().status in {0xC104, 0xC105}
        assert fine(sender)
    assert faults(node) in (["missing_uid"], ["invalid_uid"])
    for path in node.spool.root.rglob("*"):
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


def test_a_deflate_bomb_costs_nothing(node):
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"\x08\0\x01\0UN\0\0" + struct.pack("<I", 1 << 30)
    data = (
        compressor.compress(bomb)
        + b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64))
        + compressor.flush()
    )
    with Sender(node.port, contexts=[(1, CT, (DEFLATED,))]) as sender:
        assert sender.store("2.25.1", data).status == 0xC101
    assert faults(node) == ["unparsable"]


def test_a_store_without_a_data_set_is_answered(node):
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1", has_data_set=False)))
        assert sender.response().status == 0xC106
        assert fine(sender)
    assert len(node.instances) == 1


@pytest.mark.parametrize("field", [0x0020, 0x0021, 0x0010, 0x0130, 0x0555], ids=hex)
def test_services_that_are_not_offered_are_declined(node, field):
    command = senders.command_set(
        ((2, CT.encode()), (0x100, struct.pack("<H", field)), (0x110, b"\1\0"), (0x800, b"\1\0"))
    )
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, command) + senders.p_data(1, 2, b"whatever"))
        assert sender.response().status == 0x0211
        assert fine(sender)
    assert len(node.instances) == 1


@pytest.mark.parametrize("has_data_set", [True, False], ids=["with-data", "without-data"])
def test_store_on_a_verification_context_is_declined(node, has_data_set):
    with Sender(node.port) as sender:
        command = senders.store_command(1, CT, "2.25.1", has_data_set=has_data_set)
        sender.socket.sendall(senders.p_data(3, 3, command) + (senders.p_data(3, 2, b"data") if has_data_set else b""))
        assert sender.response().status == 0x0122
        assert fine(sender)


def test_a_cancel_request_gets_no_answer(node):
    cancel = senders.command_set(((0x100, b"\xff\x0f"), (0x120, b"\1\0"), (0x800, b"\1\1")))
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, cancel))
        assert sender.echo() == 0x0000


def test_an_instance_over_the_size_cap_is_refused_and_the_next_is_not(start):
    node = start(max_instance_bytes=1000)
    with Sender(node.port) as sender:
        response = sender.store("2.25.1", data_set("2.25.1", STUDY, pixels=bytes(500_000)))
        assert (response.status, response.comment) == (0xA700, "Instance larger than this node takes")
        assert not node.parts
        assert fine(sender)
    assert len(node.instances) == 1


# --- a disk that is full, or worse


def test_a_volume_at_its_reserve_refuses_instances_and_keeps_the_connection_then_recovers(start, tmp_path):
    free = [1000]
    root = tmp_path / "spool0"
    node = start(Incoming(root, reserve_bytes=500, free_bytes=lambda _: free[0]))
    sender = Sender(node.port)
    free[0] = 499
    response = sender.store("2.25.1", data_set("2.25.1", STUDY))
    assert (response.status, response.comment) == (0xA700, "Out of storage space; send again later")
    with Sender(node.port) as another:
        assert another.echo() == 0x0000
        assert another.store("2.25.2", data_set("2.25.2", STUDY)).status == 0xA700
        assert another.echo() == 0x0000
    assert not node.instances
    assert not node.parts
    free[0] = 1000
    assert fine(sender)
    sender.release()


@pytest.mark.parametrize("call", ["write", "pwrite", "fsync", "link", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_any_failure_to_write_is_a700_and_leaves_nothing(node, monkeypatch, call, number):
    target = Path if call == "mkdir" else os

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with Sender(node.port) as sender:
        with monkeypatch.context() as patch:
            patch.setattr(target, call, fail)
            response = sender.store("2.25.1", data_set("2.25.1", STUDY, pixels=bytes(400_000)))
        assert response.status == 0xA700
        assert str(node.spool.root) not in response.comment
        assert not node.parts
        assert not node.instances
        assert fine(sender)


def test_a_file_size_limit_in_the_middle_of_an_instance_is_a700(start, tmp_path):
    """The disk fills up while the instance comes in: a short write first, then the error."""

    class Small(Incoming):
        def begin(self, **names):
            part = super().begin(**names)
            real = part.write

            def write(data):
                if part.size_bytes > 100_000:
                    raise OSError(errno.EFBIG, "File too large")
                real(data)

            part.write = write
            return part

    node = start(Small(tmp_path / "spool0", reserve_bytes=0))
    with Sender(node.port) as sender:
        assert sender.store("2.25.1", data_set("2.25.1", STUDY, pixels=bytes(900_000))).status == 0xA700
        assert not node.parts
        assert fine(sender)


def test_a_fault_nobody_foresaw_is_an_answer_too(node, monkeypatch):
    from dicomguard.receive import storing

    def fail(*_):
        raise RuntimeError("boom")

    with Sender(node.port) as sender:
        with monkeypatch.context() as patch:
            patch.setattr(storing.head, "look", fail)
            response = sender.store("2.25.1", data_set("2.25.1", STUDY))
        assert (response.status, response.comment) == (0xC1FF, "Internal error")
        assert not node.parts
        assert fine(sender)
        sender.release()
    assert "1 internal error(s)" in node.stop()[-1]["detail"]


def test_a_part_removed_behind_our_back_is_never_acknowledged(node):
    with Sender(node.port) as sender:
        data = data_set("2.25.1", STUDY, pixels=bytes(1000))
        sender.socket.sendall(
            senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")) + senders.p_data(1, 0, data[:100])
        )
        assert until(lambda: node.parts)
        for part in node.parts:
            part.unlink()
        sender.socket.sendall(senders.p_data(1, 2, data[100:]))
        assert sender.response().status == 0xA700


# --- connections that end in the middle


@pytest.mark.parametrize("ending", ["abort", "close", "reset", "release"])
def test_an_instance_cut_off_leaves_neither_part_nor_descriptor(node, ending):
    data = data_set("2.25.1", STUDY, pixels=bytes(200_000))
    before = None
    for turn in range(60):
        sender = Sender(node.port)
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")))
        for pdu, _ in zip(senders.data_pdus(1, data, 16_000), range(turn % 12), strict=False):
            sender.socket.sendall(pdu)
        if ending == "abort":
            sender.abort()
        elif ending == "release":
            sender.release()
        else:
            if ending == "reset":
                sender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sender.socket.close()
        if turn == 10:
            before = _settled(node)
    assert _settled(node) <= before
    assert not node.instances


def _settled(node):
    """Open descriptors once nobody is served any more; by then no part may be left."""
    assert until(lambda: not node.receiver.connections)
    assert not node.parts
    return len(list(Path("/proc/self/fd").iterdir()))


# --- peers that break the upper layer protocol


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (senders.pdu(9, b"abcd"), 1),
        (senders.associate_rq(), 2),
        (senders.pdu(2, bytes(80)), 2),
        (senders.pdu(4, b""), 6),
        (senders.pdu(4, b"\0\0\0"), 6),
        (senders.pdu(4, struct.pack(">IBB", 100, 1, 3)), 6),
        (senders.pdu(4, struct.pack(">IBB", 1, 1, 3)), 6),
        (senders.p_data(99, 3, senders.echo_command(1)), 6),
        (senders.p_data(1, 2, b"data without a command"), 5),
        (senders.p_data(1, 3, b"no command set"), 6),
        (senders.p_data(1, 1, bytes(20_000)), 6),
        (senders.p_data(1, 3, senders.command_set(((0x100, b"\1\x80"), (0x120, b"\1\0"), (0x800, b"\1\1")))), 6),
        (senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")) * 2, 5),
        (senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")) + senders.p_data(3, 2, b"ab"), 5),
        (b"\4\0\x7f\xff\xff\xff", 6),
        (b"\5\0\x7f\xff\xff\xff", 6),
    ],
    ids=[
        "unknown-type", "second-request", "accept", "empty", "no-pdv", "long-pdv", "short-pdv", "context", "no-command",
        "garbage", "long-command", "response", "interrupted", "other-context", "2-GiB-data", "2-GiB-release",
    ],
)  # fmt: skip
def test_a_peer_that_breaks_the_protocol_is_told_so(node, sent, reason):
    with Sender(node.port) as sender:
        sender.socket.sendall(sent)
        assert sender.read() == (0x07, bytes((0, 0, 2, reason)))
        with pytest.raises(Aborted):
            sender.read()
    assert not node.parts
    with Sender(node.port) as sender:
        assert fine(sender)


def test_a_pdu_a_little_over_the_negotiated_length_is_taken(node):
    data = data_set("2.25.1", STUDY, pixels=bytes(131_072))
    with Sender(node.port) as sender:
        stream = senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")) + senders.p_data(1, 2, data)
        sender.socket.sendall(stream)
        assert sender.response().status == 0x0000
    assert node.instances[0].receipt.transfer_syntax_uid == EXPLICIT
