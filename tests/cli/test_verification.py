"""`verify` names what is missing or out of place, and raises no false alarm beside a node at work."""

import contextlib
import itertools
import shutil
import sqlite3
import threading
import time
import traceback

import pytest

from dicomguard.cli.verification import problems
from dicomguard.config.sections import BundleSection
from dicomguard.deliver import Destination, Retention, Settings
from dicomguard.deliver.courier import Courier
from dicomguard.errors import LedgerError
from dicomguard.quarantine import Quarantine
from dicomguard.scoring.scorer import Scorer
from dicomguard.spool import envelope
from dicomguard.study import AeTitle, Peer
from tests.cli.enrolled import write_enrolled
from tests.spool.conftest import everything

WHO = {"actor": "dr", "reason": "known device"}


def found(desk):
    return [(p["place"], p["sop_instance_uid"]) for p in problems(desk.config)]


def only(desk, place):
    (path,) = (desk.spool.root / place).rglob("*.dcm")
    return path


class TestMissing:
    def test_from_the_store(self, desk):
        desk.decide("1.1", "1.2")
        instance = next(i for _, i in desk.spool.stored() if i.sop_instance_uid == "1.1")
        instance.path.unlink()
        assert found(desk) == [("store", "1.1")]

    def test_unless_its_retention_is_over(self, desk):
        from datetime import timedelta

        from dicomguard.study import utc_now

        decision, _ = desk.decide("1.1")
        deliver_all(desk)
        with desk.ledger("deliver") as ledger:
            later = Retention(desk.spool, ledger, retention_days=1, now=lambda: utc_now() + timedelta(days=2))
            assert later.step()
        assert list(everything(desk.spool)) == []
        assert found(desk) == []
        assert decision.disposition == "forward"

    def test_from_the_queue(self, desk):
        desk.decide("1.1")
        only(desk, "outbound").unlink()
        (problem,) = problems(desk.config)
        assert problem["place"] == "outbound/ai"
        assert "not in outbound/ai, nor in undeliverable/. The ledger says queued." in problem["message"]

    def test_not_what_was_refused_or_delivered(self, desk):
        desk.decide("1.1")
        (item,) = desk.spool.outgoing("ai")
        desk.spool.give_up(item)
        assert found(desk) == []
        (item,) = desk.spool.undeliverable()
        desk.spool.send_again(item)
        deliver_all(desk)
        assert found(desk) == []

    def test_what_was_rejected(self, desk):
        decision, _ = desk.decide("1.1", held=True)
        with desk.ledger("review") as ledger:
            Quarantine(desk.spool, ledger, ["ai"]).reject(decision.decision_id, **WHO)
        assert found(desk) == []
        shutil.rmtree(only(desk, "rejected").parent)
        assert found(desk) == [("rejected", "1.1")]

    def test_what_was_released(self, desk):
        decision, _ = desk.decide("1.1", held=True)
        with desk.ledger("review") as ledger:
            Quarantine(desk.spool, ledger, ["ai"]).release(decision.decision_id, **WHO)
        assert found(desk) == []
        shutil.rmtree(only(desk, "store").parent)
        only(desk, "outbound").unlink()
        assert found(desk)[0] == ("store", "1.1")

    def test_not_what_is_still_on_its_way(self, desk):
        decision, claim = desk.decide("1.1", route=False)
        assert found(desk) == []
        claim = desk.spool.next_attempt(claim)
        assert found(desk) == []
        desk.spool.fail(claim)
        (problem,) = problems(desk.config)
        assert problem["place"] == "store"
        assert "It lies in failed/" in problem["message"]
        desk.run("failed", "requeue", claim.claim_id)
        assert found(desk) == []
        assert decision.claim_id == claim.claim_id

    def test_not_what_a_person_removed_from_failed(self, desk):
        _, claim = desk.decide("1.1", route=False)
        desk.spool.fail(claim)
        desk.run("failed", "purge", claim.claim_id, "--actor", "dr", "--reason", "test data")
        assert found(desk) == []
        # The same bytes, sent again and lost from the store: nobody removed those.
        again, _ = desk.decide("1.1")
        assert found(desk) == []
        (desk.spool.root / "store" / again.decision_id / again.instances[0].file_name).unlink()
        assert found(desk) == [("store", "1.1")]
        only(desk, "outbound").unlink()
        code, _, (one,) = desk.run("reproduce", again.decision_id, "--json")
        assert (code, one["outcome"]) == (1, "missing")


class TestTampered:
    """Somebody with the database file in hand and no key: `verify` names the row, and checks everything else."""

    def tamper(self, desk, *statements):
        with contextlib.closing(sqlite3.connect(desk.config.data_dir / "ledger.db")) as raw, raw:
            for name, _ in raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall():
                raw.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                assert raw.execute(statement).rowcount == 1

    @pytest.mark.parametrize(
        "change",
        [
            "peer = x'00'",
            "peer = x'ff'",
            "reasons = '[\"nothing known\"]'",
            "reasons = 'no JSON'",
            "reasons = 5",
            "seq = 'abc'",
            "version = 'abc'",
            "received_at = 'yesterday'",
            "destinations = x'00'",
            "disposition = 'lost'",
        ],
    )
    def test_one_value_of_a_decision_ends_no_check(self, desk, change):
        changed, _ = desk.decide("1.1", study="1.2.1")
        lost, _ = desk.decide("2.1", study="1.2.2")
        self.tamper(desk, f"UPDATE decisions SET {change} WHERE decision_id = '{changed.decision_id}'")
        (desk.spool.root / "store" / lost.decision_id / lost.instances[0].file_name).unlink()
        said = list(problems(desk.config))
        assert [p for p in said if p["what"] == "ledger" and p.get("kind") in {"edited", "duplicate"}]
        assert [p["sop_instance_uid"] for p in said if p.get("place") == "store" and "is not in" in p["message"]] == [
            "2.1"
        ]

    def test_a_decision_that_cannot_be_read_is_named(self, desk):
        decision, _ = desk.decide("1.1")
        self.tamper(desk, "UPDATE decisions SET reasons = 'no JSON'")
        said = [p["message"] for p in problems(desk.config)]
        assert [m for m in said if decision.decision_id in m and "Where its instances are was not checked" in m]
        with pytest.raises(LedgerError, match=decision.decision_id):
            desk.run("decisions")

    def test_an_event_that_says_nothing_ends_its_own_check_only(self, desk):
        desk.decide("1.1")
        with desk.ledger() as ledger:
            ledger.record_event("retention_removed", "1", {"decision_id": "d", "instances": []})
        only(desk, "store").write_bytes(b"another")
        self.tamper(desk, "UPDATE events SET detail = '{}'")
        said = list(problems(desk.config))
        assert [p for p in said if p.get("kind") == "edited"]
        assert [p for p in said if "The check of what is missing ended there" in p["message"]]
        assert [p for p in said if p.get("place") == "store"]


class TestOutOfPlace:
    def test_in_the_queue_without_a_decision(self, desk):
        desk.decide("1.1")
        stray = desk.spool.root / "outbound" / "ai" / ("f" * 32)
        shutil.copytree(only(desk, "outbound").parent, stray)
        (problem,) = problems(desk.config)
        assert (problem["place"], problem["path"]) == ("outbound", str(next(stray.iterdir())))

    def test_in_the_queue_without_a_release(self, desk):
        decision, _ = desk.decide("1.1", held=True)
        stray = desk.spool.root / "outbound" / "ai" / decision.decision_id
        stray.mkdir(parents=True)
        shutil.copy(only(desk, "quarantine"), stray)
        (problem,) = problems(desk.config)
        assert "nobody released it" in problem["message"]

    def test_among_the_rejected_without_a_ruling(self, desk):
        decision, _ = desk.decide("1.1", held=True)
        desk.spool.reject(decision.decision_id)
        assert any("nobody rejected it" in problem["message"] for problem in problems(desk.config))

    @pytest.mark.parametrize("name", ["notes.txt", "x.dcm"])
    def test_no_file_of_ours(self, desk, name):
        desk.decide("1.1")
        (only(desk, "outbound").parent / name).write_bytes(b"nothing of ours")
        (problem,) = problems(desk.config)
        assert (problem["place"], problem["path"].rsplit("/", 1)[1]) == ("outbound", name)

    def test_a_damaged_receipt_in_the_queue(self, desk):
        desk.decide("1.1")
        path = only(desk, "outbound")
        path.unlink()
        path.write_bytes(b"\0" * 5000)
        assert [problem["place"] for problem in problems(desk.config)] == ["outbound"]


def deliver_all(desk):
    """Delivered as the courier leaves it, without a peer."""
    from dicomguard.ledger import Delivery, DeliveryState

    with desk.ledger("deliver") as ledger:
        for item in list(desk.spool.outgoing("ai")):
            receipt = item.instance.receipt
            ledger.record_delivery(
                Delivery(
                    item.decision_id,
                    receipt.study_instance_uid,
                    receipt.sop_instance_uid,
                    receipt.sha256,
                    "ai",
                    DeliveryState.DELIVERED,
                )
            )
            desk.spool.delivered(item)


@pytest.mark.slow
def test_a_node_at_work_raises_no_false_alarm(desk, tmp_path):
    """One thread screens and rules, another delivers and removes, and `verify` runs over and over."""
    from dicomguard.demo import AiStandIn

    stop, faults, kept = threading.Event(), [], []

    def guarded(work):
        try:
            work()
        except Exception:  # noqa: BLE001  # whatever it is, the test must say it
            faults.append(traceback.format_exc())
            stop.set()

    def screen_and_rule():
        with desk.ledger("review") as ledger:
            quarantine = Quarantine(desk.spool, ledger, ["ai"])
            for number in itertools.count(1):
                if stop.is_set():
                    return
                decision, claim = desk.decide(
                    f"{number}.1", f"{number}.2", study=f"9.{number}", held=number % 2 == 0, route=False
                )
                claim = desk.spool.next_attempt(claim)
                while claim.folder.exists():
                    # The courier may remove a queue while it is being filled; the screener then tries again.
                    with contextlib.suppress(FileNotFoundError):
                        desk.route(claim, decision)
                if number % 4 == 0:
                    quarantine.release(decision.decision_id, **WHO)
                elif number % 6 == 0:
                    quarantine.reject(decision.decision_id, **WHO)
                    quarantine.purge(decision.decision_id, **WHO)
                kept.append(number)

    def deliver(port):
        with desk.ledger("deliver") as ledger:
            courier = Courier(
                desk.spool, ledger, Destination("ai", Peer(AeTitle("AI"), "127.0.0.1", port)), Settings("DICOMGUARD")
            )
            retention = Retention(desk.spool, ledger, retention_days=0.3 / 86_400)
            while not stop.is_set():
                courier.step()
                retention.step()

    desk.decide("0.1", study="9.0")
    with AiStandIn(tmp_path / "ai") as ai:
        threads = [
            threading.Thread(target=guarded, args=(screen_and_rule,)),
            threading.Thread(target=guarded, args=(lambda: deliver(ai.port),)),
        ]
        for thread in threads:
            thread.start()
        runs, said = 0, []
        until = time.monotonic() + 6
        while time.monotonic() < until and not stop.is_set():
            said += problems(desk.config)
            runs += 1
        stop.set()
        for thread in threads:
            thread.join()
        arrived = len(ai.digests())
    assert faults == []
    assert said == []
    assert runs >= 5
    assert len(kept) >= 10
    assert arrived >= 10
    with desk.ledger() as ledger:
        assert ledger.events("retention_removed")
    left = [(place, path) for place, path in everything(desk.spool) if place in {"store", "quarantine"}]
    assert left
    uids = {envelope.read(path).sop_instance_uid for _, path in left}
    for _, path in left:
        path.unlink()
    assert {problem["sop_instance_uid"] for problem in problems(desk.config)} >= uids


@pytest.mark.parametrize(("pin", "said"), [("fingerprint", "the fingerprint"), ("enrolment_sha256", "has the SHA-256")])
def test_a_bundle_or_an_enrolment_that_is_not_the_pinned_one_is_named(desk, tmp_path, pin, said):
    desk.decide("1.1")
    bundle = write_enrolled(tmp_path / "bundle", images=60, alpha=0.3)
    scorer = Scorer.load(bundle)
    pins = {"fingerprint": scorer.fingerprint, "enrolment_sha256": scorer.enrolment_sha256}
    section = BundleSection(path=bundle, mode="enforce", **pins)
    config = desk.config.model_copy(update={"bundles": (section,)})
    assert list(problems(config)) == []
    other = section.model_copy(update={pin: "f" * 64})
    (problem,) = problems(config.model_copy(update={"bundles": (other,)}))
    assert said in problem["message"]
    assert problem["path"] == str(bundle)
