"""What people ask of the spool: sending once more, removing for good."""

import pytest

from dicomguard.errors import SpoolError
from dicomguard.study import study_key
from tests.spool.conftest import everything


@pytest.fixture
def claim(spool, put):
    put("1.2.3.4")
    put("1.2.3.5", data=b"other")
    return spool.claim(study_key("1.2.3"))


def test_what_is_stored_is_queued_once_more_and_what_is_gone_is_left_out(spool, claim):
    names = [instance.name for instance in claim.instances]
    spool.forward(claim, "d1", names, ["ai"])
    for item in list(spool.outgoing("ai")):
        spool.delivered(item)
    assert spool.send_stored("d1", [*names, "gone.dcm"], "ai") == 2
    assert spool.send_stored("d1", names, "ai") == 2
    assert sorted(item.instance.name for item in spool.outgoing("ai")) == sorted(names)
    assert len(list(spool.stored())) == 2


def test_a_queue_that_the_courier_removes_meanwhile_is_made_again(spool, claim, monkeypatch):
    import os

    names = [instance.name for instance in claim.instances]
    spool.forward(claim, "d1", names, [])
    real, missed = os.link, []

    def link(source, target):
        if not missed:
            missed.append(target)
            target.parent.rmdir()
        real(source, target)

    monkeypatch.setattr("os.link", link)
    assert spool.send_stored("d1", names, "ai") == 2
    assert len(list(spool.outgoing("ai"))) == 2


def test_a_queued_file_without_a_receipt_is_named(spool, claim):
    names = [instance.name for instance in claim.instances]
    spool.forward(claim, "d1", names, ["ai"])
    path = spool.root / "outbound" / "ai" / "d1" / names[0]
    path.unlink()
    path.write_bytes(b"nothing of ours")
    assert list(spool.damaged_outgoing("ai")) == [("d1", path, True)]
    assert list(spool.damaged_outgoing("pacs")) == []


def test_a_rejected_decision_can_be_removed_and_nothing_else(spool, claim, put):
    names = [instance.name for instance in claim.instances]
    spool.hold(claim, "d1", names)
    assert spool.purge_rejected("d1") == 0
    assert len(spool.quarantined("d1")) == 2
    spool.reject("d1")
    assert spool.purge_rejected("d1") == 2
    assert list(everything(spool)) == []
    assert spool.purge_rejected("d1") == 0


def test_a_failed_claim_can_be_removed(spool, claim):
    spool.fail(claim)
    (failed,) = spool.failed()
    assert spool.purge_failed(failed) == 2
    assert spool.failed() == []
    assert spool.purge_failed(failed) == 0


def test_what_cannot_be_removed_is_said(spool, claim, monkeypatch):
    spool.fail(claim)
    (failed,) = spool.failed()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(SpoolError, match="Permission denied"):
        spool.purge_failed(failed)
