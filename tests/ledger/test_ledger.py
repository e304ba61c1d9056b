from __future__ import annotations

import dataclasses
import sqlite3
import stat
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.decision import Disposition, Reason
from dicomguard.errors import LedgerError, NotFoundError, ReviewError
from dicomguard.ledger import Delivery, DeliveryState, Ledger, store
from dicomguard.study import Uid

KEY = bytes(range(32))
HELD = Disposition.QUARANTINE


def delivery(state=DeliveryState.QUEUED, *, uid="1.2.3.4", sha256="a" * 64, destination="ai", **changes):
    return Delivery("d1", Uid("1.2.3"), Uid(uid), sha256, destination, state, **changes)


def test_decisions_come_back_as_they_went_in_oldest_first(ledger, make_decision):
    first = make_decision("1.2.3", patient_key="k" * 64)
    second = make_decision("1.2.3", version=2, disposition=HELD, bundle=None, fingerprint=None, instances=0)
    third = make_decision("9.9")
    ledger.record_decisions([first])
    ledger.record_decisions([second, third])
    assert list(ledger.decisions()) == [first, second, third]
    assert list(ledger.decisions(study_uid="1.2.3")) == [first, second]
    assert list(ledger.decisions(disposition=HELD)) == [second]
    assert list(ledger.decisions(limit=2)) == [second, third]
    assert list(ledger.decisions(limit=0)) == []


def test_decisions_are_read_in_pages(ledger, make_decision, monkeypatch):
    monkeypatch.setattr("dicomguard.ledger.ledger._PAGE_ROWS", 2)
    made = [make_decision(f"1.{n}", instances=1) for n in range(5)]
    ledger.record_decisions(made)
    assert list(ledger.decisions()) == made


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(), max_size=30), number=st.floats(allow_nan=False))
def test_any_text_and_any_float_survive(ledger, make_decision, text, number):
    base = make_decision(f"s{ledger.next_version('x')}{text}", claim=None, instances=1)
    part = base.instances[0]
    changed = type(part)(
        **{
            **{name: getattr(part, name) for name in part.__slots__},
            "sop_instance_uid": Uid(text),
            "detail": text,
            "scores": {"x": number, text: [text]},
        }
    )
    decision = make_decision(
        base.study_instance_uid,
        version=ledger.next_version(base.study_instance_uid),
        claim=base.decision_id,
        peer=text,
        instances=0,
    )
    decision = type(decision)(
        **{
            **{name: getattr(decision, name) for name in decision.__slots__},
            "instances": (changed,),
        }
    )
    assert ledger.record_decisions([decision]) == [decision]


def test_lone_surrogates_nul_and_endless_uids_are_recorded(ledger, make_decision):
    hostile = "\udc80\x00\\u0000" + "1." * 5000
    decision = make_decision(hostile, peer=hostile)
    ledger.record_decisions([decision])
    assert list(ledger.decisions(study_uid=hostile)) == [decision]
    assert ledger.verify() == []


def test_times_are_kept_as_moments(ledger, make_decision):
    at = datetime(2026, 7, 1, 9, 30, tzinfo=timezone(timedelta(hours=2)))
    ledger.record_decisions([make_decision(decided_at=at)])
    (decision,) = ledger.decisions()
    assert decision.decided_at == at
    assert decision.decided_at.tzinfo == UTC


def test_a_naive_time_is_refused(ledger, make_decision):
    with pytest.raises(ValueError, match="aware"):
        ledger.record_decisions([make_decision(decided_at=datetime(2026, 7, 1))])  # noqa: DTZ001 - what is refused
    assert list(ledger.decisions()) == []


def test_a_claim_is_recorded_once(ledger, make_decision):
    first = [make_decision("1", claim="c"), make_decision("2", claim="c")]
    again = [make_decision("1", claim="c", version=2), make_decision("3", claim="other")]
    assert ledger.record_decisions(first) == first
    assert ledger.record_decisions(again) == [*first, again[1]]
    assert ledger.decisions_of_claim("c") == first
    assert ledger.decisions_of_claim("nobody") == []


def test_a_failed_recording_leaves_nothing(ledger, make_decision):
    good, bad = make_decision("1"), make_decision("1", version=1)
    with pytest.raises(LedgerError, match=r"(?s)UNIQUE.*nothing was recorded"):
        ledger.record_decisions([good, bad])
    assert list(ledger.decisions()) == []
    assert ledger.verify() == []


def test_a_decision_is_found_by_an_unambiguous_beginning(ledger, make_decision):
    ledger.record_decisions([make_decision("1", decision_id="abc1"), make_decision("2", decision_id="abc2")])
    ledger.record_decisions([make_decision("3", decision_id="abc")])
    assert ledger.decision("abc2").study_instance_uid == "2"
    assert ledger.decision("abc").study_instance_uid == "3"
    for wrong in ("ab", "x", "", "a%", "_bc1"):
        with pytest.raises(NotFoundError):
            ledger.decision(wrong)


def test_versions_count_per_study(ledger, make_decision):
    assert ledger.next_version("1") == 1
    ledger.record_decisions([make_decision("1", version=1), make_decision("1", version=2)])
    assert (ledger.next_version("1"), ledger.next_version("2")) == (3, 1)


def test_a_study_is_held_until_every_quarantine_is_released(ledger, make_decision):
    one, two = (make_decision("1", version=v, disposition=HELD) for v in (1, 2))
    assert not ledger.is_held("1")
    ledger.record_decisions([one, two, make_decision("2")])
    assert ledger.is_held("1")
    assert not ledger.is_held("2")
    ledger.record_review(one.decision_id, "release", "dr.a", "artefact")
    assert ledger.is_held("1")
    ledger.record_review(two.decision_id, "release", "dr.a", "artefact")
    assert not ledger.is_held("1")


def test_a_rejected_study_stays_held(ledger, make_decision):
    held = make_decision("1", disposition=HELD)
    ledger.record_decisions([held])
    ledger.record_review(held.decision_id[:31] + held.decision_id[31:], "reject", "dr.a", "tampered")
    assert ledger.is_held("1")


def test_reviews_are_kept_with_who_and_why(ledger, make_decision):
    held = make_decision("1", disposition=HELD)
    ledger.record_decisions([held])
    review = ledger.record_review(held.decision_id, "release", " dr.a ", "artefact")
    assert ledger.reviews() == ledger.reviews(held.decision_id) == [review]
    assert (review.actor, review.study_instance_uid) == ("dr.a", "1")
    assert ledger.reviews("nobody") == []


@pytest.mark.parametrize(
    ("action", "actor", "reason"),
    [("release", "", "why"), ("release", "who", "  "), ("shred", "who", "why")],
    ids=["no actor", "no reason", "no such action"],
)
def test_an_incomplete_review_is_refused(ledger, make_decision, action, actor, reason):
    held = make_decision("1", disposition=HELD)
    ledger.record_decisions([held])
    with pytest.raises(ReviewError):
        ledger.record_review(held.decision_id, action, actor, reason)
    assert ledger.is_held("1")


def test_a_release_queues_for_the_destinations_it_is_given(ledger, make_decision):
    one, two = (make_decision("1", version=v, disposition=HELD, destinations=("ai", "old")) for v in (1, 2))
    ledger.record_decisions([one, two])
    ledger.record_review(one.decision_id, "release", "dr.a", "artefact", ["ai", "new"])
    ledger.record_review(two.decision_id, "release", "dr.a", "artefact")
    assert {d.destination for d in ledger.deliveries(decision_id=one.decision_id)} == {"ai", "new"}
    assert {d.destination for d in ledger.deliveries(decision_id=two.decision_id)} == {"ai", "old"}


def test_an_alarm_is_logged_as_an_error_and_marked(ledger, caplog):
    ledger.record_event("retention_removed", "1.2", {})
    assert caplog.records == []
    ledger.record_event("uid_conflict", "1.2", {"n": list(range(1000))})
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "uid_conflict for 1.2" in record.getMessage()
    assert len(record.getMessage()) < 600
    assert [event.to_json()["alarm"] for event in ledger.events()] == [False, True]


def test_a_ledger_that_is_not_there_yet_is_not_made_by_asking(tmp_path):
    path = tmp_path / "none" / "ledger.db"
    assert not Ledger.is_there(f"sqlite:///{path}")
    assert not path.parent.exists()
    Ledger.open(f"sqlite:///{path}", b"k" * 32, "cli", heads=None).close()
    assert Ledger.is_there(f"sqlite:///{path}")
    assert Ledger.is_there("postgresql://somewhere/else")


def test_a_decision_is_ruled_on_once(ledger, make_decision):
    held, passed = make_decision("1", disposition=HELD), make_decision("2")
    ledger.record_decisions([held, passed])
    ledger.record_review(held.decision_id, "reject", "dr.a", "tampered")
    with pytest.raises(ReviewError, match=r"reject by dr\.a"):
        ledger.record_review(held.decision_id, "release", "dr.b", "changed my mind")
    with pytest.raises(ReviewError, match="no quarantine"):
        ledger.record_review(passed.decision_id, "release", "dr.b", "why not")
    with pytest.raises(NotFoundError):
        ledger.record_review("nobody", "release", "dr.b", "why not")


def test_every_data_set_under_a_uid_is_known_with_every_decision_about_it(ledger, make_decision):
    one = make_decision("1", instances=1)
    two = make_decision("1", version=2, instances=1)
    part, other = one.instances[0], two.instances[0]
    clash = type(part)(**{**{n: getattr(part, n) for n in part.__slots__}, "sha256": other.sha256})
    again = make_decision("1", version=3, instances=0)
    again = type(again)(**{**{n: getattr(again, n) for n in again.__slots__}, "instances": (part, clash)})
    ledger.record_decisions([one, again])
    known = [(k.sha256, k.decision_id) for k in ledger.known_instances(part.sop_instance_uid)]
    assert known == [
        (part.sha256, one.decision_id),
        (part.sha256, again.decision_id),
        (clash.sha256, again.decision_id),
    ]
    assert ledger.known_instances("nobody") == []


def test_deliveries_show_the_last_state_and_keep_the_history(ledger):
    soon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    retry = delivery(DeliveryState.RETRY, attempt=1, status=0xA700, error="out of resources", next_attempt_at=soon)
    done = delivery(DeliveryState.DELIVERED, attempt=2, status=0)
    elsewhere = delivery(destination="archive")
    conflict = delivery(sha256="b" * 64)
    ledger.record_deliveries([delivery(), retry, elsewhere, conflict])
    assert ledger.deliveries(DeliveryState.RETRY) == [retry]
    ledger.record_delivery(done)
    assert ledger.deliveries() == [elsewhere, conflict, done]
    assert ledger.deliveries(DeliveryState.RETRY) == []
    assert ledger.deliveries(destination="ai", study_uid="1.2.3", decision_id="d1") == [conflict, done]
    assert ledger.deliveries(study_uid="other") == []
    history = [step.state for step in ledger.delivery_history("1.2.3.4", "ai")]
    assert history == [DeliveryState.QUEUED, DeliveryState.RETRY, DeliveryState.QUEUED, DeliveryState.DELIVERED]
    assert retry.to_json()["status"] == "0xA700"


def test_a_journal_is_taken_in_once(ledger):
    at = datetime(2026, 3, 1, tzinfo=UTC)
    events = [
        AssociationEvent(at, AssociationKind.REJECTED, "10.0.0.9", calling_ae="NMAP\udcff", detail="1/1/3"),
        AssociationEvent(at, AssociationKind.ACCEPTED, "10.0.0.1", "a1", "CT", "GUARD", contexts_accepted=3),
    ]
    assert [AssociationEvent.from_json(happened.to_json()) for happened in events] == events
    ledger.record_associations("journal-1", events)
    ledger.record_associations("journal-1", events)
    ledger.record_associations("journal-2", events[:1])
    ledger.record_associations("empty", [])
    assert ledger.associations() == [*events, events[0]]
    assert ledger.associations(limit=1) == [events[0]]


def test_events_are_kept_by_kind(ledger):
    ledger.record_event("alarm", "1.2", {"waited_s": 900})
    ledger.record_event("removed", "1.3", {})
    (alarm,) = ledger.events("alarm")
    assert (alarm.subject_uid, alarm.detail, alarm.writer) == ("1.2", {"waited_s": 900}, "screen")
    assert [event.kind for event in ledger.events()] == ["alarm", "removed"]
    assert [event.kind for event in ledger.events(limit=1)] == ["removed"]


def test_commits_are_durable_and_the_file_is_private(ledger, database):
    with store.reading(ledger._engine) as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "busy_timeout": 10_000,
    }
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_several_processes_writers_and_threads_extend_their_chains(url, heads, ledger):
    opened = [Ledger.open(url, KEY, writer, heads=heads) for writer in ("review", "review", "deliver")]

    def write(one: Ledger) -> None:
        for number in range(10):
            one.record_event("test", str(number), {})

    threads = [threading.Thread(target=write, args=(one,)) for one in (*opened, opened[2], ledger)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events()) == 50
    assert ledger.verify() == []
    for one in opened:
        one.close()


def test_a_locked_ledger_says_so(url, heads, ledger, database):
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with (
        Ledger.open(url, KEY, "review", heads=heads, busy_timeout_s=0.05) as hasty,
        pytest.raises(LedgerError, match=r"locked.*Another process holds it"),
    ):
        hasty.record_event("test", "", {})
    other.close()
    assert ledger.events() == []


def test_the_wrong_key_is_refused(url, heads, ledger):
    with pytest.raises(LedgerError, match="another site key"):
        Ledger.open(url, bytes(32), "screen", heads=heads)
    with pytest.raises(LedgerError, match="32 bytes"):
        Ledger.open(url, b"short", "screen", heads=heads)


def test_a_newer_schema_is_refused(url, database, heads, ledger):
    ledger.close()
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE ledger_version SET version_num = '0999'")
    raw.close()
    with pytest.raises(LedgerError, match="newer dicomguard"):
        Ledger.open(url, KEY, "screen", heads=heads)


def test_a_file_that_is_no_database_is_refused_and_kept(database, url, heads):
    database.write_bytes(b"no database at all" * 1000)
    with pytest.raises(LedgerError, match=r"not a database.*restore"):
        Ledger.open(url, KEY, "screen", heads=heads)
    assert database.read_bytes().startswith(b"no database")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("nonsense", "cannot be read"),
        ("sqlite:////proc/none/ledger.sqlite", "cannot be opened or created"),
        ("oracle+nosuchdriver://u:secret@127.0.0.1/db", "not installed"),
    ],
    ids=["no URL", "no folder", "no driver"],
)
def test_what_cannot_be_opened_says_why_without_the_password(wrong, says, heads):
    with pytest.raises(LedgerError, match=says) as caught:
        Ledger.open(wrong, KEY, "screen", heads=heads)
    assert "secret" not in str(caught.value)


def test_a_current_ledger_opens_without_alembic(url, heads, ledger, tmp_path):
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from dicomguard.ledger import Ledger; "
        f"Ledger.open({url!r}, bytes(range(32)), 'x', heads=Path({str(heads)!r})).close(); "
        "print('alembic' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == ["False", "False"]


def test_what_is_forwarded_is_queued_in_the_same_transaction_and_only_once(ledger, make_decision):
    decision = make_decision(disposition=Disposition.FORWARD, destinations=("ai", "pacs"), claim="c")
    ledger.record_decisions([decision])
    ledger.record_decisions([decision])
    queued = ledger.delivery_history(decision_id=decision.decision_id)
    assert [(d.destination, d.state) for d in queued] == [("ai", DeliveryState.QUEUED)] * 2 + [
        ("pacs", DeliveryState.QUEUED)
    ] * 2


def test_what_is_held_is_queued_when_a_person_releases_it_and_not_before(ledger, make_decision):
    decision = make_decision(disposition=Disposition.QUARANTINE, destinations=("ai",), instances=1)
    ledger.record_decisions([decision])
    assert ledger.deliveries() == []
    ledger.record_review(decision.decision_id, "release", "dr", "artefact")
    assert [d.state for d in ledger.deliveries()] == [DeliveryState.QUEUED]


def test_a_uid_that_was_claimed_wrongly_once_stays_free(ledger, make_decision):
    decision = make_decision(instances=1)
    refused = dataclasses.replace(decision.instances[0], reasons=(Reason.UID_MISMATCH,))
    ledger.record_decisions([dataclasses.replace(decision, instances=(refused,))])
    assert ledger.known_instances(refused.sop_instance_uid) == []


def test_a_refused_instance_does_not_hold_its_study_and_nothing_holds_what_has_no_study(ledger, make_decision):
    refused = make_decision("1", disposition=HELD, reasons=(Reason.UID_MISMATCH,))
    nowhere = make_decision("", disposition=HELD, reasons=(Reason.UNDECODABLE,))
    ledger.record_decisions([refused, nowhere])
    assert not ledger.is_held("1")
    assert not ledger.is_held("")
    conflict = make_decision("1", version=2, disposition=HELD, reasons=(Reason.UID_CONFLICT,))
    ledger.record_decisions([conflict])
    assert ledger.hold_reasons("1") == {Reason.UID_CONFLICT}
