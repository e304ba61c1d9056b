"""What anybody can try. None of it may keep an honest peer waiting, take memory or outlive its deadline."""

import os
import socket
import struct
import threading
import time
from contextlib import ExitStack
from ipaddress import ip_network

import psutil
import pytest
import senders
from senders import CT, Aborted, Rejected, Sender, associate_rq, data_set, new_uid, until

from dicomguard.receive import server as server_module
from dicomguard.receive.settings import PermittedPeer

OTHERS = (PermittedPeer("SCU", ip_network("10.1.2.0/24")),)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def everything(connection):
    data = bytearray()
    while chunk := connection.recv(4096):
        data += chunk
    return bytes(data)


def echo_takes(port):
    began = time.monotonic()
    with Sender(port) as sender:
        assert sender.echo() == 0x0000
        sender.release()
    return time.monotonic() - began


def flood(port, stack, count, start_with):
    """Open sockets that say a little and then nothing."""
    for _ in range(count):
        try:
            stack.enter_context(connect(port)).sendall(start_with)
        except OSError:  # evicted while we still wrote
            continue


# --- who may come in


@pytest.mark.parametrize(
    ("calling", "called", "answer"),
    [
        ("WHO", "GUARD", (1, 1, 3)),
        ("scu", "GUARD", (1, 1, 3)),
        ("SCU2", "GUARD", (1, 1, 3)),
        ("SCU", "OTHER", (1, 1, 7)),
        ("WHO", "OTHER", (1, 1, 3)),
        ("", "GUARD", (1, 1, 3)),
    ],
    ids=["unknown", "case", "longer", "called", "both", "empty"],
)
def test_strangers_and_misdirected_peers_are_rejected(node, calling, called, answer):
    with pytest.raises(Rejected) as rejection:
        Sender(node.port, calling=calling, called=called)
    assert (rejection.value.result, rejection.value.source, rejection.value.reason) == answer


def test_a_permitted_title_from_another_address_is_rejected(start):
    node = start(peers=(*OTHERS, PermittedPeer("HERE", ip_network("127.0.0.1/32"))))
    with pytest.raises(Rejected) as rejection:
        Sender(node.port, calling="SCU")
    assert (rejection.value.result, rejection.value.source, rejection.value.reason) == (1, 1, 3)


def test_an_address_of_nobody_is_rejected_before_it_has_said_a_word(start):
    node = start(peers=OTHERS)
    with connect(node.port) as connection:
        assert everything(connection) == bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3))
    with pytest.raises(Rejected):
        Sender(node.port)
    assert {event["kind"] for event in node.stop()} == {"rejected"}


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (associate_rq(version=2), (1, 2, 2)),
        (associate_rq(application="1.2.3"), (1, 1, 2)),
    ],
    ids=["version", "application"],
)
def test_other_protocols_are_rejected_by_name(node, request_bytes, answer):
    with connect(node.port) as connection:
        connection.sendall(request_bytes)
        assert everything(connection)[7:10] == bytes(answer)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        senders.pdu(4, b"\0\0\0\2\1\3"),
        senders.pdu(1, b""),
        senders.pdu(1, bytes(68)),
        associate_rq(contexts=()),
        associate_rq(contexts=((2, CT, (senders.EXPLICIT,)),)),
        associate_rq(contexts=((1, CT, ()),)),
        associate_rq(contexts=((1, CT, (senders.EXPLICIT,)),) * 2),
        associate_rq()[:76] + b"\xff\xff" + associate_rq()[78:],
    ],
    ids=["http", "tls", "data-first", "empty", "zeros", "no-context", "even", "no-syntax", "id-twice", "long-item"],
)
def test_what_is_no_request_is_aborted_at_once(node, sent):
    began = time.monotonic()
    with connect(node.port) as connection:
        connection.sendall(sent)
        assert everything(connection)[:1] == b"\7"
    assert time.monotonic() - began < 1
    assert echo_takes(node.port) < 1


# --- who takes too much


@pytest.mark.parametrize("kind", [1, 4, 5, 9], ids=["request", "data", "release", "unknown"])
@pytest.mark.parametrize("length", [2**31, 2**32 - 1], ids=["2GiB", "4GiB"])
def test_a_pdu_that_claims_gigabytes_is_cut_at_once_and_costs_no_memory(node, kind, length):
    process = psutil.Process()
    with ExitStack() as stack:
        if kind in {4, 5}:
            connection = stack.enter_context(Sender(node.port)).socket
        else:
            connection = stack.enter_context(connect(node.port))
        before = process.memory_info().rss
        began = time.monotonic()
        connection.sendall(struct.pack(">BxI", kind, length))
        chunk = bytes(1 << 20)
        with pytest.raises(OSError):
            for _ in range(300):
                connection.sendall(chunk)
        assert time.monotonic() - began < 1
    assert process.memory_info().rss - before < 5 << 20
    assert echo_takes(node.port) < 1


@pytest.mark.parametrize("said", [0, 3, 70], ids=["silent", "3-bytes", "70-bytes"])
def test_half_open_connections_do_not_keep_an_honest_peer_waiting(start, said):
    node = start(max_half_open=50, max_associations=4)
    with ExitStack() as stack:
        flood(node.port, stack, 200, associate_rq()[:said])
        assert max(echo_takes(node.port) for _ in range(5)) < 1
        assert node.receiver.connections <= 50 + 4


def test_half_open_connections_end_at_their_deadline(start):
    node = start(associate_s=0.4)
    with ExitStack() as stack:
        flood(node.port, stack, 20, associate_rq()[:70])
        assert until(lambda: node.receiver.connections == 20, 2)
        assert until(lambda: node.receiver.connections == 0, 2)
    details = {event["detail"] for event in node.stop()}
    assert details == {"waited too long for an association request"}


def test_port_scans_and_health_checks_leave_no_trace_but_the_journal(start):
    node = start()
    for _ in range(300):
        connect(node.port).close()
    assert echo_takes(node.port) < 1
    assert until(lambda: node.receiver.connections == 0)
    events = node.stop()
    assert 20 <= len([event for event in events if event["kind"] == "dropped"]) <= 21


def test_a_drip_within_a_request_ends_at_the_deadline(start):
    node = start(associate_s=0.5)
    began = time.monotonic()
    with connect(node.port) as connection, pytest.raises(OSError):
        for byte in associate_rq():
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < 2


def test_a_drip_within_a_pdu_ends_at_the_deadline_and_leaves_no_part(start):
    node = start(pdu_s=0.5)
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")))
        data = senders.p_data(1, 2, bytes(1000))
        began = time.monotonic()
        with pytest.raises((OSError, Aborted)):
            for byte in data:
                sender.socket.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - began < 2
    assert until(lambda: not node.parts)


def test_a_drip_of_tiny_pdus_falls_below_the_minimum_rate(start):
    node = start(gap_s=0.4, min_rate_bytes_s=1000.0)
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")))
        began = time.monotonic()
        with pytest.raises((OSError, Aborted)):
            for _ in range(200):
                sender.socket.sendall(senders.p_data(1, 0, b"ab"))
                time.sleep(0.02)
        assert time.monotonic() - began < 2
    assert until(lambda: not node.parts)


def test_a_slow_disk_of_ours_is_not_laid_at_the_peers_door(start, monkeypatch):
    node = start(gap_s=0.3, min_rate_bytes_s=10_000.0)
    fsync, write = os.fsync, os.write

    def slowly(act):
        def later(descriptor, *data):
            if is_receiving.is_set():
                time.sleep(0.25)
            return act(descriptor, *data)

        return later

    is_receiving = threading.Event()
    monkeypatch.setattr(os, "fsync", slowly(fsync))
    monkeypatch.setattr(os, "write", slowly(write))
    with Sender(node.port) as sender:
        is_receiving.set()
        for n in range(2):
            assert sender.store(f"2.25.{n}", data_set(f"2.25.{n}", "2.25.9")).status == 0
        is_receiving.clear()
        sender.release()
    assert node.stop()[-1]["kind"] == "released"


def test_what_nobody_foresaw_at_one_connection_does_not_end_reception(start, monkeypatch):
    node = start()
    conversation = server_module.Conversation

    def out_of_memory(*_):
        monkeypatch.setattr(server_module, "Conversation", conversation)
        raise MemoryError

    monkeypatch.setattr(server_module, "Conversation", out_of_memory)
    with pytest.raises((OSError, Aborted)), Sender(node.port):
        pass
    with Sender(node.port) as sender:
        assert sender.echo() == 0


@pytest.mark.parametrize(
    ("changes", "amid", "detail"),
    [
        ({"idle_s": 0.3}, False, "waited too long for a request"),
        ({"gap_s": 0.3}, True, "waited too long for the rest of a message"),
    ],
    ids=["between", "amid"],
)
def test_a_peer_that_falls_silent_is_aborted(start, changes, amid, detail):
    node = start(**changes)
    with Sender(node.port) as sender:
        if amid:
            sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")))
        assert sender.read()[0] == 7
    assert node.stop()[-1]["detail"].startswith(detail)
    assert not node.parts


def test_three_hundred_at_once_are_all_answered(start):
    node = start(max_associations=40, max_associations_per_address=40)
    together = threading.Barrier(300)
    answers = []

    def ask():
        together.wait()
        try:
            with Sender(node.port) as sender:
                answers.append("accepted")
                everyone_answered.wait(20)
                sender.abort()
        except Rejected as rejection:
            answers.append((rejection.result, rejection.source, rejection.reason))

    everyone_answered = threading.Event()
    threads = [threading.Thread(target=ask) for _ in range(300)]
    for thread in threads:
        thread.start()
    assert until(lambda: len(answers) == 300, 15)
    everyone_answered.set()
    for thread in threads:
        thread.join()
    assert sorted(map(str, answers)) == ["(2, 3, 2)"] * 260 + ["accepted"] * 40
    assert until(lambda: node.receiver.connections == 0)
    assert echo_takes(node.port) < 1


def test_one_address_cannot_take_every_association(start):
    both = (PermittedPeer("SCU", ip_network("127.0.0.0/8")),)
    node = start(peers=both, max_associations=10, max_associations_per_address=3)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Sender(node.port))
        with pytest.raises(Rejected) as rejection:
            Sender(node.port)
        assert (rejection.value.result, rejection.value.source, rejection.value.reason) == (2, 3, 2)
        other = stack.enter_context(socket.socket())
        other.bind(("127.0.0.2", 0))
        other.connect(("127.0.0.1", node.port))
        other.sendall(associate_rq())
        assert other.recv(1) == b"\2"


def test_the_place_of_an_association_is_free_as_soon_as_it_is_released(start):
    node = start(max_associations=1)
    for _ in range(20):
        assert echo_takes(node.port) < 1


def test_a_thousand_requests_in_flight_wait_in_the_network_not_in_memory(start):
    node = start()
    process = psutil.Process()
    uid = new_uid()
    data = data_set(uid, new_uid(), pixels=os.urandom(64 * 1024))
    with Sender(node.port) as sender:
        before = process.memory_info().rss

        def pour():
            try:
                for _ in range(1000):
                    sender.send_store(uid, data)
            except OSError:
                return

        pouring = threading.Thread(target=pour)
        pouring.start()
        statuses = [sender.response().status for _ in range(60)]
        assert process.memory_info().rss - before < 50 << 20
        sender.socket.shutdown(socket.SHUT_RDWR)
        pouring.join()
    assert set(statuses) == {0}
    assert until(lambda: not node.receiver.connections)
    assert not node.parts


def test_when_no_thread_can_be_had_the_peer_is_told_and_the_next_one_is_served(node, monkeypatch):
    class NoThread:
        def __init__(self, **_):
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(server_module.threading, "Thread", NoThread)
        with pytest.raises((Rejected, OSError)):
            Sender(node.port)
    assert echo_takes(node.port) < 1


def test_the_clock_on_the_wall_may_jump(node, monkeypatch):
    with Sender(node.port) as sender:
        for jump in (3600, -86400):
            now = time.time() + jump
            monkeypatch.setattr(time, "time", lambda now=now: now)
            assert sender.echo() == 0x0000


# --- stopping


def test_stopping_lets_an_instance_in_flight_arrive(node):
    uid = new_uid()
    data = data_set(uid, new_uid(), pixels=bytes(100_000))
    with Sender(node.port) as sender:
        pdus = list(senders.data_pdus(1, data, 20_000))
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, uid)) + pdus[0])
        stopping = threading.Thread(target=node.receiver.stop, args=(10.0,))
        stopping.start()
        assert until(lambda: node.receiver.is_stopped)
        sender.socket.sendall(b"".join(pdus[1:]))
        assert sender.response().status == 0x0000
        sender.release()
        began = time.monotonic()
        stopping.join()
        assert time.monotonic() - began < 2
    with pytest.raises(OSError):
        connect(node.port)
    assert len(node.instances) == 1


def test_stopping_ends_what_does_not_end_by_itself(start):
    node = start()
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, CT, "2.25.1")))
        assert until(lambda: node.parts)
        began = time.monotonic()
        node.receiver.stop(0.3)
        assert time.monotonic() - began < 2
        with pytest.raises((Aborted, OSError)):
            sender.read()
    assert not node.parts
