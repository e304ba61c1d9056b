import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dicomguard.errors import NotFoundError, SpoolError
from dicomguard.spool import journal
from dicomguard.spool.store import Due, Settling, Spool, find_failed
from dicomguard.study import study_key
from tests.spool.conftest import everything, receipt

KEY = study_key("1.2.3")


def places(spool):
    return sorted((place, path.name) for place, path in everything(spool))


def test_a_claim_is_what_the_claimer_moved_itself(spool, put):
    first = put("1.1")
    claim = spool.claim(KEY)
    late = put("1.2")
    assert [i.name for i in claim.instances] == [first.name]
    assert spool.arrivals() == {KEY: frozenset({late.name})}
    assert spool.claim(study_key("9.9")) is None


def test_instances_of_a_claim_are_in_order_of_receipt(spool, put):
    names = [put(f"1.{n}", data=bytes([n])).name for n in range(9)]
    assert [i.name for i in spool.claim(KEY).instances] == names


def test_a_file_that_is_none_of_ours_is_set_aside_and_kept(spool, put):
    put()
    (spool.root / "incoming" / KEY / "notes.txt").write_text("hello")
    claim = spool.claim(KEY)
    assert [path.name for path in claim.strangers] == ["notes.txt"]
    spool.set_aside(claim, claim.strangers)
    assert [path.name for failed in spool.failed() for path in failed.strangers] == ["notes.txt"]


def test_forwarding_queues_a_link_for_every_destination_and_keeps_one_copy(spool, put):
    put()
    claim = spool.claim(KEY)
    name = claim.instances[0].name
    spool.forward(claim, "d1", [name], ["ai", "pacs"])
    spool.finish(claim)
    assert not claim.folder.exists()
    items = [item for destination in ("ai", "pacs") for item in spool.outgoing(destination)]
    assert [(i.destination, i.decision_id, i.instance.name) for i in items] == [
        ("ai", "d1", name),
        ("pacs", "d1", name),
    ]
    assert len({item.instance.path.stat().st_ino for item in items}) == 1
    spool.delivered(items[0])
    assert spool.waits_for_delivery("d1", name)
    spool.delivered(items[1])
    assert not spool.waits_for_delivery("d1", name)
    ((decision_id, stored),) = spool.stored()
    spool.remove_stored(decision_id, stored)
    assert list(spool.stored()) == []


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_routing_again_after_a_crash_does_no_harm(spool, put, done):
    for n in range(3):
        put(f"1.{n}", data=bytes([n]))
    claim = spool.claim(KEY)
    names = [i.name for i in claim.instances]
    spool.forward(claim, "d1", names[:done], ["ai"])
    sent = {item.instance.name for item in spool.outgoing("ai")}
    for item in list(spool.outgoing("ai")):
        spool.delivered(item)  # the deliverer is quicker than our recovery
    spool.forward(claim, "d1", names, ["ai"])
    spool.finish(claim)
    assert {i.name for _, i in spool.stored()} == set(names)
    assert sent | {item.instance.name for item in spool.outgoing("ai")} == set(names)


def test_a_claim_with_files_that_no_decision_names_is_not_closed(spool, put):
    put()
    claim = spool.claim(KEY)
    with pytest.raises(SpoolError, match="1 file"):
        spool.finish(claim)
    assert claim.folder.is_dir()


def test_quarantine_keeps_the_evidence_and_release_sends_it_all_on(spool, put):
    put()
    claim = spool.claim(KEY)
    spool.write_evidence(claim, "d1", "evidence.json", b"{}")
    spool.hold(claim, "d1", [claim.instances[0].name])
    spool.finish(claim)
    assert len(spool.quarantined("d1")) == 1
    assert (spool.evidence("d1") / "evidence.json").read_bytes() == b"{}"
    assert list(spool.outgoing("ai")) == []
    assert spool.release("d1", ["ai"]) == 1
    assert spool.release("d1", ["ai"]) == 0
    assert len(list(spool.outgoing("ai"))) == 1
    assert spool.quarantined("d1") == []
    assert (spool.evidence("d1") / "evidence.json").is_file()


def test_rejected_is_kept_and_never_sent(spool, put):
    put()
    claim = spool.claim(KEY)
    spool.hold(claim, "d1", [claim.instances[0].name])
    spool.finish(claim)
    assert spool.reject("d1") == 1
    assert spool.reject("d1") == 0
    assert [place for place, _ in places(spool)] == ["rejected"]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_what_comes_after_a_rejection_joins_what_was_rejected_before(spool, put, moved):
    """The ruling was quicker than `hold`, or a crash came in the middle of either."""
    for n in range(3):
        put(f"1.{n}", data=bytes([n]))
    claim = spool.claim(KEY)
    names = [i.name for i in claim.instances]
    spool.write_evidence(claim, "d1", "evidence.json", b"{}")
    spool.hold(claim, "d1", names[:moved])
    assert spool.reject("d1") == moved
    spool.hold(claim, "d1", names)
    spool.finish(claim)
    (spool.root / "quarantine" / "d1" / "notes.txt").write_text("a person's")
    assert spool.reject("d1") == 3 - moved
    assert spool.reject("d1") == 0
    assert places(spool) == [("rejected", name) for name in sorted(names)]
    assert (spool.evidence("d1") / "evidence.json").read_bytes() == b"{}"
    assert (spool.root / "rejected" / "d1" / "notes.txt").is_file()
    assert not (spool.root / "quarantine" / "d1").exists()


def test_attempts_are_counted_on_disk_and_a_failed_claim_can_be_queued_again(spool, put):
    put()
    claim = spool.claim(KEY)
    for attempt in (2, 3):
        claim = spool.next_attempt(claim)
        assert claim.attempt == attempt
        assert Spool(spool.root).claims()[0].attempt == attempt
    spool.fail(claim)
    assert spool.claims() == []
    found = find_failed(spool, claim.claim_id[:8])
    assert spool.requeue(found) == 1
    assert spool.failed() == []
    assert len(spool.claim(KEY).instances) == 1
    with pytest.raises(NotFoundError):
        find_failed(spool, claim.claim_id)


def test_what_a_destination_refused_waits_and_can_be_sent_again(spool, put):
    put()
    claim = spool.claim(KEY)
    spool.forward(claim, "d1", [claim.instances[0].name], ["ai"])
    (item,) = spool.outgoing("ai")
    spool.give_up(item)
    assert list(spool.outgoing("ai")) == []
    (dead,) = spool.undeliverable()
    assert spool.waits_for_delivery("d1", dead.instance.name)
    spool.send_again(dead)
    assert len(list(spool.outgoing("ai"))) == 1
    assert list(spool.undeliverable()) == []


def test_a_copy_is_dropped_only_where_the_first_is_still_here(spool, put):
    put()
    claim = spool.claim(KEY)
    spool.forward(claim, "d1", [claim.instances[0].name], [])
    spool.finish(claim)
    put()
    again = spool.claim(KEY)
    assert not spool.drop_copy(again, again.instances[0], "another-decision")
    assert spool.drop_copy(again, again.instances[0], "d1")
    spool.finish(again)


def test_only_one_process_works_on_a_part(spool):
    with spool.exclusive("screen"), pytest.raises(SpoolError, match="Another 'screen'"), spool.exclusive("screen"):
        pass
    with spool.exclusive("screen"):
        pass


def test_a_spool_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="data_dir"):
        Spool(tmp_path / "file" / "spool").create()


def test_a_study_is_due_when_it_has_been_quiet_or_has_waited_too_long(spool, put):
    settling = Settling(spool, quiet_s=10, deadline_s=25)
    put("1.1")
    assert settling.due(0) == []
    assert settling.due(9) == []
    put("1.2", data=b"2")
    assert settling.due(11) == []
    put("1.3", data=b"3")
    assert settling.due(20) == []
    put("1.4", data=b"4")
    assert settling.due(26) == [Due(KEY, is_late=True, is_endless=True)]
    assert Settling(spool, quiet_s=10, deadline_s=25).due(0) == []
    spool.claim(KEY)
    assert settling.due(27) == []
    put("1.5", data=b"5")
    assert settling.due(28) == []
    assert settling.due(38) == [Due(KEY, is_late=False, is_endless=False)]
    # It fell quiet in time, and only the screener was behind.
    assert settling.due(60) == [Due(KEY, is_late=True, is_endless=False)]


@pytest.mark.parametrize("every_s", [11, 60, 300])
def test_a_screener_that_is_always_late_takes_a_restless_study_by_its_deadline(spool, put, every_s):
    settling = Settling(spool, quiet_s=10, deadline_s=3600)
    for now_s in range(0, 3601, every_s):
        put(f"1.{now_s}", data=b"%d" % now_s)
        assert settling.due(now_s) == []
    (due,) = settling.due(now_s + every_s)
    assert due.is_late
    # Where nobody looked for longer than it takes to fall quiet, nobody can say that it never did.
    assert due.is_endless == (every_s < 20)


def test_a_claim_of_which_something_was_set_aside_can_still_fail(spool, put):
    put()
    (spool.root / "incoming" / KEY / "notes.txt").write_text("hello")
    claim = spool.claim(KEY)
    spool.set_aside(claim, claim.strangers)
    (spool.root / "failed" / "a.b.c").mkdir()
    spool.fail(spool.claims()[0])
    (failed,) = spool.failed()
    assert (len(failed.instances), [path.name for path in failed.strangers]) == (1, ["notes.txt"])
    assert spool.claims() == []


def test_a_journal_file_is_not_adopted_before_it_is_locked(spool, monkeypatch):
    writer = journal.JournalWriter(spool.root)
    lock = journal.fcntl.flock

    def look_first(file, how):
        assert list(journal.finished(spool.root)) == []
        lock(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(journal.fcntl, "flock", look_first)
        writer.append({"n": 1})
    assert list(journal.finished(spool.root)) == []
    writer.rotate()
    assert [events for _, events in journal.finished(spool.root)] == [[{"n": 1}]]


def test_journal_files_reach_the_screener_once_closed_or_orphaned(spool):
    writer = journal.JournalWriter(spool.root)
    writer.append({"n": 1})
    assert list(journal.finished(spool.root)) == []
    writer.rotate()
    writer.append({"n": 2})
    ((name, events),) = journal.finished(spool.root)
    assert events == [{"n": 1}]
    journal.discard(spool.root, name)
    assert list(journal.finished(spool.root)) == []
    # A receiver that was killed: its lock is gone with it, and its last line may be torn.
    (spool.root / "journal" / "dead.open").write_text(json.dumps({"n": 3}) + '\n{"n": 4')
    assert [events for _, events in journal.finished(spool.root)] == [[{"n": 3}]]
    writer.rotate()
    assert sorted(events[0]["n"] for _, events in journal.finished(spool.root)) == [2, 3]


def test_a_journal_file_that_cannot_be_read_does_not_hide_the_next(spool):
    (spool.root / "journal" / "bad.jsonl").mkdir()
    (spool.root / "journal" / "worse.open").mkdir()
    (spool.root / "journal" / "deep.jsonl").write_text("[" * 100_000 + "\n" + json.dumps({"n": 2}))
    found = dict(journal.finished(spool.root))
    assert found["deep.jsonl"] == [{"n": 2}]
    assert {name for name, events in found.items() if isinstance(events, OSError)} == {"bad.jsonl", "worse.open"}


def test_parts_that_nobody_finished_are_swept(spool):
    part = spool.incoming(reserve_bytes=0).begin(
        sop_class_uid="1.2", sop_instance_uid="1.3", transfer_syntax_uid="1.2.840.10008.1.2", calling_ae="A"
    )
    assert spool.sweep_parts(older_than_s=60) == 0
    assert spool.sweep_parts() == 1
    part.discard()


class Conservation(RuleBasedStateMachine):
    """Whatever parts, people and crashes do in whatever order: every received instance is somewhere, whole."""

    def __init__(self):
        super().__init__()
        self.received = set()
        self.removed = set()
        self.count = 0

    @initialize()
    def begin(self):
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.spool = Spool(Path(self.folder.name) / "spool")
        self.spool.create()
        self.claims = []

    def teardown(self):
        self.folder.cleanup()

    @rule(study=st.sampled_from(["1.2.3", "1.2.4"]), sop=st.integers(1, 6))
    def receive(self, study, sop):
        part = self.spool.incoming(reserve_bytes=0).begin(
            sop_class_uid="1.2", sop_instance_uid=f"1.{sop}", transfer_syntax_uid="1.2.840.10008.1.2", calling_ae="A"
        )
        part.write(bytes([sop]))
        self.received.add(part.commit(receipt(f"1.{sop}", study)).name)

    @rule(study=st.sampled_from(["1.2.3", "1.2.4"]))
    def claim(self, study):
        self.spool.claim(study_key(study))

    @rule(data=st.data(), how=st.sampled_from(["forward", "hold", "fail", "attempt"]), cut=st.integers(0, 3))
    def route(self, data, how, cut):
        claims = self.spool.claims()
        if not claims:
            return
        claim = data.draw(st.sampled_from(claims))
        names = [i.name for i in claim.instances][: len(claim.instances) if cut == 0 else cut]
        self.count += 1
        if how == "forward":
            self.spool.forward(claim, f"d{self.count}", names, ["ai"])
        elif how == "hold":
            self.spool.hold(claim, f"d{self.count}", names)
        elif how == "fail":
            self.spool.fail(claim)
        else:
            self.spool.next_attempt(claim)
        if how in {"forward", "hold"} and len(names) == len(claim.instances):
            self.spool.finish(claim)

    @rule(n=st.integers(1, 20), action=st.sampled_from(["release", "reject"]))
    def review(self, n, action):
        if action == "release":
            self.spool.release(f"d{n}", ["ai"])
        else:
            self.spool.reject(f"d{n}")

    @rule(dead=st.booleans())
    def deliver(self, dead):
        for item in list(self.spool.outgoing("ai"))[:1]:
            if dead:
                self.spool.give_up(item)
            else:
                self.spool.delivered(item)

    @rule()
    def mend(self):
        for item in list(self.spool.undeliverable()):
            self.spool.send_again(item)
        for claim in self.spool.failed():
            self.spool.requeue(claim)

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "spool"):
            return
        there = {path.name for _, path in everything(self.spool)}
        there |= {name for names in self.spool.arrivals().values() for name in names}
        assert self.received <= there


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
