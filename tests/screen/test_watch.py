"""Events of the drift watch: once for each turn, whoever looks and however often; and the budget that only speaks."""

import ast
import random
from datetime import timedelta
from pathlib import Path

import pytest

import dicomguard
from dicomguard.decision import Disposition
from dicomguard.errors import LedgerError
from dicomguard.ledger import EventKind, Ledger
from dicomguard.screen.budget import FalseHoldBudget
from dicomguard.screen.watch import Streams, Watch, turn
from dicomguard.study import utc_now
from tests.screen.conftest import SUSPECT
from tests.screen.stream import flooded, moved, record, uniform

WINDOW = 100
BUDGET = FalseHoldBudget(2, 7.0, {"chest-xray": "'bundles', entry 1 (path: .../chest-xray)"})


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path / 'l.db'}", b"k" * 32, "screen", heads=tmp_path / "heads") as opened:
        yield opened


def watch(ledger, **changes):
    return Watch(ledger, **{"window": WINDOW, "level": 1e-4, "budget": BUDGET, **changes})


def told(ledger):
    return [(event.kind, event.subject_uid) for event in ledger.events()]


class TestSeveralEnrolments:
    """One bundle, enrolled apart for CR and for DX: each has its own promise, and its own alarm."""

    CR, DX = "c" * 64, "d" * 64

    @property
    def both(self):
        return {"chest-xray": {self.CR, self.DX}}

    def test_the_alarm_of_one_is_not_ended_by_the_other(self, ledger):
        looking = watch(ledger, configured=self.both)
        for _ in range(3):
            record(ledger, moved(WINDOW), enrolment=self.CR, sender="CR1")
            record(ledger, uniform(WINDOW), enrolment=self.DX, sender="DX1")
            looking.step()
        mine = f"chest-xray enrolment {self.CR[:12]}"
        assert told(ledger) == [("drift_moved", mine), ("drift_moved", f"{mine} from CR1")]
        record(ledger, moved(WINDOW), enrolment=self.DX, sender="DX1")
        watch(ledger, configured=self.both).step()
        assert told(ledger)[2:] == [
            ("drift_moved", f"chest-xray enrolment {self.DX[:12]}"),
            ("drift_moved", f"chest-xray enrolment {self.DX[:12]} from DX1"),
        ]

    def test_both_are_shown_whichever_drew_last(self, ledger):
        record(ledger, uniform(WINDOW), enrolment=self.CR, sender="CR1")
        record(ledger, uniform(WINDOW), enrolment=self.DX, sender="DX1")
        record(ledger, uniform(WINDOW), enrolment="e" * 64, sender="OLD")
        shown = [(stream.baseline.enrolment, stream.sender) for stream in Streams(ledger, WINDOW, self.both)]
        assert shown == [(self.CR, ""), (self.CR, "CR1"), (self.DX, ""), (self.DX, "DX1")]

    def test_one_alone_is_called_by_its_bundle_and_stands_before_any_that_drew_later(self, ledger):
        record(ledger, uniform(WINDOW), enrolment=self.CR)
        record(ledger, uniform(WINDOW), enrolment=self.DX)
        shown = Streams(ledger, WINDOW, {"chest-xray": {self.CR}})
        assert next((s.baseline.enrolment, s.subject) for s in shown) == (self.CR, "chest-xray")
        # Enrolled anew, and nothing drawn yet: what was there before is still to be seen.
        assert {s.baseline.enrolment for s in Streams(ledger, WINDOW, {"chest-xray": {"f" * 64}})} == {self.DX}


class TestFewPatients:
    def test_one_patient_for_all_is_noticed_across_restarts(self, ledger):
        record(ledger, uniform(WINDOW + 2), patient="ANONYMOUS")
        assert all(stream.has_few_patients for stream in Streams(ledger, WINDOW))
        record(ledger, uniform(WINDOW * 25), patient="ANONYMOUS")
        assert all(stream.has_few_patients for stream in Streams(ledger, WINDOW))

    def test_patients_that_come_again_are_not(self, ledger):
        for patient in range(WINDOW // 2):
            record(ledger, uniform(4), patient=f"P{patient}")
        assert not any(stream.has_few_patients for stream in Streams(ledger, WINDOW))

    def test_it_is_over_with_the_next_whole_window(self, ledger):
        record(ledger, uniform(WINDOW * 2), patient="ANONYMOUS")
        record(ledger, uniform(WINDOW))
        assert not any(stream.has_few_patients for stream in Streams(ledger, WINDOW))


class TestDrift:
    def test_nothing_is_said_before_a_window_is_whole_nor_while_it_is_uniform(self, ledger):
        looking = watch(ledger)
        record(ledger, moved(WINDOW - 1))
        looking.step()
        assert told(ledger) == []
        other = watch(ledger)
        record(ledger, uniform(WINDOW * 6), bundle="brain-mri")
        other.step()
        assert told(ledger) == []

    def test_a_turn_is_told_once_for_the_sender_and_for_all_and_over_once(self, ledger):
        looking = watch(ledger)
        record(ledger, uniform(WINDOW))
        looking.step()
        record(ledger, moved(WINDOW))
        for _ in range(3):
            looking.step()
        both = [("drift_moved", "chest-xray"), ("drift_moved", "chest-xray from CR1")]
        assert told(ledger) == both
        record(ledger, moved(WINDOW))
        looking.step()
        assert told(ledger) == both
        for _ in range(6):
            record(ledger, uniform(WINDOW))
            looking.step()
        assert told(ledger) == [
            *both,
            (EventKind.DRIFT_OVER, "chest-xray"),
            (EventKind.DRIFT_OVER, "chest-xray from CR1"),
        ]
        first, over = ledger.events()[0], ledger.events()[2]
        assert first.is_alarm
        assert not over.is_alarm
        assert (first.detail["enrolment"], first.detail["images"], first.detail["sender"]) == ("e" * 64, 300, "")
        assert "enrol again" in first.detail["advice"]
        assert first.detail["looks"][0]["p"] < 1e-4 / 2
        assert ledger.verify() == []

    def test_more_alarms_are_told_from_other_images(self, ledger):
        record(ledger, uniform(2 * WINDOW))
        record(ledger, flooded(WINDOW))
        watch(ledger).step()
        assert {kind for kind, _ in told(ledger)} == {"drift_more_alarms"}
        assert "an attack looks like this" in ledger.events()[0].detail["advice"]

    def test_a_restart_and_a_second_screener_say_nothing_again(self, ledger, tmp_path):
        one = watch(ledger)
        record(ledger, moved(WINDOW))
        one.step()
        before = told(ledger)
        assert len(before) == 2
        with Ledger.open(f"sqlite:///{tmp_path / 'l.db'}", b"k" * 32, "screen", heads=tmp_path / "heads") as second:
            other = watch(second)
            other.step()
            watch(second).step()
            assert told(ledger) == before
            for _ in range(6):
                record(ledger, uniform(WINDOW))
                other.step()
            one.step()
        assert [kind for kind, _ in told(ledger)] == ["drift_moved"] * 2 + [EventKind.DRIFT_OVER] * 2

    def test_one_that_is_behind_does_not_undo_what_another_saw_later(self, ledger):
        behind, ahead = watch(ledger), watch(ledger)
        behind.step()
        assert behind._due == []
        record(ledger, moved(WINDOW))
        stale = behind._streams.add(ledger.draws())
        for _ in range(6):
            ahead.step()
            record(ledger, uniform(WINDOW))
        ahead.step()
        before = told(ledger)
        assert before[-1][0] == EventKind.DRIFT_OVER
        assert len(stale) == 2
        for stream in stale:
            turn(ledger, stream, 1e-4)
        assert told(ledger) == before

    def test_a_ledger_that_goes_away_in_between_is_asked_again(self, ledger, monkeypatch):
        looking = watch(ledger)
        record(ledger, moved(WINDOW))

        def away(*_, **__):
            raise LedgerError("away")

        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "record_turn", away)
            with pytest.raises(LedgerError):
                looking.step()
        assert told(ledger) == []
        looking.step()
        assert len(told(ledger)) == 2

    def test_senders_are_told_apart(self, ledger):
        for _ in range(5):
            record(ledger, uniform(WINDOW), sender="CR1")
        record(ledger, moved(WINDOW), sender="CT2")
        watch(ledger).step()
        assert ("drift_moved", "chest-xray from CT2") in told(ledger)
        assert not any(subject == "chest-xray from CR1" for _, subject in told(ledger))

    def test_a_new_enrolment_begins_anew_and_ends_what_the_old_one_raised(self, ledger):
        looking = watch(ledger)
        record(ledger, moved(WINDOW))
        looking.step()
        record(ledger, uniform(WINDOW), enrolment="a" * 64)
        looking.step()
        assert [kind for kind, _ in told(ledger)] == ["drift_moved"] * 2 + [EventKind.DRIFT_OVER] * 2
        record(ledger, moved(WINDOW), enrolment="a" * 64)
        looking.step()
        watch(ledger).step()
        assert [kind for kind, _ in told(ledger)] == ["drift_moved"] * 2 + [EventKind.DRIFT_OVER] * 2 + [
            "drift_moved"
        ] * 2

    def test_a_patient_counts_once_in_a_window(self, ledger):
        record(ledger, moved(5 * WINDOW), patient="one and the same")
        watch(ledger).step()
        assert told(ledger) == []
        record(ledger, moved(WINDOW - 1))
        watch(ledger).step()
        assert len(told(ledger)) == 2


class TestWhatIsRead:
    """A start reads the end of each stream only, and from there sees what one sees who was there from the start."""

    @pytest.mark.parametrize("patients", [None, 40, 12, 9], ids=lambda n: f"{n or 'many'} patients")
    def test_whoever_starts_later_counts_the_same_windows(self, ledger, patients):
        chance = random.Random(patients)
        live = Streams(ledger, 10)
        for step in range(12):
            for _ in range(9):
                name = None if patients is None else f"p{chance.randrange(patients)}"
                sender = chance.choice(["CR1", "CR1", "CT2"])
                record(ledger, uniform(4, offset=step), patient=name, sender=sender)
            live.add(ledger.draws(live.seen))
            fresh = {stream.sender: stream for stream in Streams(ledger, 10)}
            assert set(fresh) == {stream.sender for stream in live}
            for stream in live:
                other = fresh[stream.sender]
                assert (other.drawn, other.unfinished, other.through) == (
                    stream.drawn,
                    stream.unfinished,
                    stream.through,
                )
                assert other._patients == stream._patients
                assert other.looks() == stream.looks()
        (everybody,) = (stream for stream in live if not stream.sender)
        assert everybody.drawn == 12 * 9 * 4
        assert (everybody.through > 0) == (patients != 9)  # nine can never be ten

    def test_no_more_is_read_than_the_windows_need(self, ledger, monkeypatch):
        record(ledger, moved(300), enrolment="a" * 64)
        for _ in range(5):
            record(ledger, uniform(100), sender="CR1")
            record(ledger, uniform(60), sender="CT2")
        read = []
        newest_draws = Ledger.newest_draws

        def counted(self, group, limit, *, through):
            found = newest_draws(self, group, limit, through=through)
            read.append(len(found))
            return found

        monkeypatch.setattr(Ledger, "newest_draws", counted)
        after = []
        monkeypatch.setattr(Ledger, "draws", lambda self, after_=0: after.append(after_) or [])
        watch(ledger, window=10).step()
        assert after == [1100]
        assert len(read) == 3  # all, CR1, CT2; nothing of the enrolment before
        assert 10 * 10 <= min(read) <= max(read) < 2 * 10 * 10

    def test_what_was_completed_while_nobody_looked_is_looked_at(self, ledger):
        record(ledger, moved(WINDOW * 25))
        watch(ledger).step()
        assert told(ledger) == [("drift_moved", "chest-xray"), ("drift_moved", "chest-xray from CR1")]
        assert ledger.events()[0].detail["through"] == WINDOW * 25

    def test_a_ledger_that_is_away_while_a_new_sender_comes_loses_no_draw(self, ledger, monkeypatch):
        looking = watch(ledger)
        record(ledger, moved(WINDOW - 1), sender="CR1")
        looking.step()
        record(ledger, moved(1), sender="CR1")
        record(ledger, moved(1), sender="CT2")

        def away(*_, **__):
            raise LedgerError("away")

        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "count_draws", away)
            with pytest.raises(LedgerError):
                looking.step()
        looking.step()
        assert ("drift_moved", "chest-xray from CR1") in told(ledger)
        assert {s.sender: s.drawn for s in looking._streams} == {"": WINDOW + 1, "CR1": WINDOW, "CT2": 1}


def mark(ledger, number, bundle="chest-xray"):
    ledger.record_event(EventKind.FALSE_HOLD, "1.2", {"decision_id": f"d{number}", "bundles": [bundle]})


@pytest.fixture
def enforcing(site, monkeypatch):
    """The site with a stand-in model; what the model was enrolled with is of no concern here."""
    for name in ("enrolment", "enrolment_sha256"):
        if not hasattr(site.scorer, name):
            monkeypatch.setattr(site.scorer, name, None, raising=False)
    return site


class TestBudget:
    def test_over_it_an_alarm_once_and_over_again_when_the_days_have_passed(self, ledger):
        now = utc_now()
        times = [now]
        looking = watch(ledger, now=lambda: times[-1])
        for number in (1, 2, 2, 2):
            mark(ledger, number)
            looking.step()
        assert ledger.events(EventKind.FALSE_HOLD_BUDGET_SPENT) == []
        mark(ledger, 3)
        mark(ledger, 4, "brain-mri")
        for _ in range(3):
            looking.step()
            watch(ledger).step()
        (event,) = ledger.events(EventKind.FALSE_HOLD_BUDGET_SPENT)
        assert event.is_alarm
        assert (event.subject_uid, event.detail["false_holds"], event.detail["holds"]) == ("chest-xray", 3, 2)
        assert "write 'mode: shadow' instead of 'mode: enforce'" in event.detail["advice"]
        assert "'bundles', entry 1 (path: .../chest-xray)" in event.detail["advice"]
        times.append(now + timedelta(days=8))
        looking.step()
        looking.step()
        assert len(ledger.events(EventKind.FALSE_HOLD_BUDGET_RESTORED)) == 1

    def test_old_marks_are_not_read(self, ledger, monkeypatch):
        for number in range(5):
            mark(ledger, number)
        asked = []
        events = Ledger.events
        monkeypatch.setattr(
            Ledger, "events", lambda self, kind=None, **more: asked.append((kind, more)) or events(self, kind, **more)
        )
        now = utc_now()
        assert BUDGET.counts(ledger, now) == {"chest-xray": 5}
        assert BUDGET.counts(ledger, now + timedelta(days=8)) == {"chest-xray": 0}
        assert [more["since"] for kind, more in asked if kind == EventKind.FALSE_HOLD] == [
            now - timedelta(days=7),
            now + timedelta(days=1),
        ]

    def test_a_bundle_that_is_not_configured_any_more_is_told_to_be_over_too(self, ledger):
        now = utc_now()
        for number in range(3):
            mark(ledger, number, "brain-mri")
        BUDGET.check(ledger, now)
        BUDGET.check(ledger, now + timedelta(days=8))
        assert told(ledger)[3:] == [
            (EventKind.FALSE_HOLD_BUDGET_SPENT, "brain-mri"),
            (EventKind.FALSE_HOLD_BUDGET_RESTORED, "brain-mri"),
        ]

    def test_the_node_goes_on_holding(self, enforcing):
        """Spent ten times over, with every sender drifting: what is suspect is held as before."""
        for number in range(20):
            mark(enforcing.ledger, number, "stand-in")
        for _ in range(3):
            record(enforcing.ledger, flooded(WINDOW), bundle="stand-in")
        screener = enforcing.screener()
        screener._chores._watch = watch(enforcing.ledger, budget=FalseHoldBudget(2, 7.0, {"stand-in": "here"}))
        enforcing.send(SUSPECT, seed=3)
        enforcing.screen(screener)
        assert {event.kind for event in enforcing.ledger.events()} >= {
            EventKind.FALSE_HOLD_BUDGET_SPENT,
            "drift_more_alarms",
        }
        enforcing.send(SUSPECT, seed=4)
        enforcing.now_s += 100
        enforcing.screen(screener)
        mine = [decision for decision in enforcing.decisions() if decision.claim_id.startswith("claim-") is False]
        assert len(mine) == 2
        assert {(d.mode, d.disposition) for d in mine} == {("enforce", Disposition.QUARANTINE)}

    def test_a_fault_of_the_watch_stops_nothing(self, enforcing, caplog):
        screener = enforcing.screener()

        class Broken:
            def step(self):
                raise ValueError("no p-values")

        screener._chores._watch = Broken()
        enforcing.send(SUSPECT, seed=3)
        enforcing.screen(screener)
        assert "drift watch failed" in caplog.text
        assert [d.disposition for d in enforcing.decisions()] == [Disposition.QUARANTINE]

    def test_no_code_sets_a_mode_or_writes_a_configuration(self):
        """`mode` is said when a value is made from the configuration, and nowhere changed afterwards."""
        found, looked = [], 0
        for path in sorted(Path(dicomguard.__file__).parent.rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            looked += 1
            for node in ast.walk(tree):
                targets = []
                if isinstance(node, ast.Assign):
                    targets = node.targets
                elif isinstance(node, ast.AnnAssign | ast.AugAssign):
                    targets = [node.target]
                sets = any(isinstance(t, ast.Attribute) and t.attr == "mode" for t in targets)
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    changes = name in {"replace", "model_copy", "__replace__"}
                    sets |= changes and any(keyword.arg == "mode" for keyword in node.keywords)
                    words = [a.value for a in node.args if isinstance(a, ast.Constant)]
                    sets |= name in {"setattr", "__setattr__"} and "mode" in words
                    sets |= name in {"safe_dump", "dump"} and "yaml" in ast.dump(node.func)
                    updates = [keyword.value for keyword in node.keywords if keyword.arg == "update"]
                    sets |= changes and any("'mode'" in ast.dump(value) for value in updates)
                if sets:
                    found.append(path.name)
        assert looked > 80
        # The demo writes the file of its own node; reproduce judges again in the recorded mode and carries nothing out.
        assert set(found) <= {"demo.py", "reproduce.py"}
        assert "demo.py" in found
