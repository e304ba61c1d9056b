"""Conversations with bytes changed, cut, doubled or reordered: DICOMGUARD_FUZZ says how many (100,000 for a night)."""

import os
import random
import socket
import threading

import psutil
import senders
from senders import CT, Sender, associate_rq, data_set, new_uid, until


def conversation():
    """The PDUs of an honest association."""
    data = data_set("2.25.1", "2.25.5", pixels=bytes(3000))
    return [
        associate_rq(),
        senders.p_data(3, 3, senders.echo_command(1)),
        senders.p_data(1, 3, senders.store_command(2, CT, "2.25.1")),
        *senders.data_pdus(1, data, 1000),
        senders.p_data(1, 3, senders.store_command(3, CT, "2.25.1")) + senders.p_data(1, 2, data),
        senders.pdu(5, bytes(4)),
    ]


def mutated(chance):
    pdus = conversation()
    # Most start with a good request, so that the states behind it are reached.
    first = 0 if chance.random() < 0.3 else 1
    for _ in range(chance.randint(1, 3)):
        index = chance.randrange(first, len(pdus))
        pdu = bytearray(pdus[index])
        action = chance.randrange(7)
        if action <= 2 and pdu:
            # The first bytes hold types, lengths and control headers.
            limit = min(len(pdu), 32) if action else len(pdu)
            pdu[chance.randrange(limit)] = chance.choice((0, 1, 2, 3, 4, 5, 7, 127, 128, 255, chance.randrange(256)))
            pdus[index] = bytes(pdu)
        elif action == 3:
            pdus[index] = bytes(pdu[: chance.randrange(len(pdu) + 1)])
        elif action == 4:
            pdus.insert(index, bytes(pdu))
        elif action == 5:
            other = chance.randrange(first, len(pdus))
            pdus[index], pdus[other] = pdus[other], pdus[index]
        else:
            pdus[index] = bytes(pdu) + chance.randbytes(chance.randrange(40))
    return b"".join(pdus)


def say(port, words):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        except ConnectionError:
            return


def test_no_conversation_however_garbled_harms_the_receiver(start, monkeypatch):
    uncaught = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    node = start(associate_s=1.0, pdu_s=1.0, gap_s=1.0, idle_s=1.0)
    process = psutil.Process()
    chance = random.Random(int(os.environ.get("DICOMGUARD_FUZZ_SEED", "1")))
    rounds = int(os.environ.get("DICOMGUARD_FUZZ", "300"))
    say(node.port, b"".join(conversation()))
    before, descriptors = process.memory_info().rss, process.num_fds()
    for _ in range(rounds):
        say(node.port, mutated(chance))
    with Sender(node.port) as sender:
        uid = new_uid()
        assert sender.store(uid, data_set(uid, "2.25.5")).status == 0x0000
        sender.release()
    assert until(lambda: node.receiver.connections == 0)
    assert not uncaught
    assert not node.parts
    assert process.num_fds() <= descriptors
    assert process.memory_info().rss - before < 50 << 20
    details = {event["detail"] for event in node.stop()}
    assert not [detail for detail in details if "internal error" in detail]
