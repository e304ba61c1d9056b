"""What the ledger gives out about one decision: that, and nothing of any other."""

import hmac
import json
from datetime import timedelta

from dicomguard.decision import Disposition
from dicomguard.ledger import EventKind, Ledger
from dicomguard.ledger.chain import subkey
from dicomguard.ledger.tables import to_text
from tests.ledger.conftest import KEY


def test_it_holds_every_row_of_the_decision_and_none_of_another(ledger, make_decision):
    mine = make_decision("1.2.1", disposition=Disposition.QUARANTINE, destinations=("ai",))
    other = make_decision("1.2.2", destinations=("ai",))
    ledger.record_decisions([mine, other])
    ledger.record_review(mine.decision_id, "release", "dr x", "known patient")
    ledger.record_event("uid_conflict", "1.2.1", {"decision_id": mine.decision_id})
    ledger.record_event("uid_conflict", "1.2.2", {"decision_id": other.decision_id})
    found = ledger.excerpt(mine.decision_id)
    assert [row["table"] for row in found["rows"]] == ["decisions", "deliveries", "deliveries", "reviews", "events"]
    text = json.dumps(found["rows"])
    assert other.decision_id not in text
    assert all(row["mac_is_right"] for row in found["rows"])
    assert [len(row["covered"].get("instances", [])) for row in found["rows"]] == [2, 0, 0, 0, 0]
    assert set(found["heads"]) == {"screen"}
    assert found["heads"]["screen"]["seq"] == 9
    assert ledger.excerpt("0" * 32)["rows"] == []


def test_each_mac_is_that_of_what_it_is_said_to_cover(ledger, make_decision):
    decision = make_decision(destinations=("ai",))
    ledger.record_decisions([decision])
    found = json.loads(json.dumps(ledger.excerpt(decision.decision_id)))  # as somebody else gets it
    key = subkey(KEY, "row")
    for row in found["rows"]:
        assert hmac.digest(key, to_text(row["covered"]).encode(), "sha256").hex() == row["mac"]
        assert row["covered"]["row"]["prev_mac"] == row["prev_mac"]
    linked = zip(found["rows"], found["rows"][1:], strict=False)
    assert all(after["prev_mac"] == before["mac"] for before, after in linked)
    assert found["heads"]["screen"]["mac"] == found["rows"][-1]["mac"]


def test_heads_that_cannot_be_used_or_are_not_kept_are_said(ledger, make_decision, heads, url):
    decision = make_decision()
    ledger.record_decisions([decision])
    heads.write_bytes(b"{}")
    broken = ledger.excerpt(decision.decision_id)
    assert broken["heads"] == {}
    assert "cannot be used" in broken["heads_problem"]
    with Ledger.open(url, KEY, "cli", heads=None) as unwatched:
        assert unwatched.excerpt(decision.decision_id)["heads"] is None


def test_ids_come_in_order_by_time_and_number(ledger, make_decision):
    made = [make_decision(f"1.2.{n}") for n in range(5)]
    start = made[0].decided_at
    ledger.record_decisions([make_decision(f"1.3.{n}", decided_at=start + timedelta(hours=n)) for n in range(5)])
    ids = ledger.decision_ids()
    assert ids == [decision.decision_id for decision in ledger.decisions()]
    assert ledger.decision_ids(limit=2) == ids[-2:]
    assert ledger.decision_ids(since=start + timedelta(hours=3)) == ids[-2:]
    assert ledger.decision_ids(since=start + timedelta(hours=2), limit=1) == ids[-1:]
    assert ledger.decision_ids(since=start + timedelta(days=1)) == []


def test_who_else_was_given_it_is_not_in_it(ledger, make_decision):
    decision = make_decision()
    ledger.record_decisions([decision])
    before = ledger.excerpt(decision.decision_id)
    ledger.record_event(EventKind.EVIDENCE_EXPORTED, "1.2.1", {"decision_id": decision.decision_id, "actor": "dr"})
    assert ledger.excerpt(decision.decision_id)["rows"] == before["rows"] != []


def test_events_since_a_time(ledger):
    for number in range(3):
        ledger.record_event("alarm", "1.2", {"number": number})
    ledger.record_event("other", "1.2", {})
    second = ledger.events("alarm")[1].at
    assert [event.detail["number"] for event in ledger.events("alarm", since=second)] == [1, 2]
    assert [event.detail["number"] for event in ledger.events("alarm", limit=1, since=second)] == [2]
    assert ledger.events("alarm", since=second + timedelta(days=1)) == []
