from __future__ import annotations

import hashlib
import os
import struct
import time

import loopback as peers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.scu import (
    AbortedError,
    AlteredError,
    Association,
    LinkError,
    RejectedError,
    SilenceError,
    Timeouts,
    echo,
)
from dicomguard.scu import pdu as codec

CR, CT, EXPLICIT, JPEG = peers.CR, peers.CT, peers.EXPLICIT, peers.JPEG

IMAGE = (CR, EXPLICIT)
HASTY = Timeouts(connect_s=1, acse_s=0.4, dimse_s=0.4, network_s=0.4)


def associate(port, contexts=(IMAGE,), *, called_ae="AI", timeouts=None):
    return Association("127.0.0.1", port, calling_ae="GUARD", called_ae=called_ae, contexts=contexts, timeouts=timeouts)


@pytest.mark.parametrize("max_pdu", [0, 256, 16_382, 1 << 20])
def test_the_bytes_on_the_wire_are_those_of_the_file(make_scp, part10, max_pdu):
    scp = make_scp([IMAGE], max_pdu=max_pdu)
    sent = [os.urandom(size) for size in (2, 250, 252, 16_370, 16_376, 16_378, 100_000)]
    with associate(scp.port) as association:
        for number, data in enumerate(sent):
            path, offset = part10(data)
            digest = hashlib.sha256(data).hexdigest()
            outcome = association.store(path, offset, syntaxes=IMAGE, sop_instance_uid=f"1.{number}", sha256=digest)
            assert outcome.status == 0
    assert scp.received == [(f"1.{number}", EXPLICIT, data) for number, data in enumerate(sent)]


def test_many_instances_go_over_one_association(make_scp, part10):
    scp = make_scp([IMAGE, (CT, JPEG)])
    with associate(scp.port, [IMAGE, (CT, JPEG)]) as association:
        for number in range(5):
            syntaxes = (IMAGE, (CT, JPEG))[number % 2]
            path, offset = part10(peers.data_set(f"1.{number}"), f"{number}.dcm")
            assert association.store(path, offset, syntaxes=syntaxes, sop_instance_uid=f"1.{number}").status == 0
    assert [(uid, syntax) for uid, syntax, _ in scp.received] == [
        ("1.0", EXPLICIT),
        ("1.1", JPEG),
        ("1.2", EXPLICIT),
        ("1.3", JPEG),
        ("1.4", EXPLICIT),
    ]
    assert scp.associations == 1


def test_128_contexts_fit_an_association_and_129_are_refused(make_scp):
    contexts = [(f"1.2.3.{number}", EXPLICIT) for number in range(129)]
    scp = make_scp([(contexts[127][0], EXPLICIT)])
    with associate(scp.port, contexts[:128]) as association:
        assert association.accepted == {contexts[127]: 255}
    with pytest.raises(ValueError, match="not 129"):
        associate(scp.port, contexts)
    with pytest.raises(ValueError, match="not 0"):
        associate(scp.port, [])


def test_an_altered_file_never_arrives_whole(make_scp, part10):
    scp = make_scp([IMAGE])
    path, offset = part10(peers.data_set("1.2.3"))
    with pytest.raises(AlteredError, match="SHA-256"), associate(scp.port) as association:
        association.store(path, offset, syntaxes=IMAGE, sop_instance_uid="1.2.3", sha256="0" * 64)
    assert scp.received == []
    missing = path.with_name("missing.dcm")
    with pytest.raises(AlteredError, match="cannot be read"), associate(scp.port) as association:
        association.store(missing, 0, syntaxes=IMAGE, sop_instance_uid="1.2.3")
    missing.symlink_to(path)
    with pytest.raises(AlteredError, match="cannot be read"), associate(scp.port) as association:
        association.store(missing, 0, syntaxes=IMAGE, sop_instance_uid="1.2.3")


def test_echo(make_scp):
    scp = make_scp([IMAGE])
    assert echo("127.0.0.1", scp.port, calling_ae="GUARD", called_ae="AI").status == 0


def test_a_wrong_called_title_is_a_permanent_rejection(make_scp):
    scp = make_scp([IMAGE])
    with pytest.raises(RejectedError, match=r"permanently: called AE title not recognized \(1/1/7\)") as caught:
        associate(scp.port, called_ae="WRONG")
    assert caught.value.is_permanent


def test_a_transient_rejection_says_so(scripted):
    peer = scripted(lambda c: (peers.read_pdu(c), c.sendall(b"\x03\0\0\0\0\x04\0\x02\x03\x02")))
    with pytest.raises(RejectedError, match=r"for now: local limit exceeded \(2/3/2\)") as caught:
        associate(peer.port, timeouts=HASTY)
    assert not caught.value.is_permanent


def test_no_listener_is_a_link_error():
    with pytest.raises(LinkError, match=r"No connection to 127\.0\.0\.1:9: Connection refused"):
        associate(9, timeouts=HASTY)
    with pytest.raises(LinkError, match="No connection"):
        Association("no such host", 104, calling_ae="A", called_ae="B", contexts=[IMAGE])


# What a peer may do instead of answering. Each is a LinkError, in bounded time and memory.

HUGE = struct.pack(">BxI", 2, 0xFFFFFFFF)
ABORT = b"\x07\0\0\0\0\x04\0\0\x02\x01"


def say(data, *, then_hang=False):
    def script(connection):
        peers.read_pdu(connection)
        connection.sendall(data)
        if then_hang:
            connection.recv(1 << 20)

    return script


def cut(request):
    return peers.accept(request)[:-3]


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (lambda c: None, LinkError, "closed|broke"),
        (lambda c: c.recv(1 << 20) and c.recv(1), SilenceError, "in time"),
        (say(HUGE, then_hang=True), LinkError, "4294967295 bytes"),
        (say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), LinkError, "bytes where"),
        (say(ABORT), AbortedError, "source 2, reason 1"),
        (say(b"\x02\0\0\0\0\x50" + b"x"), LinkError, "closed"),
        (say(b"\x02\0\0\0\0\x48" + b"\0" * 68 + b"\x10\0\xff\xff"), LinkError, "longer than the PDU"),
        (say(b"\x02\0\0\0\0\x46" + b"\0" * 68 + b"\x10\0"), LinkError, "cut off"),
        (say(b"\x03\0\0\0\0\x00"), LinkError, "cut off"),
        (say(b"\x05\0\0\0\0\x04\0\0\0\0"), LinkError, "type 5"),
        (lambda c: c.sendall(peers.accept(peers.read_pdu(c)[1], max_pdu=10)), LinkError, "too little"),
    ],
    ids=[
        "closes",
        "silent",
        "4 GiB",
        "http",
        "aborts",
        "torn",
        "item too long",
        "item cut",
        "no reason",
        "release",
        "tiny",
    ],
)
def test_a_peer_that_does_not_negotiate(scripted, script, error, says):
    peer = scripted(script)
    begun = time.monotonic()
    with pytest.raises(error, match=says):
        associate(peer.port, timeouts=HASTY)
    assert time.monotonic() - begun < 3


def answering(reply):
    def script(connection):
        connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
        peers.read_message(connection)
        if reply is not None:
            connection.sendall(reply)
        connection.recv(1 << 20)

    return script


def drip(connection):
    connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
    peers.read_message(connection)
    for byte in peers.response(1, 0):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (answering(None), SilenceError, "in time"),
        (drip, SilenceError, "in time"),
        (answering(ABORT), AbortedError, "aborted"),
        (answering(HUGE), LinkError, "4294967295 bytes"),
        (answering(peers.response(2, 0)), LinkError, "another request"),
        (answering(peers.response(1, 0, field=0x8030)), LinkError, "another request"),
        (answering(peers.response(1, 0, data_set=1)), LinkError, "announces a data set"),
        (answering(peers.pdata(b"\0\0\0\1")), LinkError, "cut off"),
        (answering(peers.pdata(struct.pack("<HHI", 0, 0x0900, 99))), LinkError, "no command set"),
        (answering(peers.pdata(struct.pack("<HHIH", 8, 0x0900, 2, 0))), LinkError, "no command set"),
        (answering(peers.pdata(struct.pack("<HHIH", 0, 0x0900, 2, 0))), LinkError, "lacks a status"),
        (answering(peers.pdata(b"x", control=0)), LinkError, "data set where"),
        (answering(struct.pack(">BxIIBB", 4, 6, 9999, 1, 3)), LinkError, "longer than its PDU"),
        (answering(peers.pdata(b"x" * 9000, control=1) * 2), LinkError, "no end"),
        (answering(b"\x05\0\0\0\0\x04\0\0\0\0"), LinkError, "type 5"),
    ],
    ids=[
        "silent", "drips", "aborts", "4 GiB", "other id", "other field", "data set announced", "cut", "too long",
        "not a command", "no status", "data set", "PDV too long", "endless", "release",
    ],
)  # fmt: skip
def test_a_peer_that_does_not_answer_a_store(scripted, part10, script, error, says):
    peer = scripted(script)
    path, offset = part10(peers.data_set("1.2.3"))
    begun = time.monotonic()
    with pytest.raises(error, match=says), associate(peer.port, timeouts=HASTY) as association:
        association.store(path, offset, syntaxes=IMAGE, sop_instance_uid="1.2.3")
    assert time.monotonic() - begun < 3


def test_a_peer_that_stops_reading_is_left(scripted, part10):
    def script(connection):
        connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
        peer.released.wait(10)

    peer = scripted(script)
    path, offset = part10(bytes(32 << 20))
    with pytest.raises(SilenceError, match="stopped reading"), associate(peer.port, timeouts=HASTY) as association:
        association.store(path, offset, syntaxes=IMAGE, sop_instance_uid="1.2.3")
    peer.released.set()


def test_a_peer_that_breaks_off_while_we_send(scripted, part10):
    def script(connection):
        connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
        peers.read_pdu(connection)
        connection.sendall(ABORT)

    peer = scripted(script)
    path, offset = part10(bytes(32 << 20))
    with pytest.raises(LinkError, match=r"broke|aborted|closed"), associate(peer.port, timeouts=HASTY) as association:
        association.store(path, offset, syntaxes=IMAGE, sop_instance_uid="1.2.3")


def test_a_response_in_several_fragments_with_a_comment(scripted, part10):
    whole = peers.response(1, 0xA700, extra=struct.pack("<HHI", 0, 0x0902, 12) + b"out of space")[12:]
    peer = scripted(answering(peers.pdata(whole[:9], control=1) + peers.pdata(whole[9:], control=3)))
    path, offset = part10(peers.data_set("1.2.3"))
    with associate(peer.port, timeouts=HASTY) as association:
        outcome = association.store(path, offset, syntaxes=IMAGE, sop_instance_uid="1.2.3")
    assert (outcome.status, outcome.comment) == (0xA700, "out of space")


def test_a_peer_that_ignores_the_release_is_left(scripted):
    def script(connection):
        connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
        peer.released.wait(10)

    peer = scripted(script)
    with associate(peer.port, timeouts=HASTY) as association:
        assert association.accepted == {IMAGE: 1}
    peer.released.set()


@given(st.binary(max_size=400))
def test_reading_anything_gives_a_value_or_a_link_error(data):
    for read in (codec.read_accept, codec.read_reject, codec.read_response, lambda d: list(codec.read_pdvs(d))):
        try:
            read(data)
        except LinkError:
            continue
