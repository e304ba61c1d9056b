"""Nothing leaves that the ledger does not let go; and what people have sent once more is let go again."""

from __future__ import annotations

import shutil

import pytest
from loopback import CR, EXPLICIT

from dicomguard.deliver import Retention, resend, retry
from dicomguard.errors import DeliveryError, NotFoundError
from dicomguard.ledger import DeliveryState

IMAGE = (CR, EXPLICIT)


def slip_in(node, source, decision, name=None):
    queue = node.spool.root / "outbound" / "ai" / decision
    queue.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.dcm"):
        shutil.copyfile(path, queue / (name or path.name))


def test_what_nobody_decided_is_never_sent(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", decision="unheard-of", decided=False)
    node.forward("1.2", decision="d1")
    finish(node.courier(scp.port))
    assert [uid for uid, _, _ in scp.received] == ["1.2"]
    assert node.dead() == ["1.1"]
    (event,) = node.ledger.events("unknown_outbound")
    assert (event.subject_uid, event.detail["decision_id"]) == ("1.1", "unheard-of")
    assert node.states()["1.1"] is DeliveryState.DEAD


def test_what_is_held_is_sent_after_its_release_only(node, make_scp, finish):
    scp = make_scp([IMAGE])
    slip_in(node, node.hold("1.1"), "held")
    courier = node.courier(scp.port)
    finish(courier)
    assert scp.received == []
    assert "nobody released" in node.ledger.events("unknown_outbound")[0].detail["error"]
    node.ledger.record_review("held", "release", "dr", "artefact")
    retry(node.spool, node.ledger)
    finish(courier)
    assert [uid for uid, _, _ in scp.received] == ["1.1"]


def test_what_was_rejected_stays_here_whoever_queues_it_again(node, make_scp, finish):
    scp = make_scp([IMAGE])
    slip_in(node, node.hold("1.1"), "held")
    node.ledger.record_review("held", "reject", "dr", "tampered")
    courier = node.courier(scp.port)
    for _ in range(2):
        finish(courier)
        retry(node.spool, node.ledger)
    assert scp.received == []


@pytest.mark.parametrize("name", [None, "another.dcm"], ids=["same name", "another name"])
def test_another_data_set_in_a_decisions_folder_is_never_sent(node, make_scp, finish, name):
    scp = make_scp([IMAGE])
    node.forward("1.2", decision="d1")
    (item,) = node.spool.outgoing("ai")
    item.instance.path.unlink()
    slip_in(node, node.hold("6.6"), "d1", name or item.instance.name)
    finish(node.courier(scp.port))
    assert scp.received == []
    assert node.dead() == ["6.6"]


def test_a_file_that_is_exchanged_while_the_destination_is_busy_is_never_sent(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.2", decision="d1")
    (item,) = node.spool.outgoing("ai")
    courier = node.courier(scp.port)
    scp.status = 0xA700
    finish(courier)
    assert node.states() == {"1.2": DeliveryState.RETRY}  # looked at, permitted, and not taken
    item.instance.path.unlink()
    slip_in(node, node.hold("6.6"), "d1", item.instance.name)
    scp.status = 0
    node.clock.seconds += 900
    finish(courier)
    assert [uid for uid, _, _ in scp.received] == ["1.2"]
    assert node.dead() == ["6.6"]
    assert len(node.ledger.events("unknown_outbound")) == 1


def test_a_beginning_of_a_decision_id_is_no_decision(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", decision="d1-long")
    folder = node.spool.root / "outbound" / "ai" / "d1-long"
    folder.rename(folder.with_name("d1"))
    finish(node.courier(scp.port))
    assert scp.received == []


def test_what_cannot_be_set_aside_fills_no_ledger(node, make_scp, monkeypatch):
    scp = make_scp([IMAGE])
    node.forward("1.1", decision="unheard-of", decided=False)
    monkeypatch.setattr(node.spool, "give_up", lambda item: None)
    courier = node.courier(scp.port)
    for _ in range(5):
        courier.step()
    assert scp.received == []
    assert len(node.ledger.events("unknown_outbound")) == 1


def test_a_damaged_receipt_is_told_of_once_and_the_others_go_on(node, make_scp, finish):
    scp = make_scp([IMAGE])
    node.forward("1.1", "1.2")
    (first,) = [i.instance for i in node.spool.outgoing("ai") if i.instance.sop_instance_uid == "1.1"]
    first.path.write_bytes(b"nothing of ours")
    for _ in range(2):  # the second courier is one after a restart
        courier = node.courier(scp.port)
        finish(courier)
        node.clock.seconds += 400
        finish(courier)
    assert [uid for uid, _, _ in scp.received] == ["1.2"]
    (event,) = node.ledger.events("damaged_in_spool")
    assert event.detail == {"decision_id": "d1", "destination": "ai", "file": first.name}
    assert first.path.exists()


class TestResend:
    def test_a_delivered_study_goes_once_more(self, node, make_scp, finish):
        scp = make_scp([IMAGE])
        node.forward("1.1", "1.2")
        node.forward("2.1", study="2", decision="d2")
        courier = node.courier(scp.port)
        finish(courier)
        assert resend(node.spool, node.ledger, "1.2", configured=["ai"]) == 2
        assert node.states()["1.1"] is DeliveryState.REQUEUED
        finish(courier)
        assert sorted(uid for uid, _, _ in scp.received) == ["1.1", "1.1", "1.2", "1.2", "2.1"]
        assert node.history("1.1")[-3:] == ["requeued", "sending", "delivered"]

    def test_a_new_destination_may_be_named(self, node, make_scp, finish):
        scp = make_scp([IMAGE])
        node.forward("1.1")
        finish(node.courier(scp.port))
        assert resend(node.spool, node.ledger, "1.2", configured=["ai", "pacs"], destination="pacs") == 1
        assert (node.waiting("ai"), node.waiting("pacs")) == ([], ["1.1"])

    def test_what_had_nowhere_to_go_goes_to_what_is_configured_now(self, node):
        node.forward("1.1", destinations=())
        assert resend(node.spool, node.ledger, "1.2", configured=["ai"]) == 1
        assert node.waiting() == ["1.1"]

    def test_what_waits_or_was_refused_is_left_alone(self, node, make_scp, finish):
        scp = make_scp([IMAGE])
        scp.status = 0xA900
        node.forward("1.1")
        assert resend(node.spool, node.ledger, "1.2", configured=["ai"]) == 0
        finish(node.courier(scp.port))
        assert resend(node.spool, node.ledger, "1.2", configured=["ai"]) == 0
        assert node.dead() == ["1.1"]

    def test_held_unknown_removed_and_homeless_studies_are_refused(self, node):
        node.hold("1.1")
        for study in ("1.2", "9.9"):
            with pytest.raises(NotFoundError, match="No decision forwarded"):
                resend(node.spool, node.ledger, study, configured=["ai"])
        node.forward("2.1", study="2", decision="d2")
        with pytest.raises(DeliveryError, match="is configured"):
            resend(node.spool, node.ledger, "2", configured=["pacs"])
        shutil.rmtree(node.spool.root / "store" / "d2")
        with pytest.raises(NotFoundError, match="in the store"):
            resend(node.spool, node.ledger, "2", configured=["ai"])


def test_a_release_is_over_when_what_it_was_queued_for_has_got_it(node, make_scp, finish):
    """Held for "ai"; released when only "pacs" was configured. The first will never get it, and need not."""
    scp = make_scp([IMAGE])
    node.hold("1.1")
    node.ledger.record_review("held", "release", "dr", "artefact", ["pacs"])
    node.spool.release("held", ["pacs"])
    node.clock.seconds += 86_400 * 30
    end = Retention(node.spool, node.ledger, retention_days=14, now=node.clock.now)
    assert not end.step()
    finish(node.courier(scp.port, "pacs"))
    node.clock.seconds += 86_400 * 15
    assert end.step()
    assert list(node.spool.stored()) == []
