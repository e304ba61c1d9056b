from __future__ import annotations

from datetime import timedelta

from loopback import CR, EXPLICIT

from dicomguard.deliver import Retention, retry

IMAGE = (CR, EXPLICIT)


def stored(node):
    return [instance.sop_instance_uid for _, instance in node.spool.stored()]


def retention(node, days=14.0):
    return Retention(node.spool, node.ledger, retention_days=days, now=node.clock.now)


def later(node, **by):
    node.clock.seconds += timedelta(**by).total_seconds()


def test_what_was_delivered_is_removed_after_its_time_and_recorded(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", "1.2")
    finish(node.courier(scp.port))
    later(node, days=13)
    assert not retention(node).step()
    later(node, days=2)
    assert retention(node).step()
    assert stored(node) == []
    (event,) = node.ledger.events("retention_removed")
    assert {i["sop_instance_uid"] for i in event.detail["instances"]} == {"1.1", "1.2"}
    assert not retention(node).step()


def test_the_period_counts_from_the_last_delivery(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", destinations=("ai", "pacs"))
    finish(node.courier(scp.port))
    later(node, days=20)
    assert not retention(node).step()
    finish(node.courier(scp.port, "pacs"))
    later(node, days=10)
    assert not retention(node).step()
    later(node, days=5)
    assert retention(node).step()


def test_what_waits_or_was_refused_is_never_removed(node, make_scp, finish):
    scp = make_scp([IMAGE])
    scp.status = 0xA900
    node.forward("1.1")
    later(node, days=1000)
    assert not retention(node).step()
    finish(node.courier(scp.port))
    later(node, days=1000)
    assert not retention(node).step()
    retry(node.spool, node.ledger)
    assert not retention(node).step()
    assert stored(node) == ["1.1"]


def test_a_destination_that_never_got_it_keeps_it_even_with_an_empty_queue(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", destinations=("ai", "pacs"))
    (item,) = node.spool.outgoing("pacs")
    item.instance.path.unlink()
    finish(node.courier(scp.port))
    later(node, days=1000)
    assert not retention(node).step()


def test_what_went_nowhere_is_never_removed(node):
    node.forward("1.1", destinations=())
    later(node, days=1000)
    assert not retention(node).step()
    assert stored(node) == ["1.1"]


def test_what_nobody_decided_stays(node):
    node.forward("1.1", destinations=(), decided=False)
    later(node, days=1000)
    assert not retention(node).step()
    assert stored(node) == ["1.1"]
