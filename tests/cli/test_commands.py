import csv
import io
import json
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from dicomguard.errors import ConfigError, NotFoundError, ReviewError
from dicomguard.spool import envelope
from tests.scoring.small import enrol_small, write_small

# A part of the node that begins: key first, then the ledger, as all of them do.
OPENS = """
import sys
from pathlib import Path
from dicomguard.cli import compose
from dicomguard.config import load

folder = Path(sys.argv[1])
config = load(folder / "node.yaml", {})
for _ in range(3):
    compose.open_ledger(config, "screen").close()
"""


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
    desk.screen()
    desk.send(seed=1)
    ((key, _),) = desk.spool.arrivals().items()
    claim = desk.spool.claim(key)
    desk.spool.fail(claim)
    _, _, (row,) = desk.run("failed", "list", "--json")
    assert (row["claim_id"], row["instances"]) == (claim.claim_id, 1)
    assert desk.run("failed", "requeue", claim.claim_id[:6], "--json") == (
        0,
        f'{{"claim_id":"{claim.claim_id}","queued":1}}\n',
        [{"claim_id": claim.claim_id, "queued": 1}],
    )
    assert desk.run("failed", "list", "--json")[2] == []
    desk.screen()
    assert len(desk.run("decisions", "--json")[2]) == 1


def test_what_was_refused_for_good_can_be_sent_again(desk_with_studies):
    desk = desk_with_studies
    (item,) = desk.spool.outgoing("ai")
    desk.spool.give_up(item)
    assert desk.run("deliveries", "retry", "--destination", "another")[0] == 2
    assert desk.run("deliveries", "retry", "--study", "9.9", "--json")[2] == [{"queued": 0}]
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
        assert states["config"] == states["disk"] == "ok"
        assert states["ledger"] == states["bundles"] == states["peers"] == "warn"

    def test_a_bad_configuration_is_the_only_finding(self, desk):
        desk.path.write_text("data_dir: x\nnonsense: 1\n")
        code, _, rows = desk.run("doctor", "--json")
        assert (code, [row["name"] for row in rows]) == (1, ["config"])
        assert "line 2" in rows[0]["message"]

    def test_a_missing_bundle_and_an_open_key_are_named(self, desk):
        settings = yaml.safe_load(desk.path.read_text())
        settings["bundles"] = [{"path": "nowhere"}]
        desk.path.write_text(yaml.safe_dump(settings))
        desk.screen()
        desk.config.key_file.chmod(0o644)
        states = {row["name"]: row["state"] for row in desk.run("doctor", "--json")[2]}
        assert states["bundle nowhere"] == states["site key"] == states["ledger"] == "fail"

    @pytest.mark.parametrize("kept", ["both", "ledger", "heads"])
    def test_a_lost_key_fails_and_none_is_made_in_its_place(self, desk, kept):
        desk.decide("1.1")
        key = desk.config.key_file
        secret = key.read_bytes()
        key.unlink()
        if kept == "heads":
            for path in desk.config.data_dir.glob("ledger.db*"):
                path.unlink()
        if kept == "ledger":
            key.with_name("ledger.heads").unlink()
        code, _, rows = desk.run("doctor", "--json")
        states = {row["name"]: row for row in rows}
        assert (code, states["site key"]["state"]) == (1, "fail")
        assert "Restore it from its backup" in states["site key"]["message"]
        assert states["ledger"]["state"] == ("warn" if kept == "heads" else "fail")
        with pytest.raises(ConfigError, match="is gone"):
            desk.run("serve")
        with pytest.raises(ConfigError, match="is gone" if kept != "heads" else "There is no ledger"):
            desk.run("verify")
        assert not key.exists()
        key.write_bytes(secret)
        key.chmod(0o600)
        if kept == "both":
            assert desk.run("verify")[0] == 0

    def test_parts_that_start_at_once_make_one_key_and_none_is_refused(self, tmp_path):
        (tmp_path / "node.yaml").write_text(f"data_dir: {tmp_path / 'data'}\n")
        words = [sys.executable, "-c", OPENS, str(tmp_path)]
        parts = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        assert [part.communicate()[1] for part in parts] == [""] * 4

    def test_bundles_that_guard_nobody_fail(self, desk):
        settings = yaml.safe_load(desk.path.read_text()) | {"destinations": []}
        desk.path.write_text(yaml.safe_dump(settings))
        assert {row["name"]: row["state"] for row in desk.run("doctor", "--json")[2]}["destinations"] == "warn"
        desk.path.write_text(yaml.safe_dump(settings | {"bundles": [{"path": "nowhere"}]}))
        rows = {row["name"]: row for row in desk.run("doctor", "--json")[2]}
        assert rows["destinations"]["state"] == "fail"

    def test_late_studies_that_would_pass_are_named(self, desk):
        assert "policy" not in {row["name"] for row in desk.run("doctor", "--json")[2]}
        settings = yaml.safe_load(desk.path.read_text()) | {"policy": {"overdue": "forward"}}
        desk.path.write_text(yaml.safe_dump(settings))
        rows = {row["name"]: row for row in desk.run("doctor", "--json")[2]}
        assert rows["policy"]["state"] == "warn"
        assert "pass unscreened" in rows["policy"]["message"]

    def test_the_sizes_of_studies_that_a_bundle_can_judge_are_named(self, desk, tmp_path):
        folder = write_small(tmp_path / "small", levels=[0.03], repeats=1)
        enrol_small(folder, alpha=0.1, guard=None)  # 30 held-back images
        desk.configure(bundles=[{"path": str(folder), "mode": "shadow"}])
        rows = {row["name"]: row for row in desk.run("doctor", "--json")[2]}
        assert rows["bundle small"]["state"] == "ok"
        assert (
            "studies of 2-3 images can be judged, others follow policy.unknown_size" in rows["bundle small"]["message"]
        )

    def test_padded_studies_that_would_pass_are_named(self, desk):
        settings = yaml.safe_load(desk.path.read_text()) | {"policy": {"unknown_size": "forward"}}
        desk.path.write_text(yaml.safe_dump(settings))
        rows = {row["name"]: row for row in desk.run("doctor", "--json")[2]}
        assert rows["policy"]["state"] == "warn"
        assert "let any image pass" in rows["policy"]["message"]

    def test_images_that_pass_around_the_check_are_named(self, desk):
        settings = yaml.safe_load(desk.path.read_text()) | {"bundles": [{"path": "somewhere", "mode": "enforce"}]}
        for action, is_named in (("forward", True), ("quarantine", False)):
            desk.path.write_text(yaml.safe_dump(settings | {"policy": {"unmatched": action}}))
            messages = [row["message"] for row in desk.run("doctor", "--json")[2] if row["name"] == "policy"]
            assert any("passes unchecked" in message for message in messages) == is_named

    def test_a_queue_without_a_destination_is_named(self, desk_with_studies):
        desk = desk_with_studies
        settings = yaml.safe_load(desk.path.read_text())
        settings["destinations"] = []
        desk.path.write_text(yaml.safe_dump(settings))
        rows = {row["name"]: row for row in desk.run("doctor", "--json")[2]}
        assert "'ai'" in rows["outbound"]["message"]

    def test_a_stray_file_beside_the_queues_is_named(self, desk_with_studies):
        (desk_with_studies.config.spool_dir / "outbound" / ".nfs0001").write_bytes(b"")
        rows = {row["name"]: row for row in desk_with_studies.run("doctor", "--json")[2]}
        assert rows["outbound"]["state"] == "warn"
        assert "'.nfs0001'" in rows["outbound"]["message"]

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


def test_a_delivered_study_is_sent_once_more(desk_with_studies):
    desk = desk_with_studies
    (item,) = desk.spool.outgoing("ai")
    uid = item.instance.study_instance_uid
    desk.spool.delivered(item)
    assert desk.run("deliveries", "resend", "--study", uid, "--destination", "another")[0] == 2
    assert desk.run("deliveries", "resend", "--study", uid, "--json")[2] == [{"queued": 1}]
    assert len(list(desk.spool.outgoing("ai"))) == 1
    _, _, (row,) = desk.run("deliveries", "list", "--study", uid, "--json")
    assert row["state"] == "requeued"
    assert desk.run("verify")[0] == 0


def test_a_failed_claim_is_removed_for_good_with_actor_and_reason(desk):
    desk.screen()
    desk.put(b"data", "1.2.3.4", "1.2.3")
    ((key, _),) = desk.spool.arrivals().items()
    claim = desk.spool.claim(key)
    desk.spool.fail(claim)
    words = ("failed", "purge", claim.claim_id, "--actor", "dr")
    assert desk.run(*words)[0] == 2
    with pytest.raises(ReviewError):
        desk.run(*words, "--reason", " ")
    code, _, (row,) = desk.run(*words, "--reason", "test data", "--json")
    assert (code, row) == (0, {"claim_id": claim.claim_id, "removed": 1})
    assert desk.spool.failed() == []
    _, _, (event,) = desk.run("events", "--kind", "failed_purged", "--json")
    assert (event["subject_uid"], event["detail"]["actor"], event["detail"]["reason"]) == ("1.2.3", "dr", "test data")
    assert event["detail"]["instances"][0]["sop_instance_uid"] == "1.2.3.4"


def test_events_and_associations_are_shown(desk_with_studies):
    from dicomguard.association import AssociationEvent, AssociationKind
    from dicomguard.cli import compose
    from dicomguard.study import utc_now

    desk = desk_with_studies
    refused = AssociationEvent(utc_now(), AssociationKind.REJECTED, "10.0.0.9", "", "INTRUDER", "GUARD", "1/1/3")
    with compose.open_ledger(desk.config, "screen") as ledger:
        ledger.record_event("uid_conflict", "1.2.3", {"n": 1})
        ledger.record_event("retention_removed", "1.2.4", {"instances": [], "decision_id": "d"})
        ledger.record_associations("journal", [refused, refused])
    _, text, _ = desk.run("events")
    assert "ALARM" in text
    _, _, rows = desk.run("events", "--json")
    assert [(row["kind"], row["alarm"]) for row in rows] == [("uid_conflict", True), ("retention_removed", False)]
    assert [row["kind"] for row in desk.run("events", "--last", "1", "--json")[2]] == ["retention_removed"]
    assert [row["subject_uid"] for row in desk.run("events", "--kind", "uid_conflict", "--json")[2]] == ["1.2.3"]
    assert "INTRUDER" in desk.run("associations")[1]
    assert len(desk.run("associations", "--json")[2]) == 2
    _, _, (row,) = desk.run("associations", "--last", "1", "--json")
    assert (row["kind"], row["calling_ae"], row["detail"]) == ("rejected", "INTRUDER", "1/1/3")


LOOKING = [
    ("decisions",), ("events",), ("associations",), ("verify",),
    ("quarantine", "list"), ("quarantine", "show", "1.2.3"), ("deliveries", "list"), ("failed", "list"),
]  # fmt: skip


@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
def test_looking_makes_nothing(tmp_path, words):

    from dicomguard.cli.app import app

    path = tmp_path / "node.yaml"
    path.write_text("data_dir: elsewhere\n")
    done = CliRunner().invoke(app, [*words, "-c", str(path)])
    assert isinstance(done.exception, ConfigError)
    assert "never run" in str(done.exception)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["node.yaml"]


def test_doctor_makes_nothing_either(tmp_path):

    from dicomguard.cli.app import app

    path = tmp_path / "node.yaml"
    path.write_text("data_dir: elsewhere\n")
    done = CliRunner().invoke(app, ["doctor", "-c", str(path), "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["name"]: row["state"] for row in rows if row["name"] in {"site key", "ledger"}} == {
        "site key": "warn",
        "ledger": "warn",
    }
    assert any(row["name"] == "disk" and "first start" in row["message"] for row in rows)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("words", [*LOOKING, ("serve",), ("receive",), ("screen",), ("deliver",)], ids=" ".join)
def test_another_user_is_sent_away_before_anything_is_made(desk, words, monkeypatch):
    import os

    other = os.geteuid() + 4711
    monkeypatch.setattr("os.geteuid", lambda: other)
    before = sorted(desk.config.data_dir.rglob("*"))
    with pytest.raises(ConfigError, match="sudo -u"):
        desk.run(*words)
    assert sorted(desk.config.data_dir.rglob("*")) == before


@pytest.mark.parametrize("verbose", [False, True])
def test_a_defect_of_ours_never_reads_like_a_finding(desk, capfd, monkeypatch, verbose):
    import logging

    from dicomguard.cli import main

    def fail(*_, **__):
        raise KeyError("Doe^John")

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    root.manager._clear_cache()
    monkeypatch.setattr("dicomguard.cli.compose.open_ledger", fail)
    words = ["dicomguard", *(["-v"] if verbose else []), "decisions", "-c", str(desk.path)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    for handler in root.handlers:
        handler.close()
    root.manager._clear_cache()
    assert caught.value.code == 3
    error = capfd.readouterr().err
    assert "dicomguard: unforeseen KeyError" in error
    assert ("Traceback" in error) is verbose
    if not verbose:
        assert "Doe" not in error
        assert "run with -v" in error


def test_a_file_that_breaks_off_is_no_finding(desk, capfd, monkeypatch):
    from dicomguard.cli import main

    def fail(*_, **__):
        raise EOFError("no data left")

    monkeypatch.setattr("dicomguard.cli.compose.open_ledger", fail)
    monkeypatch.setattr("sys.argv", ["dicomguard", "decisions", "-c", str(desk.path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3, "1 says that something was looked for and is wrong"
    assert "dicomguard: unforeseen EOFError" in capfd.readouterr().err


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


def test_neither_tables_nor_json_hand_on_what_a_terminal_or_a_reader_chokes_on(capsys):
    from dicomguard.cli.output import print_json, print_table

    print_table("Associations", ["calling"], [["EVIL\x1b[2J\x1b]0;x\x07"]])
    print_json([{"statistic": float("nan"), "drops": [float("inf"), 1.5]}])
    table, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "\x1b[2J" not in table
    assert "EVIL\\x1b[2J\\x1b]0;x\\x07" in table
    assert json.loads(line, parse_constant=pytest.fail) == {"statistic": "nan", "drops": ["inf", 1.5]}


def test_a_signal_that_comes_while_the_event_is_looked_at_stops_the_part():
    import subprocess
    import sys

    program = (
        "import os, signal; from dicomguard.cli.node import _until_stopped; stop = _until_stopped(supervised=False)\n"
        "with stop._cond: os.kill(os.getpid(), signal.SIGTERM); print('in hand')\n"
        "print(stop.wait(20))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["in", "hand", "True"]


def flip(path, index):
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def test_evidence_names_what_the_decision_rests_on(desk_with_studies):
    (folder,) = (desk_with_studies.spool.root / "quarantine").iterdir()
    told = json.loads((folder / "evidence" / "evidence.json").read_text())
    (path,) = folder.glob("*.dcm")
    assert told["receipts"][0]["sha256"] == envelope.read(path).receipt.sha256


def test_where_there_is_no_file_nothing_is_said_to_be_well(desk, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="empty"):
        desk.run("score", str(tmp_path / "empty"))
    from dicomguard.cli.app import app

    words = ["replay", str(tmp_path / "empty"), "--to", "127.0.0.1:9", "--called", "GUARD"]
    assert isinstance(CliRunner().invoke(app, words).exception, NotFoundError)
