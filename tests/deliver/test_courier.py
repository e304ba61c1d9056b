from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from types import SimpleNamespace

import loopback as peers
import pytest
from loopback import CR, CT, EXPLICIT, JPEG
from pynetdicom import AllStoragePresentationContexts

from dicomguard.deliver import retry
from dicomguard.deliver.courier import Courier
from dicomguard.errors import LedgerError
from dicomguard.ledger import DeliveryState
from dicomguard.scu import Timeouts
from dicomguard.spool import envelope

IMAGE = (CR, EXPLICIT)
HASTY = Timeouts(connect_s=1, acse_s=0.4, dimse_s=0.4, network_s=0.4)
DELIVERED, DEAD, RETRY, QUEUED = (
    DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY, DeliveryState.QUEUED,
)  # fmt: skip


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_was_received_arrives_byte_for_byte_and_leaves_the_queue(node, make_scp, finish):
    scp = make_scp([IMAGE, (CT, JPEG)])
    sent = node.forward("1.1", "1.2")
    sent |= node.forward("2.1", study="2", decision="d2", syntaxes=(CT, JPEG), data=b"\0\1" * 40_000)
    assert finish(node.courier(scp.port)) == 2
    assert scp.digests == {uid: digest(data) for uid, data in sent.items()}
    assert scp.associations == 2  # one for each study
    assert node.waiting() == []
    assert set(node.states().values()) == {DELIVERED}
    assert node.history("1.1") == ["queued", "sending", "delivered"]
    assert sum(1 for _ in node.spool.stored()) == 3  # kept until the retention ends


def test_a_second_step_has_nothing_to_do(node, make_scp):
    scp = make_scp([IMAGE])
    courier = node.courier(scp.port)
    assert not courier.step()
    node.forward("1.1")
    assert courier.step()
    assert not courier.step()
    assert scp.associations == 1


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111], ids=hex)
def test_warnings_and_duplicates_are_delivered_and_said(node, make_scp, finish, status):
    scp = make_scp([IMAGE])
    scp.status = status
    node.forward("1.1")
    finish(node.courier(scp.port))
    (delivery,) = node.ledger.deliveries()
    assert (delivery.state, delivery.status, delivery.attempt) == (DELIVERED, status, 1)
    assert delivery.error
    assert node.waiting() == []


@pytest.mark.parametrize("status", [0xA700, 0x0110, 0x0213], ids=hex)
def test_a_busy_peer_is_asked_again_with_growing_pauses(node, make_scp, finish, status):
    scp = make_scp([IMAGE])
    scp.status = status
    node.forward("1.1")
    courier = node.courier(scp.port)
    pauses = []
    for _ in range(12):
        assert finish(courier) == 1
        (delivery,) = node.ledger.deliveries()
        assert delivery.state is RETRY
        pauses.append((delivery.next_attempt_at - node.clock.now()).total_seconds())
        node.clock.seconds += pauses[-1] - 0.01
        assert not courier.step()
        node.clock.seconds += 0.01
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900])
    scp.status = 0
    assert finish(courier) == 1
    assert node.states() == {"1.1": DELIVERED}
    assert node.ledger.deliveries()[0].attempt == 13


def test_a_peer_that_is_busy_again_and_again_is_left_alone(node, make_scp, finish):
    scp = make_scp([IMAGE])
    scp.status = 0xA700
    node.forward(*(f"1.{n}" for n in range(10)))
    assert finish(node.courier(scp.port)) == 1
    assert len(scp.received) == 3
    assert sorted(node.waiting()) == sorted(f"1.{n}" for n in range(10))
    assert "destination_failing" in node.event_kinds()


@pytest.mark.parametrize("status", [0xA900, 0x0122, 0x0117], ids=hex)
def test_a_refusal_for_good_waits_for_a_person_and_the_others_go_on(node, make_scp, finish, status):
    scp = make_scp([IMAGE])
    scp.status = lambda uid: status if uid == "1.2" else 0
    node.forward("1.1", "1.2", "1.3")
    finish(node.courier(scp.port))
    assert node.states() == {"1.1": DELIVERED, "1.2": DEAD, "1.3": DELIVERED}
    assert (node.waiting(), node.dead()) == ([], ["1.2"])
    (event,) = node.ledger.events("delivery_dead")
    assert event.detail["instances"] == 1


def test_cannot_understand_is_tried_twice(node, make_scp, finish):
    scp = make_scp([IMAGE])
    scp.status = 0xC000
    node.forward("1.1")
    courier = node.courier(scp.port)
    finish(courier)
    assert node.states() == {"1.1": RETRY}
    node.clock.seconds += 1
    finish(courier)
    assert (node.states(), node.dead()) == ({"1.1": DEAD}, ["1.1"])


def test_the_strike_of_cannot_understand_survives_a_restart(node, make_scp, finish):
    scp = make_scp([IMAGE])
    scp.status = 0xC123
    node.forward("1.1")
    finish(node.courier(scp.port))
    finish(node.courier(scp.port))  # a new process: due at once, and the count goes on
    assert (node.states(), len(scp.received)) == ({"1.1": DEAD}, 2)


def test_an_unknown_status_is_tried_a_few_times_and_then_dead(node, make_scp, finish):
    scp = make_scp([IMAGE])
    scp.status = 0xFF00
    node.forward("1.1")
    courier = node.courier(scp.port, max_strikes=3)
    for _ in range(3):
        assert node.waiting() == ["1.1"]
        finish(courier)
        node.clock.seconds += 10
    assert (node.states(), len(scp.received)) == ({"1.1": DEAD}, 3)


def test_a_person_brings_the_dead_back(node, make_scp, finish):
    scp = make_scp([IMAGE])
    scp.status = 0xA900
    node.forward("1.1", destinations=("ai", "pacs"))
    node.forward("2.1", study="2", decision="d2")
    courier = node.courier(scp.port)
    finish(courier)
    assert sorted(node.dead()) == ["1.1", "2.1"]
    scp.status = 0
    assert retry(node.spool, node.ledger, destination="pacs") == 0
    assert retry(node.spool, node.ledger, study_uid="2") == 1
    assert (node.dead(), node.waiting()) == (["1.1"], ["2.1"])
    assert finish(courier) == 1
    assert retry(node.spool, node.ledger, destination="ai") == 1
    finish(courier)
    assert set(node.states().values()) == {DELIVERED}
    assert node.history("2.1") == ["queued", "sending", "dead", "requeued", "sending", "delivered"]


def test_contexts_that_the_peer_refuses_are_dead_and_the_others_go_on(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1")
    node.forward("1.2", decision="d2", syntaxes=(CT, JPEG))
    finish(node.courier(scp.port))
    assert node.states() == {"1.1": DELIVERED, "1.2": DEAD}
    (dead,) = node.ledger.deliveries(DEAD)
    assert JPEG in dead.error
    assert node.dead() == ["1.2"]


def test_a_peer_that_accepts_no_context_at_all(node, scripted, finish):
    peer = scripted(lambda c: (c.sendall(peers.accept(peers.read_pdu(c)[1], result=3)), peers.read_pdu(c)))
    node.forward("1.1")
    finish(node.courier(peer.port))
    assert (node.states(), node.dead()) == ({"1.1": DEAD}, ["1.1"])


@pytest.mark.slow
def test_more_than_128_contexts_take_several_associations(node, make_scp, finish):
    contexts = [(str(context.abstract_syntax), EXPLICIT) for context in AllStoragePresentationContexts[:130]]
    assert len(contexts) == 130
    scp = make_scp(contexts[:120])
    second = make_scp(contexts[120:])
    node.forward(each={f"9.{n}": syntaxes for n, syntaxes in enumerate(contexts)}, destinations=("ai", "pacs"))
    finish(node.courier(scp.port))
    finish(node.courier(second.port, "pacs"))
    assert (scp.associations, second.associations) == (2, 2)
    assert len(scp.received) == 120
    assert len(second.received) == 10
    assert len(node.dead()) == 130  # what neither took: each other's


def test_a_rejection_for_good_is_dead(node, make_scp, finish):
    scp = make_scp([IMAGE], ae_title="SOMEBODY")
    node.forward("1.1")
    finish(node.courier(scp.port))
    (dead,) = node.ledger.deliveries(DEAD)
    assert "1/1/7" in dead.error
    assert node.dead() == ["1.1"]


def reject(result, source, reason):
    return lambda c: (peers.read_pdu(c), c.sendall(bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason])))


def hang_after_last_pdv(connection):
    connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
    peers.read_message(connection)
    connection.recv(1)


def abort_after_last_pdv(connection):
    connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
    peers.read_message(connection)
    connection.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")


def vanish_after_last_pdv(connection):
    connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
    peers.read_message(connection)


@pytest.mark.parametrize(
    ("script", "says", "attempts"),
    [
        (reject(2, 3, 2), "local limit", 0),
        (reject(2, 3, 1), "congestion", 0),
        (lambda c: c.recv(1 << 16) and c.recv(1), "in time", 0),
        (lambda c: c.sendall(struct.pack(">BxI", 2, 0xFFFFFFFF)), "limit", 0),
        (hang_after_last_pdv, "in time", 1),
        (abort_after_last_pdv, "aborted", 1),
        (vanish_after_last_pdv, "closed", 1),
    ],
    ids=["2/3/2", "2/3/1", "silent", "garbage", "hangs", "aborts", "vanishes"],
)
def test_trouble_with_the_peer_keeps_everything_and_tries_again(
    node, scripted, make_scp, finish, script, says, attempts
):
    peer = scripted(script)
    node.forward("1.1", "1.2")
    courier = node.courier(peer.port, timeouts=HASTY)
    assert finish(courier) == 1
    assert sorted(node.waiting()) == ["1.1", "1.2"]
    retried = node.ledger.deliveries(RETRY)
    assert all(says in delivery.error for delivery in retried)
    assert retried[0].attempt == attempts
    (event,) = node.ledger.events("destination_failing")
    assert says in event.detail["error"]
    # The peer is mended. What may have arrived is sent again.
    scp = make_scp([IMAGE])
    mended = node.courier(scp.port)
    finish(mended)
    assert node.states() == {"1.1": DELIVERED, "1.2": DELIVERED}
    assert node.waiting() == []


def test_a_dead_destination_is_told_of_once_and_raises_an_alarm_by_age(node, finish):
    node.forward("1.1")
    courier = node.courier(9, alarm_after_s=3600)
    for _ in range(20):
        finish(courier)
        node.clock.seconds += 900
    assert node.history("1.1") == ["queued", "retry"]
    assert node.event_kinds().count("destination_failing") == 20
    assert node.event_kinds().count("destination_overdue") == 1
    assert node.waiting() == ["1.1"]


def test_a_destination_that_comes_back_is_noted(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1")
    courier = node.courier(9)
    finish(courier)
    courier.destination = node.courier(scp.port).destination
    node.clock.seconds += 1
    finish(courier)
    assert node.event_kinds() == ["destination_failing", "destination_recovered"]
    assert node.states() == {"1.1": DELIVERED}


def test_one_instance_that_kills_the_peer_does_not_hold_up_the_others(node, scripted, finish):
    arrived = []

    def script(connection):
        connection.sendall(peers.accept(peers.read_pdu(connection)[1]))
        message = 0
        while True:
            data = peers.read_message(connection)
            message += 1
            if b"6.6.6" in data:
                return
            arrived.append(data)
            connection.sendall(peers.response(message, 0))

    peer = scripted(script)
    sent = node.forward("6.6.6", "6.6.7", study="6", decision="d0")
    sent |= node.forward("1.1", decision="d1")
    sent |= node.forward("2.1", study="2", decision="d2")
    courier = node.courier(peer.port)
    for _ in range(8):
        finish(courier)
        node.clock.seconds += 4
    assert node.waiting() == ["6.6.6"]
    assert sorted(arrived) == sorted(data for uid, data in sent.items() if uid != "6.6.6")
    assert node.ledger.deliveries(RETRY)[0].attempt >= 3


def abort_what_offers(abstract_syntax, arrived, asked):
    """A peer that aborts every association in which this class is offered, and takes everything else."""

    def script(connection):
        request = peers.read_pdu(connection)[1]
        asked.append(abstract_syntax.encode() in request)
        if asked[-1]:
            connection.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")
            return
        connection.sendall(peers.accept(request))
        message = 0
        while data := peers.read_message(connection):
            arrived.append(data)
            message += 1
            connection.sendall(peers.response(message, 0))

    return script


def test_a_study_that_gets_no_association_does_not_hold_up_the_others(node, scripted, finish):
    arrived, asked = [], []
    peer = scripted(abort_what_offers("6.6.6", arrived, asked))
    node.forward("6.1", study="6", decision="d0", syntaxes=("6.6.6", EXPLICIT))
    sent = [node.forward(f"{n}.1", study=f"{n}", decision=f"d{n}")[f"{n}.1"] for n in range(1, 4)]
    courier = node.courier(peer.port)
    finish(courier)
    assert (arrived, asked) == ([], [True])
    node.clock.seconds += 1
    finish(courier)
    assert sorted(arrived) == sorted(sent)
    assert node.waiting() == ["6.1"]
    # From now on it is put off alone, ever longer: what comes goes out at once.
    for n in range(10, 60):
        node.forward(f"{n}.1", study=f"{n}", decision=f"d{n}")
        node.clock.seconds += 60
        finish(courier)
        assert node.waiting() == ["6.1"]
    assert len(arrived) == 53
    assert sum(asked) < 15
    failing = node.ledger.events("destination_failing")
    assert {event.subject_uid for event in failing} == {"", "6"}
    assert "destination_overdue" not in node.event_kinds()


def test_of_a_study_that_gets_no_association_the_other_classes_go_on(node, scripted, finish):
    arrived, asked = [], []
    peer = scripted(abort_what_offers("6.6.6", arrived, asked))
    sent = node.forward("6.1", "6.2", "6.3", study="6", each={"6.1": ("6.6.6", EXPLICIT), "6.3": (CT, JPEG)})
    courier = node.courier(peer.port)
    for _ in range(8):
        finish(courier)
        node.clock.seconds += 900
    assert node.waiting() == ["6.1"]
    assert sorted(arrived) == sorted(data for uid, data in sent.items() if uid != "6.1")


def test_a_large_study_that_gets_no_association_has_one_turn_at_a_time(node, scripted, finish):
    asked = []
    peer = scripted(abort_what_offers("6.6.6", [], asked))
    node.forward(*(f"6.{n}" for n in range(6)), study="6", decision="d0", syntaxes=("6.6.6", EXPLICIT))
    node.forward("1.1", study="1", decision="d1")
    courier = node.courier(peer.port, batch=2)
    for _ in range(2):
        finish(courier)
        node.clock.seconds += 1
    assert "1.1" not in node.waiting()


def test_while_a_destination_is_down_its_studies_take_turns_at_its_own_pace(node, make_scp, finish):
    for n in range(1, 4):
        node.forward(f"{n}.1", study=f"{n}", decision=f"d{n}")
    down, up = node.courier(9), make_scp([IMAGE])
    pauses = []
    for _ in range(12):
        assert finish(down) == 1
        (*_, event) = node.ledger.events("destination_failing")
        pauses.append(down._resume_s - node.clock.seconds)
        assert event.subject_uid == ""
        node.clock.seconds += pauses[-1]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900])
    down.destination = node.courier(up.port).destination
    finish(down)
    assert [uid for uid, _, _ in up.received] == ["1.1", "2.1", "3.1"]  # as long as none has had more turns


def test_a_destination_that_goes_while_only_a_put_off_study_waits_is_overdue_too(node, scripted, finish):
    peer = scripted(abort_what_offers("6.6.6", [], []))
    node.forward("6.1", study="6", decision="d0", syntaxes=("6.6.6", EXPLICIT))
    node.forward("1.1", study="1", decision="d1")
    courier = node.courier(peer.port)
    for _ in range(20):
        finish(courier)
        node.clock.seconds += 900
    assert node.event_kinds().count("destination_overdue") == 1


def test_a_file_that_changed_in_the_spool_is_never_sent(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", "1.2")
    (first,) = [i.instance for i in node.spool.outgoing("ai") if i.instance.sop_instance_uid == "1.1"]
    with first.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    finish(node.courier(scp.port))
    assert [uid for uid, _, _ in scp.received] == ["1.2"]
    assert node.states() == {"1.1": DEAD, "1.2": DELIVERED}
    assert node.dead() == ["1.1"]
    (event,) = node.ledger.events("altered_in_spool")
    assert event.subject_uid == "1.1"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("where", ["spool.envelope.data_sha256", "scu.association.open", "scu.association.pread"])
def test_a_file_that_the_machine_cannot_read_is_sent_later(node, make_scp, finish, monkeypatch, code, where):
    scp = make_scp([IMAGE])
    courier = node.courier(scp.port)
    node.forward("1.1", "1.2")

    def trouble(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if where.startswith("scu"):
            # In this module alone: the queue is read with the same calls.
            module, _, call = where.rpartition(".")
            patch.setattr(f"dicomguard.{module}.os", SimpleNamespace(**{**vars(os), call: trouble}))
        else:
            patch.setattr(f"dicomguard.{where}", trouble)
        finish(courier)
    assert scp.received == []
    assert sorted(node.waiting()) == ["1.1", "1.2"]
    assert DEAD not in node.states().values()
    assert node.ledger.events("altered_in_spool") == []
    assert os.strerror(code) in node.ledger.events("host_failing")[0].detail["error"]
    # A shortage concerns whatever is sent; a disk that fails, this file alone.
    assert bool(node.ledger.events("destination_failing")) == (code in {errno.EMFILE, errno.ENFILE})
    node.clock.seconds += 900
    finish(courier)
    assert node.states() == {"1.1": DELIVERED, "1.2": DELIVERED}


def test_bad_sectors_under_one_study_hold_up_no_other(node, make_scp, finish, monkeypatch):
    scp = make_scp([IMAGE])
    bad = [f"1.{n}" for n in range(10)]
    node.forward(*bad, "1.99", study="1", decision="d1")
    node.forward("2.1", study="2", decision="d2")
    digest_of = envelope.data_sha256

    def trouble(instance):
        if instance.sop_instance_uid in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest_of(instance)

    monkeypatch.setattr("dicomguard.spool.envelope.data_sha256", trouble)
    finish(node.courier(scp.port))
    assert {uid for uid, _, _ in scp.received} == {"1.99", "2.1"}
    assert sorted(node.waiting()) == sorted(bad)
    assert len(node.ledger.events("host_failing")) == 10
    assert node.ledger.events("destination_failing") == []


def test_a_file_that_changes_while_it_is_sent_is_cut_off(node, make_scp, finish, monkeypatch):
    scp = make_scp([IMAGE])
    node.forward("1.1", "1.2")
    monkeypatch.setattr("dicomguard.deliver.courier._sha256", lambda i: i.receipt.sha256)
    (first,) = [i.instance for i in node.spool.outgoing("ai") if i.instance.sop_instance_uid == "1.1"]
    with first.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    finish(node.courier(scp.port))
    assert [uid for uid, _, _ in scp.received] == ["1.2"]
    assert node.states() == {"1.1": DEAD, "1.2": DELIVERED}


def test_a_crash_before_the_record_sends_again(node, make_scp, finish, monkeypatch):
    scp = make_scp([IMAGE])
    node.forward("1.1")

    def die(self, results):
        raise LedgerError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(Courier, "_settle", die)
        with pytest.raises(LedgerError):
            node.courier(scp.port).step()
    assert node.states() == {"1.1": DeliveryState.SENDING}
    finish(node.courier(scp.port))
    assert [uid for uid, _, _ in scp.received] == ["1.1", "1.1"]
    assert node.states() == {"1.1": DELIVERED}


def test_a_crash_between_record_and_move_does_not_send_again(node, make_scp, finish, monkeypatch):
    scp = make_scp([IMAGE])
    scp.status = lambda uid: 0 if uid == "1.1" else 0xA900
    node.forward("1.1", "1.2")
    with monkeypatch.context() as patch:
        patch.setattr(node.spool, "delivered", lambda item: None)
        patch.setattr(node.spool, "give_up", lambda item: None)
        node.courier(scp.port).step()
    assert sorted(node.waiting()) == ["1.1", "1.2"]
    finish(node.courier(scp.port))
    assert (node.waiting(), node.dead()) == ([], ["1.2"])
    assert len(scp.received) == 2


def test_stopping_ends_after_the_instance_that_is_being_sent(node, make_scp):
    scp = make_scp([IMAGE])
    node.forward("1.1", "1.2", "1.3")
    stop = threading.Event()
    courier = node.courier(scp.port)
    courier._stop = stop
    scp.status = lambda uid: stop.set() or 0
    courier.step()
    assert len(scp.received) == 1
    assert sorted(s.value for s in node.states().values()) == ["delivered", "queued", "queued"]
    assert len(node.waiting()) == 2
