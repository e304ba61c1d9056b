from __future__ import annotations

import threading
import time

import pytest
from loopback import CR, EXPLICIT

from dicomguard.deliver import Deliverer, Destination, Settings, echo, run
from dicomguard.errors import DeliveryError, LedgerError
from dicomguard.scu import Timeouts
from dicomguard.study import AeTitle, Peer

IMAGE = (CR, EXPLICIT)


def test_a_dead_destination_holds_up_nobody(node, make_scp, scripted):
    scp = make_scp([IMAGE])
    node.forward("1.1", destinations=("down", "ai"))
    deliverer = Deliverer([node.courier(9, "down"), node.courier(scp.port)])
    assert deliverer.step()
    assert len(scp.received) == 1
    assert node.waiting("down") == ["1.1"]
    assert not deliverer.step()


def test_one_couriers_failure_does_not_end_the_round(node, make_scp, monkeypatch, caplog):
    scp = make_scp([IMAGE])
    node.forward("1.1")
    broken, broken_too = node.courier(scp.port, "x"), node.courier(scp.port, "y")

    def fail():
        raise LedgerError("It is locked.", advice="Wait.")

    def crash():
        raise ZeroDivisionError

    monkeypatch.setattr(broken, "step", fail)
    monkeypatch.setattr(broken_too, "step", crash)
    assert Deliverer([broken, broken_too, node.courier(scp.port)]).step()
    assert len(scp.received) == 1
    assert "It is locked. Wait." in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_run_delivers_beside_a_hanging_destination_and_stops_when_told(node, make_scp, scripted, caplog):
    scp = make_scp([IMAGE])
    hanging = scripted(lambda c: c.recv(1 << 16) and c.recv(1))
    node.forward("1.1", destinations=("hangs", "ai", "gone"))
    stop = threading.Event()
    destinations = [
        Destination(name, Peer(AeTitle("AI"), "127.0.0.1", port))
        for name, port in (("hangs", hanging.port), ("ai", scp.port))
    ]
    patient = Settings("GUARD", timeouts=Timeouts(acse_s=2))
    thread = threading.Thread(
        target=run,
        args=(node.spool, node.ledger, destinations),
        kwargs={"calling_ae": "GUARD", "retention_days": 1, "stop": stop, "settings": patient},
    )
    begun = time.monotonic()
    thread.start()
    while node.waiting() and time.monotonic() - begun < 5:
        time.sleep(0.01)
    taken_s = time.monotonic() - begun
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(scp.received) == 1
    assert taken_s < 2
    assert node.waiting("hangs") == ["1.1"]
    assert "gone, which is not configured" in caplog.text


def test_a_stray_file_beside_the_queues_is_named_once_and_passed_over(node, make_scp, caplog):
    scp = make_scp([IMAGE])
    node.forward("1.1")
    (node.spool.root / "outbound" / ".nfs0001").write_bytes(b"")
    (node.spool.root / "outbound" / "gone").mkdir()
    (node.spool.root / "outbound" / "gone" / ".nfs0002").write_bytes(b"")
    stop = threading.Event()
    scp.status = lambda uid: stop.set() or 0
    run(
        node.spool,
        node.ledger,
        [Destination("ai", Peer(AeTitle("AI"), "127.0.0.1", scp.port))],
        calling_ae="GUARD",
        retention_days=1,
        stop=stop,
    )
    assert len(scp.received) == 1
    assert caplog.text.count("'.nfs0001'") == 1
    assert "not configured" not in caplog.text


def test_echo_says_what_is_wrong(make_scp):
    scp = make_scp([IMAGE])
    echo(Destination("ai", Peer(AeTitle("AI"), "127.0.0.1", scp.port)), calling_ae="GUARD")
    with pytest.raises(DeliveryError, match=r"ai \(WRONG@.*\): .*called AE title not recognized.*AE title GUARD"):
        echo(Destination("ai", Peer(AeTitle("WRONG"), "127.0.0.1", scp.port)), calling_ae="GUARD")
    with pytest.raises(DeliveryError, match="Check its address"):
        echo(Destination("ai", Peer(AeTitle("AI"), "127.0.0.1", 9)), calling_ae="GUARD")
