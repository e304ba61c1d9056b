import itertools
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.decision import Decision, Disposition, InstanceDecision, Reason, Verdict
from dicomguard.lab.live.accounts import Status, account
from dicomguard.lab.live.manifest import Row
from dicomguard.lab.live.page import page
from dicomguard.lab.live.picture import draw
from dicomguard.lab.live.rates import roc_points, summary
from dicomguard.ledger import Ledger
from dicomguard.study import Uid

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
THRESHOLDS = {"statistic": 5.0, "alpha": 0.05, "margin_floor": 0.1, "paper_theta": [0.1], "paper_level": 0}
_numbers = itertools.count(1)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", bytes(32), "screen", heads=None) as opened:
        yield opened


def instance(sop, statistics=(1.0,), verdict=Verdict.CLEAN, sha256="a" * 64, **changes):
    scores = None
    if statistics is not None:
        scores = {"statistics": list(statistics), "p_values": [0.5] * len(statistics), "thresholds": THRESHOLDS}
    held = verdict in {Verdict.SUSPECT, Verdict.INCONCLUSIVE}
    values = {
        "sop_instance_uid": Uid(sop),
        "sop_class_uid": Uid("1.2.840.10008.5.1.4.1.1.1.1"),
        "series_instance_uid": Uid("1.9"),
        "transfer_syntax_uid": Uid("1.2.840.10008.1.2.1"),
        "sha256": sha256,
        "size_bytes": 1,
        "file_name": "x.dcm",
        "verdict": verdict,
        "reasons": (Reason.SCORE_OVER_THRESHOLD,) if held else (),
        "action": "quarantine" if held else "forward",
        "mode": "enforce",
        "bundle": "toy",
        "fingerprint": "f" * 64,
        "scores": scores,
    }
    return InstanceDecision(**values | changes)


def decide(ledger, study, *instances, seconds=2.0):
    number = next(_numbers)
    held = any(i.holds for i in instances)
    ledger.record_decisions(
        [
            Decision(
                decision_id=f"{number:032x}",
                claim_id=f"claim-{number}",
                version=ledger.next_version(study),
                study_instance_uid=Uid(study),
                disposition=Disposition.QUARANTINE if held else Disposition.FORWARD,
                verdict=max((i.verdict for i in instances), key=list(Verdict).index),
                reasons=tuple({r for i in instances for r in i.reasons}),
                bundle="toy",
                fingerprint="f" * 64,
                mode="enforce",
                peer="CR1@127.0.0.1",
                received_at=NOON,
                decided_at=NOON + timedelta(seconds=seconds),
                destinations=(),
                instances=tuple(instances),
            )
        ]
    )


def row(sop, study, truth="clean", **others):
    given = {"path": f"{sop}.dcm", "study_instance_uid": study, "sha256": "a" * 64, "fingerprint": "f" * 64}
    if truth == "attacked":
        given |= {"attack": "PGD 0.004", "eps": 0.004, "flipped": True}
    return Row(sop, truth, **given | others)


def one(ledger, *rows, waiting=(), failed=()):
    (found,) = account(rows, ledger, waiting, failed)
    return found


def test_a_decided_file_is_where_its_study_is(ledger):
    decide(ledger, "1", instance("1.1"))
    decide(ledger, "2", instance("2.1"), instance("2.2", [9.0], Verdict.SUSPECT))
    rows = [row("1.1", "1"), row("2.1", "2"), row("2.2", "2", "attacked")]
    found = list(account(rows, ledger))
    assert [f.status for f in found] == [Status.FORWARDED, Status.QUARANTINED, Status.QUARANTINED]
    assert [f.is_flagged for f in found] == [False, False, True]
    assert [f.statistic for f in found] == [1.0, 1.0, 9.0]
    assert all(f.is_accounted and f.records == 1 for f in found)


def test_what_was_not_to_be_sent_is_nobodys_business(ledger):
    assert list(account([row("1.1", "1", "attacked", path=None, flipped=False)], ledger)) == []


def test_what_nobody_has_seen_is_named(ledger):
    found = one(ledger, row("1.1", "1"))
    assert (found.status, found.is_accounted) == (Status.NEVER, False)
    assert one(ledger, row("1.1", "1", is_stored=False, error="status 0xA700")).note == "status 0xA700"


def test_a_claim_that_was_given_up_is_accounted_for(ledger):
    ledger.record_event("screening_failed", "1", {"claim_id": "c"})
    sent = row("1.1", "1")
    found = one(ledger, sent, failed={("1.1", sent.sha256)})
    assert (found.status, found.is_accounted, found.is_decided) == (Status.FAILED, True, False)
    never = one(ledger, row("1.2", "1"), failed={("1.1", sent.sha256)})
    assert (never.status, never.is_accounted) == (Status.NEVER, False)
    assert "a claim of its study failed" in never.note
    assert one(ledger, sent, failed={("1.1", "0" * 64)}).status is Status.NEVER
    assert "failed" not in one(ledger, row("2.1", "2")).note


def test_a_failed_claim_that_a_person_removed_is_accounted_for(ledger):
    sent = row("1.1", "1")
    removed = {"claim_id": "c", "instances": [{"sop_instance_uid": "1.1", "sha256": sent.sha256}]}
    ledger.record_event("failed_purged", "1", removed)
    assert one(ledger, sent).status is Status.FAILED
    assert one(ledger, row("1.2", "1")).status is Status.NEVER


def test_what_waits_in_the_spool_is_not_lost_and_not_accounted_for(ledger):
    found = one(ledger, row("1.1", "1"), waiting={"1.1"})
    assert (found.status, found.is_accounted) == (Status.WAITING, False)


def test_a_file_that_came_twice_is_counted(ledger):
    decide(ledger, "1", instance("1.1"))
    decide(ledger, "1", instance("1.1", [7.0], Verdict.SUSPECT))
    found = one(ledger, row("1.1", "1"))
    assert (found.status, found.records, found.note) == (Status.FORWARDED, 2, "arrived twice")
    assert found.statistic == 1.0
    assert summary([found])["arrived_twice"] == 1


def test_other_bytes_under_its_uid_do_not_speak_for_a_file(ledger):
    decide(ledger, "1", instance("1.1", [9.0], Verdict.SUSPECT, sha256="b" * 64))
    found = one(ledger, row("1.1", "1"))
    assert (found.status, found.is_accounted, found.is_flagged) == (Status.OTHER_BYTES, False, False)
    assert found.statistic is None
    decide(ledger, "1", instance("1.1"))
    found = one(ledger, row("1.1", "1"))
    assert (found.status, found.records) == (Status.FORWARDED, 2)


def test_a_manifest_without_studies_and_digests_is_joined_by_uid(ledger):
    decide(ledger, "1", instance("1.1"))
    assert one(ledger, row("1.1", "", sha256=None)).status is Status.FORWARDED


def test_numbers_that_are_none_count_as_suspicious(ledger):
    decide(ledger, "1", instance("1.1", [1.0, math.nan], Verdict.INCONCLUSIVE), instance("1.2", None))
    first, second = account([row("1.1", "1"), row("1.2", "1")], ledger)
    assert first.statistic == math.inf
    assert first.to_json()["statistic"] == "inf"
    assert second.statistic is None
    assert second.to_json()["p_value"] is None


@pytest.fixture
def found(ledger):
    """Ten clean studies of which one is flagged, four attacked ones of which three are, one attack that failed."""
    rows = []
    for n in range(10):
        flagged = n == 9
        verdict = Verdict.SUSPECT if flagged else Verdict.CLEAN
        decide(ledger, f"1.{n}", instance(f"1.{n}.1", [6.0 if flagged else n / 4], verdict), seconds=n + 1)
        rows.append(row(f"1.{n}.1", f"1.{n}"))
    for n in range(5):
        caught = n < 3
        verdict = Verdict.SUSPECT if caught else Verdict.CLEAN
        decide(ledger, f"2.{n}", instance(f"2.{n}.1", [8.0 if caught else 1.6], verdict), seconds=11)
        rows.append(row(f"2.{n}.1", f"2.{n}", "attacked", flipped=n < 4))
    rows.append(row("3.1", "3", "attacked"))
    return list(account(rows, ledger))


def test_rates_have_their_denominators(found):
    figures = summary(found)
    assert (figures["files"], figures["accounted"]) == (16, 15)
    clean, attack = figures["clean"], figures["attacks"]["PGD 0.004"]
    assert (clean["flagged"]["hits"], clean["flagged"]["count"]) == (1, 10)
    assert (attack["files"], attack["decided"]) == (5, 4)
    assert (attack["flagged"]["hits"], attack["flagged"]["count"]) == (3, 4)
    assert (attack["studies_held"]["hits"], attack["studies_held"]["count"]) == (3, 4)
    assert (attack["not_flipped"]["files"], attack["not_flipped"]["flagged"]["hits"]) == (1, 0)
    assert attack["roc"]["area"] == pytest.approx((3 * 10 + 7) / 40)
    assert figures["thresholds"][0]["statistic"] == 5.0
    assert figures["latency"] == {"decisions": 15, "p50_s": 8.0, "p95_s": 11.0, "min_s": 1.0, "max_s": 11.0}


def test_an_area_without_one_exception_still_has_an_interval(found):
    easy = [f for f in found if f.row.truth == "clean" or (f.statistic or 0) > 7]
    roc = summary(easy)["attacks"]["PGD 0.004"]["roc"]
    assert roc["area"] == 1
    assert roc["interval"][0] == pytest.approx(0.025 ** (1 / 3))


def test_the_page_and_the_picture_say_it(found, tmp_path):
    figures = summary(found)
    text = page(figures, found, picture="join.png", command="dicomguard lab join")
    assert "15 of 16 files are accounted for" in text
    assert "0.750 (3/4" in text
    assert "1 not decided" in text
    assert "`3.1.dcm`: never arrived" in text
    draw(figures, found, tmp_path / "join.png", quiet_s=1.0)
    assert (tmp_path / "join.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.glob("join*")] == ["join.png"]


def test_a_set_of_which_nothing_arrived_has_a_page_and_a_picture_too(ledger, tmp_path):
    found = [one(ledger, row("1.1", "1"))]
    figures = summary(found)
    assert figures["latency"] is None
    assert "none to count" in page(figures, found, picture="join.png", command="x")
    draw(figures, found, tmp_path / "join.png")


def test_attacks_on_another_bundle_are_said_to_be(ledger):
    decide(ledger, "1", instance("1.1"))
    found = [one(ledger, row("1.1", "1", "attacked", fingerprint="e" * 64))]
    figures = summary(found)
    assert figures["decided_by_another_bundle"] == 1
    assert "transferred" in page(figures, found, picture="x", command="x")


_scores = st.lists(st.integers(0, 5).map(float) | st.just(math.inf), min_size=1, max_size=12).map(np.array)


@given(_scores, _scores)
def test_the_area_under_the_curve_is_the_share_of_pairs(positives, negatives):
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    false, true = roc_points(positives, negatives)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(np.mean(pairs))
