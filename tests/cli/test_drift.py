"""What the drift command shows, and what a person marks as a false hold."""

import hashlib

import pytest

from dicomguard.errors import NotFoundError, ReviewError
from tests.screen.stream import decision, flooded, moved, record, uniform

WHO = ("--actor", "dr", "--reason", "known device")


@pytest.fixture
def small(desk):
    desk.configure(drift={"window_studies": 100}, false_hold_budget={"holds": 1, "days": 7})
    return desk


class TestDrift:
    def test_nothing_there_says_where_p_values_come_from(self, small):
        with small.ledger():
            pass
        code, out, objects = small.run("drift")
        assert (code, objects) == (0, [])
        assert "none" in out
        assert "enrolled bundle" in out

    def test_states_by_bundle_and_sender(self, small):
        with small.ledger() as ledger:
            record(ledger, uniform(300), sender="CR1")
            record(ledger, moved(100), sender="CT2")
            record(ledger, uniform(7), sender="MR3")
            record(ledger, uniform(100), bundle="brain-mri", sender="MR3")
        code, _, rows = small.run("drift", "--json")
        assert code == 1
        states = {(row["bundle"], row["sender"]): row["state"] for row in rows}
        assert states["chest-xray", "CR1"] == "uniform"
        assert states["chest-xray", "CT2"] == "moved"
        assert states["chest-xray", "MR3"] == "collecting"
        assert states["brain-mri", None] == states["brain-mri", "MR3"] == "uniform"
        (row,) = (row for row in rows if (row["bundle"], row["sender"]) == ("chest-xray", "MR3"))
        assert (row["studies"], row["unfinished"], row["looks"]) == (7, 7, [])
        code, out, _ = small.run("drift", "--bundle", "chest-xray", "--peer", "CT2")
        assert code == 1
        assert "enrol again" in out
        assert "brain-mri" not in out
        assert small.run("drift", "--bundle", "brain-mri")[0] == 0
        assert small.run("drift", "--peer", "CR1", "--json")[2][0]["sender"] == "CR1"

    def test_one_patient_id_for_all_is_an_alarm(self, small):
        with small.ledger() as ledger:
            record(ledger, uniform(250), sender="CR1", patient="ANONYMOUS")
        code, _, rows = small.run("drift", "--json")
        assert (code, {row["state"] for row in rows}) == (1, {"few_patients"})
        code, out, _ = small.run("drift")
        assert code == 1
        assert "a pseudonym for each" in " ".join(out.split())

    def test_every_configured_enrolment_of_a_bundle_is_shown(self, small, tmp_path):
        hashes = []
        for name in ("cr", "dx"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "enrolment.json").write_text(f'{{"of": "{name}"}}')
            hashes.append(hashlib.sha256((tmp_path / name / "enrolment.json").read_bytes()).hexdigest())
        (tmp_path / "bundle" / "configs").mkdir(parents=True)
        (tmp_path / "bundle" / "configs" / "metadata.json").write_text('{"name": "chest-xray"}')
        small.configure(
            bundles=[
                {
                    "path": str(tmp_path / "bundle"),
                    "enrolment": str(tmp_path / name),
                    "match": {"Modality": [name.upper()]},
                }
                for name in ("cr", "dx")
            ]
        )
        with small.ledger() as ledger:
            record(ledger, moved(100), enrolment=hashes[0])
            record(ledger, uniform(100), enrolment=hashes[1])
        code, _, rows = small.run("drift", "--json")
        assert code == 1
        found = {
            (row["enrolment"], row["model"], row["state"]) for row in rows if row["sender"] is None and "model" in row
        }
        states = zip(hashes, ("moved", "uniform"), strict=True)
        assert found == {(one, f"chest-xray enrolment {one[:12]}", state) for one, state in states}

    def test_the_newest_enrolment_is_shown(self, small):
        with small.ledger() as ledger:
            record(ledger, moved(100))
            record(ledger, uniform(100), enrolment="a" * 64)
        code, _, rows = small.run("drift", "--json")
        assert (code, {row["enrolment"] for row in rows}) == (0, {"a" * 64})

    @pytest.mark.parametrize("words", [("--bundle", "nosuch"), ("--peer", "NOSUCH"), ("--bundle", "x", "--peer", "y")])
    def test_a_bundle_or_sender_that_is_not_there_is_said(self, small, words):
        with small.ledger() as ledger:
            record(ledger, uniform(100))
        with pytest.raises(NotFoundError, match="Nothing was drawn"):
            small.run("drift", *words)

    def test_the_picture(self, small, tmp_path):
        with small.ledger() as ledger:
            record(ledger, uniform(400), sender="CR1")
            record(ledger, flooded(100), sender="CT2")
        target = tmp_path / "p.png"
        assert small.run("drift", "--plot", str(target))[0] == 1
        content = target.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
        assert small.run("drift", "--peer", "CR1", "--plot", str(target))[0] == 0
        assert target.read_bytes() != content


def hold(desk, bundle="chest-xray"):
    """A hold on record that a bundle's verdict made. No files: what is marked is the decision."""
    made = decision(0.001, bundle=bundle, held=True)
    with desk.ledger() as ledger:
        ledger.record_decisions([made])
    return made.decision_id


class TestFalseHolds:
    def test_a_release_may_say_so_and_a_mark_later(self, small):
        one, two = hold(small), hold(small)
        assert small.run("quarantine", "release", one, *WHO, "--false-hold")[0] == 0
        assert small.run("quarantine", "release", two, *WHO)[0] == 0
        (event,) = small.run("events", "--kind", "false_hold", "--json")[2]
        assert (event["detail"]["decision_id"], event["detail"]["bundles"]) == (one, ["chest-xray"])
        assert (event["detail"]["actor"], event["alarm"]) == ("dr", False)
        for _ in range(2):
            code, out, _ = small.run("quarantine", "mark-false", two, *WHO)
            assert code == 0
            assert "false hold" in out
        assert len(small.run("events", "--kind", "false_hold", "--json")[2]) == 2
        code, _, rows = small.run("drift", "--json")
        (row,) = (row for row in rows if "budget" in row)
        assert (code, row["false_holds"], row["budget"], row["state"]) == (1, 2, 1, "spent")
        assert "mode: shadow" in row["advice"]
        assert "mode: shadow" in small.run("drift")[1]
        with small.ledger() as ledger:
            assert ledger.verify() == []

    def test_only_what_was_released_and_what_a_model_held(self, small):
        one = hold(small)
        with pytest.raises(ReviewError, match="is held; only what was released"):
            small.run("quarantine", "mark-false", one, *WHO)
        small.run("quarantine", "reject", one, *WHO)
        with pytest.raises(ReviewError, match="is rejected; only what was released"):
            small.run("quarantine", "mark-false", one, *WHO)
        other, _ = small.decide("1.1", held=True)
        with pytest.raises(ReviewError, match="not held by a protected model"):
            small.run("quarantine", "release", other.decision_id, *WHO, "--false-hold")
        assert small.run("quarantine", "list", "--json")[2][0]["state"] == "held"
        assert small.run("quarantine", "release", other.decision_id, *WHO)[0] == 0
        with pytest.raises(ReviewError, match="not held by a protected model"):
            small.run("quarantine", "mark-false", other.decision_id, *WHO)
        with pytest.raises(ReviewError, match="actor and a reason"):
            small.run("quarantine", "mark-false", other.decision_id, "--actor", "dr", "--reason", " ")
        assert small.run("events", "--kind", "false_hold", "--json")[2] == []

    def test_nothing_is_written_into_the_configuration(self, small):
        before = small.path.read_bytes()
        for _ in range(5):
            small.run("quarantine", "release", hold(small), *WHO, "--false-hold")
        small.run("drift")
        assert small.path.read_bytes() == before
