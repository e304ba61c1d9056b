import csv
import io
import json

import pytest
import yaml

from dicomguard.errors import NotFoundError, ReviewError
from dicomguard.spool import envelope


def test_decisions_are_shown_to_people_machines_and_spreadsheets(desk_with_studies):
    code, text, _ = desk_with_studies.run("decisions")
    assert code == 0
    assert "quarantine" in text
    _, _, rows = desk_with_studies.run("decisions", "--json")
    assert {row["disposition"] for row in rows} == {"forward", "quarantine"}
    needed = {
        *("decision_id", "version", "study_instance_uid", "disposition", "verdict", "reasons", "bundle", "fingerprint"),
        *("mode", "peer", "decided_at", "instances"),
    }
    assert all(needed <= set(row) for row in rows)
    of_instance = {"sop_instance_uid", "sha256", "verdict", "reasons", "scores"}
    assert all(of_instance <= set(instance) for row in rows for instance in row["instances"])
    _, text, _ = desk_with_studies.run("decisions", "--csv")
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["decision_id"] for row in table] == [row["decision_id"] for row in rows]
    _, _, one = desk_with_studies.run("decisions", "--study", "1.2.3", "--json")
    assert [row["study_instance_uid"] for row in one] == ["1.2.3"]
    assert len(desk_with_studies.run("decisions", "--last", "1", "--json")[2]) == 1


def test_a_spreadsheet_is_never_handed_a_formula(desk):
    desk.put(b"anything", "1.2.3.4", "=cmd|calc", fault="uid_mismatch")
    desk.screen()
    _, text, _ = desk.run("decisions", "--csv")
    assert [row["study_instance_uid"] for row in csv.DictReader(io.StringIO(text))] == ["'=cmd|calc"]


def test_what_is_held_is_listed_shown_and_released_with_actor_and_reason(desk_with_studies):
    desk = desk_with_studies
    _, _, (held,) = desk.run("quarantine", "list", "--json")
    assert (held["state"], held["files"], held["reasons"]) == ("held", 1, ["uid_mismatch"])
    code, text, _ = desk.run("quarantine", "show", held["decision_id"][:8])
    assert code == 0
    assert "uid_mismatch" in text
    _, _, (shown,) = desk.run("quarantine", "show", "1.2.3", "--json")
    assert [path.rsplit("/", 1)[1] for path in shown["evidence"]] == ["evidence.json"]
    before = len(list(desk.spool.outgoing("ai")))
    code, _, (ruled,) = desk.run(
        "quarantine", "release", "1.2.3", "--actor", "dr", "--reason", "known device", "--json"
    )
    assert (code, ruled["state"], ruled["review"]["actor"]) == (0, "released", "dr")
    assert len(list(desk.spool.outgoing("ai"))) == before + 1
    assert desk.run("quarantine", "list", "--json")[2] == []
    assert [row["state"] for row in desk.run("quarantine", "list", "--all", "--json")[2]] == ["released"]
    _, _, rows = desk.run("deliveries", "list", "--study", "1.2.3", "--json")
    assert [row["state"] for row in rows] == ["queued"]
    with pytest.raises(ReviewError, match="ruled on already"):
        desk.run("quarantine", "reject", "1.2.3", "--actor", "dr", "--reason", "no")


def test_rejected_is_kept_and_not_sent(desk_with_studies):
    desk = desk_with_studies
    before = len(list(desk.spool.outgoing("ai")))
    code, text, _ = desk.run("quarantine", "reject", "1.2.3", "--actor", "dr", "--reason", "altered")
    assert code == 0
    assert "rejected" in text
    assert len(list(desk.spool.outgoing("ai"))) == before
    assert desk.run("quarantine", "list", "--all", "--json")[2][0]["state"] == "rejected"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["quarantine", "release", "1.2.3", "--reason", "x"], id="no-actor"),
        pytest.param(["quarantine", "release", "1.2.3", "--actor", "x"], id="no-reason"),
        pytest.param(["deliveries", "list", "--state", "nonsense"], id="unknown-state"),
        pytest.param(["nonsense"], id="unknown-command"),
    ],
)
def test_bad_usage_exits_with_2(desk_with_studies, words):
    assert desk_with_studies.run(*words)[0] == 2


@pytest.mark.parametrize(("actor", "reason"), [("", "x"), ("x", " ")])
def test_an_empty_actor_or_reason_is_refused(desk_with_studies, actor, reason):
    with pytest.raises(ReviewError):
        desk_with_studies.run("quarantine", "release", "1.2.3", "--actor", actor, "--reason", reason)


def test_something_that_is_not_there_is_named(desk_with_studies):
    with pytest.raises(NotFoundError):
        desk_with_studies.run("quarantine", "show", "ffffffff0000")
    with pytest.raises(NotFoundError):
        desk_with_studies.run("failed", "requeue", "ffffffff0000")


def test_failed_claims_are_listed_and_queued_again(desk):
    desk.send(seed=1)
    ((key, _),) = desk.spool.arrivals().items()
    claim = desk.spool.claim(key)
    desk.spool.fail(claim)
    _, _, (row,) = desk.run("failed", "list", "--json")
    assert (row["claim_id"], row["instances"]) == (claim.claim_id, 1)
    assert desk.run("failed", "requeue", claim.claim_id[:6])[0] == 0
    assert desk.run("failed", "list", "--json")[2] == []
    desk.screen()
    assert len(desk.run("decisions", "--json")[2]) == 1


def test_what_was_refused_for_good_can_be_sent_again(desk_with_studies):
    desk = desk_with_studies
    (item,) = desk.spool.outgoing("ai")
    desk.spool.give_up(item)
    assert desk.run("deliveries", "retry", "--destination", "another")[1].startswith("0 ")
    assert desk.run("deliveries", "retry")[1].startswith("1 ")
    assert len(list(desk.spool.outgoing("ai"))) == 1
    assert desk.run("deliveries", "list", "--state", "requeued", "--json")[2]


class TestVerify:
    def test_a_sound_node_has_no_problems(self, desk_with_studies):
        assert desk_with_studies.run("verify") == (0, "Nothing is wrong.\n", [])

    def test_one_changed_byte_of_an_instance_is_found(self, desk_with_studies):
        desk = desk_with_studies
        ((_, instance),) = desk.spool.stored()
        flip(instance.path, -1)
        code, _, rows = desk.run("verify", "--json")
        assert code == 1
        assert {row["sop_instance_uid"] for row in rows} == {instance.sop_instance_uid}
        assert {row["place"] for row in rows} == {"store", "outbound"}  # one file under two names

    def test_an_instance_slipped_out_of_quarantine_is_found(self, desk_with_studies):
        desk = desk_with_studies
        (folder,) = (desk.spool.root / "quarantine").iterdir()
        folder.rename(desk.spool.root / "store" / folder.name)
        code, _, rows = desk.run("verify", "--json")
        assert code == 1
        assert "nobody released it" in rows[0]["message"]

    def test_an_instance_that_vanished_is_found(self, desk_with_studies):
        desk = desk_with_studies
        (path,) = (desk.spool.root / "quarantine").glob("*/*.dcm")
        path.unlink()
        code, _, rows = desk.run("verify", "--json")
        assert code == 1
        assert "is not in quarantine" in rows[0]["message"]

    def test_an_instance_that_nobody_decided_is_found(self, desk_with_studies):
        desk = desk_with_studies
        ((decision_id, instance),) = desk.spool.stored()
        other = instance.path.parent.with_name("0" * 32)
        instance.path.parent.rename(other)
        rows = desk.run("verify", "--json")[2]
        assert any("No decision" in row["message"] for row in rows)
        assert decision_id != other.name

    def test_a_changed_row_of_the_ledger_is_found(self, desk_with_studies):
        import sqlite3
        from contextlib import closing

        desk = desk_with_studies
        with closing(sqlite3.connect(desk.config.data_dir / "ledger.db")) as raw, raw:
            raw.execute("DROP TRIGGER IF EXISTS decisions_no_update")
            names = [n for (n,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
            for name in names:
                raw.execute(f"DROP TRIGGER {name}")
            raw.execute("UPDATE decisions SET disposition = 'forward'")
        code, _, rows = desk.run("verify", "--json")
        assert code == 1
        assert any(row["what"] == "ledger" and row["table"] == "decisions" for row in rows)


class TestDoctor:
    def test_each_failure_has_a_name_and_advice(self, desk):
        code, _, rows = desk.run("doctor", "--json")
        states = {row["name"]: row["state"] for row in rows}
        assert code == 1
        assert states["destination ai"] == "fail"
        assert states["config"] == states["disk"] == states["ledger"] == "ok"
        assert states["bundles"] == states["peers"] == "warn"

    def test_a_bad_configuration_is_the_only_finding(self, desk):
        desk.path.write_text("data_dir: x\nnonsense: 1\n")
        code, _, rows = desk.run("doctor", "--json")
        assert (code, [row["name"] for row in rows]) == (1, ["config"])
        assert "line 2" in rows[0]["message"]

    def test_a_missing_bundle_and_an_open_key_are_named(self, desk):
        settings = yaml.safe_load(desk.path.read_text())
        settings["bundles"] = [{"path": "nowhere"}]
        desk.path.write_text(yaml.safe_dump(settings))
        desk.run("decisions")
        desk.config.key_file.chmod(0o644)
        states = {row["name"]: row["state"] for row in desk.run("doctor", "--json")[2]}
        assert states["bundle nowhere"] == states["site key"] == states["ledger"] == "fail"

    def test_a_queue_without_a_destination_is_named(self, desk_with_studies):
        desk = desk_with_studies
        settings = yaml.safe_load(desk.path.read_text())
        settings["destinations"] = []
        desk.path.write_text(yaml.safe_dump(settings))
        rows = {row["name"]: row for row in desk.run("doctor", "--json")[2]}
        assert "'ai'" in rows["outbound"]["message"]

    def test_a_destination_that_answers_is_well(self, desk, tmp_path):
        from dicomguard.demo import AiStandIn

        with AiStandIn(tmp_path / "ai") as ai:
            settings = yaml.safe_load(desk.path.read_text())
            settings["destinations"][0]["port"] = ai.port
            desk.path.write_text(yaml.safe_dump(settings))
            code, _, rows = desk.run("doctor", "--json")
        assert (code, {row["name"]: row["state"] for row in rows}["destination ai"]) == (0, "ok")


def test_files_are_scored_without_a_network(desk, tmp_path):
    from dicomguard import phantom

    folder = tmp_path / "files"
    folder.mkdir()
    phantom.make(1, opacity=False, rows=64, columns=64).save_as(folder / "a.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("no DICOM")
    code, _, rows = desk.run("score", str(folder), "--json")
    assert [row["reasons"] for row in rows] == [["unmatched"], ["undecodable"]]
    assert code == 1  # what cannot be read would be held
    assert desk.run("score", str(folder / "a.dcm"), "--json")[0] == 0
    assert not (desk.config.data_dir / "ledger.db").exists()


def test_an_error_is_one_line_with_advice_and_a_code(desk, capfd, monkeypatch):
    from dicomguard.cli import main

    for words, code in (
        (["decisions", "-c", "/nowhere.yaml"], 2),
        (["failed", "requeue", "x", "-c", str(desk.path)], 3),
    ):
        monkeypatch.setattr("sys.argv", ["dicomguard", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        error = capfd.readouterr().err
        assert error.startswith("dicomguard: ")
        assert "Traceback" not in error


def test_the_receiver_pays_neither_for_torch_nor_for_the_database():
    import subprocess
    import sys

    program = (
        "import sys; import dicomguard.cli.app, dicomguard.receive.process; "
        "print([m for m in ('torch', 'monai', 'sqlalchemy', 'dicomguard.pixels.reader') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def flip(path, index):
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def test_evidence_names_what_the_decision_rests_on(desk_with_studies):
    (folder,) = (desk_with_studies.spool.root / "quarantine").iterdir()
    told = json.loads((folder / "evidence" / "evidence.json").read_text())
    (path,) = folder.glob("*.dcm")
    assert told["receipts"][0]["sha256"] == envelope.read(path).receipt.sha256
