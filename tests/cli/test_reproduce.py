"""The flight recorder as people use it: decisions of the real screener and a real scorer, made again and exported."""

import hashlib
import hmac
import json
import shutil
import sqlite3
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicomguard.cli import compose
from dicomguard.errors import BundleError, ConfigError, LedgerError, NotFoundError
from dicomguard.ledger import EventKind, Ledger
from dicomguard.ledger.chain import subkey
from dicomguard.ledger.tables import to_text
from dicomguard.scoring import noise
from dicomguard.screen.archive import FORMAT, Archive, EvidenceError
from dicomguard.study import utc_now
from tests.cli.conftest import Desk
from tests.cli.enrolled import enrol, write_enrolled
from tests.scoring.small import write_small

PATIENT = ("MUSTERMANN", "4711-patient")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two bundles with random weights and one draw of noise."""
    folder = tmp_path_factory.mktemp("bundles")
    return [write_small(folder / str(seed), seed=seed, levels=[0.03], repeats=1) for seed in range(2)]


def section(folder):
    return {"bundles": [{"path": str(folder), "match": {"Modality": ["DX"]}, "mode": "shadow"}]}


def send_patient(desk, seed, **changes):
    desk.send(seed=seed, PatientName=PATIENT[0], PatientID=PATIENT[1], **changes)


@pytest.fixture
def node(tmp_path, small):
    """Two studies that were scored, and one transfer that was refused and is held."""
    desk = Desk(tmp_path, **section(small[0]))
    send_patient(desk, 1)
    desk.send(seed=2)
    desk.put(b"anything", "1.2.3.4", "1.2.3", fault="uid_mismatch")
    desk.screen()
    return desk


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small):
    """A node, the decision that was exported, and the file, with instances. Only to be looked at."""
    folder = tmp_path_factory.mktemp("exported")
    desk = Desk(folder, **section(small[0]))
    for seed in (1, 2):
        send_patient(desk, seed, study="1.2.9")
    desk.screen()
    (decision,) = decisions(desk)
    out = folder / "evidence.zip"
    assert export(desk, decision, out, "--with-instances")[0] == 0
    return desk, decision, out


def decisions(desk):
    with desk.ledger() as ledger:
        return list(ledger.decisions())


def scored(desk):
    return next(d for d in decisions(desk) if d.instances[0].scores)


def export(desk, decision, out, *options):
    return desk.run("evidence", "export", decision.decision_id, "--out", str(out), "--json", *options)


def from_file(desk, path, *options):
    """`reproduce --from`: `run` adds a configuration, which such a call has no need of."""
    return desk.run("reproduce", "--from", str(path), "--json", *options)


def repack(source, target, change=lambda files: files, *, mend=False, **options):
    """The archive again with other files: name -> bytes; `mend` writes the manifest that fits them."""
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files = change(dict(files))
    if mend:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in files.items()
            if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def forge(source, target, change, files=lambda files: files):
    """The archive again with another decision, in its ledger too: all that somebody without the site's key can do."""

    def both(content):
        decision, ledger = json.loads(content["decision.json"]), json.loads(content["ledger.json"])
        before = json.loads(content["decision.json"])
        change(decision)
        (covered,) = (row["covered"] for row in ledger["rows"] if row["table"] == "decisions")
        covered["instances"] = covered["instances"][: len(decision["instances"])]
        for row, was, now in [
            (covered["row"], before, decision),
            *zip(covered["instances"], before["instances"], decision["instances"], strict=False),
        ]:
            for name in now:
                if now[name] != was.get(name) and name != "instances":
                    row[name] = to_text(now[name]) if isinstance(now[name], list | dict) else now[name]
        made = {"decision.json": json.dumps(decision).encode(), "ledger.json": json.dumps(ledger).encode()}
        return files({**content, **made})

    return repack(source, target, both, mend=True)


# Made again ----------------------------------------------------------------------------------------------------------


def test_all_decisions_agree(node):
    code, _, found = node.run("reproduce", "--all", "--json")
    *each, summary = found
    assert code == 0
    assert [one["outcome"] for one in each] == ["agrees"] * 3
    assert {one["decision_id"] for one in each} == {d.decision_id for d in decisions(node)}
    assert summary["decisions"] == summary["agrees"] == summary["instances_recomputed"] == 3
    assert sum(d.instances[0].scores is not None for d in decisions(node)) == 2
    assert [one["largest_distance"] is None for one in each].count(False) == 2
    code, text, _ = node.run("reproduce", "--all")
    assert code == 0
    assert "3 of 3 decisions agree" in text


def test_one_by_the_beginning_of_its_id_and_some_by_time(node):
    first, *_, last = decisions(node)
    code, text, _ = node.run("reproduce", first.decision_id[:8])
    assert code == 0
    assert "agrees (1 of 1 instance(s) recomputed" in text
    code, _, found = node.run("reproduce", "--all", "--json", "--limit", "1")
    assert [one["decision_id"] for one in found[:-1]] == [last.decision_id]
    code, _, found = node.run("reproduce", "--all", "--json", "--since", last.decided_at.isoformat())
    assert (code, [one["decision_id"] for one in found[:-1]]) == (0, [last.decision_id])
    with pytest.raises(NotFoundError):
        node.run("reproduce", "--all", "--since", "2999-01-01")


def test_an_altered_instance_is_an_alarm_that_is_recorded_once(node):
    decision = scored(node)
    (path,) = (node.spool.root / "store" / decision.decision_id).glob("*.dcm")
    content = bytearray(path.read_bytes())
    content[-4] ^= 0xFF
    path.write_bytes(content)
    for _ in range(2):
        code, _, found = node.run("reproduce", "--all", "--json")
        assert code == 1
        assert sorted(one["outcome"] for one in found[:-1]) == ["agrees", "agrees", "altered"]
    code, text, _ = node.run("reproduce", decision.decision_id)
    assert code == 1
    assert "ALARM" in text
    with node.ledger() as ledger:
        (event,) = ledger.events("altered_in_spool")
    assert event.is_alarm
    assert event.subject_uid == decision.instances[0].sop_instance_uid


def test_another_bundle_is_named_and_the_old_one_can_be_given(node, small):
    decision = scored(node)
    node.configure(**section(small[1]))
    code, _, (found,) = node.run("reproduce", decision.decision_id, "--json")
    assert (code, found["outcome"], found["recomputed"]) == (3, "other model", 0)
    assert decision.fingerprint[:16] in found["problems"][0]
    assert "--bundle" in found["problems"][0]
    code, _, (found,) = node.run("reproduce", decision.decision_id, "--json", "--bundle", str(small[0]))
    assert (code, found["outcome"]) == (0, "agrees")
    code, _, found = node.run("reproduce", "--all", "--json")
    assert code == 3
    assert found[-1] | {"agrees": 1, "other model": 2} == found[-1]


def test_other_weights_under_the_recorded_fingerprint_would_differ(node, monkeypatch):
    from dicomguard.scoring.scorer import Scorer

    seen = Scorer.score

    def score(self, batch, seeds):
        return [replace(one, statistic=one.statistic + 1) for one in seen(self, batch, seeds)]

    monkeypatch.setattr(Scorer, "score", score)
    code, _, (found,) = node.run("reproduce", scored(node).decision_id, "--json")
    assert (code, found["outcome"]) == (1, "differs")
    assert any("statistic" in d["what"] and d["by"] == pytest.approx(1, abs=0.01) for d in found["differences"])
    assert node.run("reproduce", scored(node).decision_id, "--json", "--tolerance", "1.1")[0] == 0


def test_what_retention_removed_is_gone_and_what_nobody_removed_is_missing(node):
    decision = scored(node)
    (instance,) = decision.instances
    for path in node.spool.root.glob(f"*/**/{decision.decision_id}/*.dcm"):
        path.unlink()
    code, _, (found,) = node.run("reproduce", decision.decision_id, "--json")
    assert (code, found["outcome"]) == (1, "missing")
    detail = {
        "decision_id": decision.decision_id,
        "instances": [{"sop_instance_uid": instance.sop_instance_uid, "sha256": instance.sha256}],
    }
    with node.ledger("deliver") as ledger:
        ledger.record_event(EventKind.RETENTION_REMOVED, decision.study_instance_uid, detail)
    code, _, (found,) = node.run("reproduce", decision.decision_id, "--json")
    assert (code, found["outcome"]) == (3, "gone")  # nothing was made again: no reason to be content
    assert f"{utc_now():%Y-%m-%d}" in found["problems"][0]
    code, _, found = node.run("reproduce", "--all", "--json")
    assert (code, found[-1]["gone"], found[-1]["agrees"]) == (0, 1, 2)


@pytest.mark.parametrize(
    "words",
    [
        ("reproduce",),
        ("reproduce", "12345678", "--all"),
        ("reproduce", "--all", "--from", "x.zip"),
        ("reproduce", "12345678", "--limit", "3"),
        ("reproduce", "--all", "--since", "yesterday"),
        ("reproduce", "--all", "--limit", "0"),
        ("reproduce", "--all", "--tolerance", "-1"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused(node, words):
    assert node.run(*words)[0] == 2


def test_a_decision_must_be_named_and_known(node, tmp_path):
    for words in (("reproduce", "0123456789ab"), ("reproduce", "ab"), ("reproduce", "")):
        with pytest.raises(NotFoundError):
            node.run(*words)
        with pytest.raises(NotFoundError):
            node.run("evidence", "export", words[1], "--out", str(tmp_path / "x.zip"))
    assert not (tmp_path / "x.zip").exists()


def test_a_prefix_of_two_decisions_is_refused(desk):
    first, _ = desk.decide("1.2.1", study="1.3.1")
    twin = replace(first, decision_id=first.decision_id[:12] + "0" * 20, claim_id="c", study_instance_uid="1.3.2")
    with desk.ledger() as ledger:
        ledger.record_decisions([twin])
    with pytest.raises(NotFoundError, match="More than one"):
        desk.run("reproduce", first.decision_id[:12])


def test_without_a_configuration_there_is_nothing_to_reproduce():
    from dicomguard.cli import reproduce

    with pytest.raises(ConfigError):
        reproduce.reproduce(None, everything=True)


# With an enrolment ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory):
    """A node whose bundle is enforced with all checks, and studies of one to four images, clean and strange ones."""
    folder = tmp_path_factory.mktemp("enrolled")
    bundle = write_enrolled(folder / "bundle", alpha=0.3)  # so that many are held
    config = {"bundles": [{"path": str(bundle), "match": {"Modality": ["DX"]}}]}
    desk = Desk(folder, **config)
    for study in range(10):
        for image in range(study % 4 + 1):
            rubbish = np.random.default_rng(study).integers(0, 4096, 64 * 64, dtype=np.uint16).tobytes()
            strange = {"PixelData": rubbish} if study % 3 == 2 else {}
            desk.send(seed=5000 + 10 * study + image, study=f"1.2.{study}", **strange)
    desk.screen()
    return desk, bundle


@pytest.mark.slow
def test_decisions_of_an_enrolled_bundle_agree(enrolled):
    desk, _ = enrolled
    made = decisions(desk)
    assert len(made) == 10
    assert {d.disposition.value for d in made} == {"forward", "quarantine"}
    scores = [i.scores for d in made for i in d.instances]
    assert len(scores) == 23
    assert any("study" in s for s in scores)
    assert {s["worst"]["guard"]["outcome"] for s in scores} > {"CERTIFIED"}
    code, _, found = desk.run("reproduce", "--all", "--json")
    assert (code, found[-1]["agrees"]) == (0, 10), [one for one in found[:-1] if one["outcome"] != "agrees"]
    assert found[-1]["instances_recomputed"] == 23


@pytest.mark.slow
def test_the_enrolment_goes_along_and_the_bundle_does_not(enrolled, tmp_path):
    desk, bundle = enrolled
    held = next(d for d in decisions(desk) if d.disposition == "quarantine" and len(d.instances) > 1)
    assert export(desk, held, tmp_path / "x.zip", "--with-instances")[0] == 0
    with Archive(tmp_path / "x.zip") as archive:
        assert {name.rpartition("/")[2] for name in archive.names if name.startswith("model/")} == {
            "enrolment.json",
            "enrolment.safetensors",
        }
        assert any(name.endswith(".noise.png") for name in archive.names)
    bare = tmp_path / "bare"
    shutil.copytree(bundle, bare, ignore=shutil.ignore_patterns("enrolment"))
    code, _, (found,) = from_file(desk, tmp_path / "x.zip", "--bundle", str(bare))
    assert (code, found["outcome"], found["recomputed"]) == (0, "agrees", len(held.instances))


@pytest.mark.slow
def test_another_enrolment_is_named_and_the_old_one_can_be_given(enrolled, tmp_path):
    desk, bundle = enrolled
    decision = decisions(desk)[0]
    newer = tmp_path / "bundle"
    shutil.copytree(bundle, newer, ignore=shutil.ignore_patterns("enrolment"))
    enrol(newer, newer / "enrolment", first_image=300)
    before = desk.path.read_text()
    desk.configure(bundles=[{"path": str(newer), "match": {"Modality": ["DX"]}}])
    try:
        code, _, (found,) = desk.run("reproduce", decision.decision_id, "--json")
        assert (code, found["outcome"]) == (3, "other model")
        assert decision.instances[0].scores["enrolment"][:16] in found["problems"][0]
        assert "--enrolment" in found["problems"][0]
        old = ("--enrolment", str(bundle / "enrolment"))
        code, _, (found,) = desk.run("reproduce", decision.decision_id, "--json", *old)
        assert (code, found["outcome"]) == (0, "agrees")
    finally:
        desk.path.write_text(before)


# Exported ------------------------------------------------------------------------------------------------------------


def test_a_third_party_makes_the_decision_again(exported, small):
    desk, decision, out = exported
    code, _, (found,) = from_file(desk, out, "--bundle", str(small[0]))
    assert (code, found["outcome"], found["recomputed"]) == (0, "agrees", 2)
    assert found["largest_distance"] < 1e-4
    assert found["decision_id"] == decision.decision_id
    code, _, (found,) = from_file(desk, out, "--bundle", str(small[1]))
    assert (code, found["outcome"]) == (3, "other model")
    assert from_file(desk, out)[0] == 3


def test_the_seeds_are_those_of_the_frames_and_the_key_is_not_there(exported):
    desk, decision, out = exported
    key = compose.site_key(desk.config)
    with zipfile.ZipFile(out) as archive:
        seeds = json.loads(archive.read("seeds.json"))
        everything = b"".join(archive.read(name) for name in archive.namelist())
    for entry in seeds:
        fields = [entry[name] for name in ("sop_instance_uid", "frame", "sha256", "fingerprint", "purpose")]
        assert entry["seed"] == noise.seed(key.for_purpose("noise"), *fields).hex()
    assert {e["sop_instance_uid"] for e in seeds} == {str(i.sop_instance_uid) for i in decision.instances}
    assert len({e["seed"] for e in seeds}) == len(seeds)
    for secret in (key._secret, *(key.for_purpose(p) for p in ("noise", "ledger-chain", "patient-id"))):
        assert secret not in everything
        assert secret.hex().encode() not in everything


def test_other_seeds_make_another_decision(exported, small, tmp_path):
    desk, _, out = exported

    def change(files):
        seeds = json.loads(files["seeds.json"])
        for entry in seeds:
            entry["seed"] = hashlib.sha256(entry["seed"].encode()).hexdigest()
        return {**files, "seeds.json": json.dumps(seeds).encode()}

    forged = repack(out, tmp_path / "forged.zip", change, mend=True)
    _, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]), "--tolerance", "1e-6")
    assert found["outcome"] == "differs"


def test_the_same_again_is_the_same_file_and_none_is_overwritten(exported, tmp_path):
    desk, decision, out = exported
    code, _, (said,) = export(desk, decision, tmp_path / "again.zip", "--with-instances")
    assert code == 0
    assert (tmp_path / "again.zip").read_bytes() == out.read_bytes()
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    before = out.read_bytes()
    with pytest.raises(EvidenceError, match="exists already"):
        export(desk, decision, out)
    assert out.read_bytes() == before
    with pytest.raises(EvidenceError, match="cannot be written"):
        export(desk, decision, tmp_path / "no" / "folder.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["again.zip"]  # nothing half-written is left


def test_every_file_is_listed_with_its_digest(exported):
    _, decision, out = exported
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        listed = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in manifest["files"]}
        assert {*archive.namelist()} == {*listed, "manifest.json"}
        readme = archive.read("README.txt").decode()
        recorded = json.loads(archive.read("decision.json"))
    assert manifest["format"] == FORMAT
    assert listed == {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert recorded == json.loads(json.dumps(decision.to_json()))
    for word in ("reproduce --from", "HMAC-SHA256", "site's key", "saliency"):
        assert word in readme


def test_the_instances_are_the_bytes_that_were_received(exported, tmp_path):
    _, decision, out = exported
    with zipfile.ZipFile(out) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("instances/"))
        for name, instance in zip(names, decision.instances, strict=True):
            (tmp_path / "one.dcm").write_bytes(archive.read(name))
            assert dcmread(tmp_path / "one.dcm").SOPInstanceUID == instance.sop_instance_uid


def test_without_instances_there_is_nothing_of_the_patient_in_it(exported, small, tmp_path):
    desk, decision, _ = exported
    out = tmp_path / "bare.zip"
    assert export(desk, decision, out)[0] == 0
    content = out.read_bytes()
    assert not any(word.encode() in content for word in PATIENT)
    with zipfile.ZipFile(out) as archive:
        assert not any(name.startswith("instances/") for name in archive.namelist())
        assert "withheld" in json.loads(archive.read("manifest.json"))
    with pytest.raises(EvidenceError, match="no instances"):
        from_file(desk, out, "--bundle", str(small[0]))


def test_a_plain_patient_id_is_withheld(tmp_path, small):
    desk = Desk(tmp_path, patient_id="plain", **section(small[0]))
    send_patient(desk, 1)
    desk.screen()
    (decision,) = decisions(desk)
    assert decision.patient_key == PATIENT[1]
    out = tmp_path / "bare.zip"
    assert export(desk, decision, out)[0] == 0
    assert PATIENT[1].encode() not in out.read_bytes()
    with Archive(out) as archive:
        assert any("Patient ID" in line for line in archive.manifest["withheld"])


def test_a_plain_patient_id_is_withheld_also_when_it_has_the_form_of_a_hash(tmp_path, small):
    plain = "0123456789abcdef" * 2
    desk = Desk(tmp_path, patient_id="plain", **section(small[0]))
    desk.send(seed=1, PatientID=plain)
    desk.screen()
    (decision,) = decisions(desk)
    assert decision.patient_key == plain
    assert export(desk, decision, tmp_path / "bare.zip")[0] == 0
    assert plain.encode() not in (tmp_path / "bare.zip").read_bytes()


def test_what_was_recorded_in_plain_before_the_site_hashed_is_withheld(tmp_path, small):
    desk = Desk(tmp_path, patient_id="plain", **section(small[0]))
    send_patient(desk, 1)
    desk.screen()
    desk.configure(patient_id="hashed", **section(small[0]))
    (decision,) = decisions(desk)
    assert export(desk, decision, tmp_path / "bare.zip")[0] == 0
    assert PATIENT[1].encode() not in (tmp_path / "bare.zip").read_bytes()


def test_a_hashed_id_stays(exported, tmp_path):
    desk, decision, _ = exported
    assert export(desk, decision, tmp_path / "bare.zip")[0] == 0
    with Archive(tmp_path / "bare.zip") as archive:
        assert archive.json("decision.json")["patient_key"] == decision.patient_key is not None


def test_an_export_is_recorded_with_who_and_what(node, tmp_path, monkeypatch):
    decision = scored(node)
    monkeypatch.setenv("LOGNAME", "dr-x")
    _, _, (said,) = export(node, decision, tmp_path / "x.zip")
    export(node, decision, tmp_path / "y.zip", "--with-instances")
    with node.ledger() as ledger:
        without, whole = ledger.events(EventKind.EVIDENCE_EXPORTED)
        assert ledger.verify() == []
    assert without.subject_uid == decision.study_instance_uid
    assert without.detail == {
        "decision_id": decision.decision_id,
        "actor": "dr-x",
        "with_instances": False,
        "instances": 0,
        "pictures": 0,
        "sha256": said["sha256"],
    }
    assert (whole.detail["with_instances"], whole.detail["instances"]) == (True, 1)


def test_no_file_leaves_that_cannot_be_recorded(node, tmp_path, monkeypatch):
    def full(*_):
        raise LedgerError("full")

    monkeypatch.setattr(Ledger, "record_event", full)
    with pytest.raises(LedgerError):
        export(node, scored(node), tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_the_rows_can_be_checked_by_whoever_has_the_key(exported):
    desk, decision, out = exported
    with Archive(out) as archive:
        found = archive.json("ledger.json")
    key = subkey(compose.site_key(desk.config).for_purpose("ledger-chain"), "row")
    for row in found["rows"]:
        assert hmac.digest(key, to_text(row["covered"]).encode(), "sha256").hex() == row["mac"]
        assert row["mac_is_right"]
    assert {row["table"] for row in found["rows"]} >= {"decisions", "deliveries"}
    assert found["rows"][0]["covered"]["row"]["decision_id"] == decision.decision_id
    assert found["heads"]["screen"]["seq"] >= max(r["seq"] for r in found["rows"] if r["writer"] == "screen")


def test_an_edited_row_is_said_and_exported_as_it_stands(node, tmp_path):
    decision = scored(node)
    with sqlite3.connect(node.config.data_dir / "ledger.db") as database:
        database.execute("DROP TRIGGER decisions_no_update")
        database.execute("UPDATE decisions SET peer = 'FORGED' WHERE decision_id = ?", (decision.decision_id,))
    database.close()
    code, _, (said,) = export(node, decision, tmp_path / "x.zip")
    assert code == 1
    assert [row.split()[0] for row in said["edited"]] == ["decisions"]


def test_pictures_go_along_and_those_of_the_image_can_be_left_out(node, tmp_path):
    held = next(d for d in decisions(node) if d.disposition == "quarantine")
    folder = node.spool.evidence(held.decision_id)
    for name in ("a.noise.png", "a.saliency.png"):
        (folder / name).write_bytes(b"a picture")
    assert export(node, held, tmp_path / "all.zip")[2][0]["pictures"] == 2
    assert export(node, held, tmp_path / "some.zip", "--without-pictures")[2][0]["pictures"] == 1
    with Archive(tmp_path / "some.zip") as archive:
        assert "pictures/a.noise.png" in archive.names


def test_what_is_gone_or_altered_stands_in_the_file(exported, node, tmp_path):
    decision = scored(node)
    (path,) = (node.spool.root / "store" / decision.decision_id).glob("*.dcm")
    path.write_bytes(path.read_bytes()[:-2])
    code, _, (said,) = export(node, decision, tmp_path / "x.zip", "--with-instances")
    assert (code, said["instances"]) == (1, 0)
    assert said["altered"] == [decision.instances[0].sop_instance_uid]
    with Archive(tmp_path / "x.zip") as archive:
        assert any("ALTERED" in line for line in archive.manifest["withheld"])


# Not believed --------------------------------------------------------------------------------------------------------


def test_an_instance_that_was_exchanged_in_the_file_is_altered(exported, small, tmp_path):
    desk, _, out = exported

    def change(files):
        name = "instances/000001.dcm"
        content = bytearray(files[name])
        content[-4] ^= 0xFF
        return {**files, name: bytes(content)}

    with pytest.raises(EvidenceError, match="not what the manifest lists"):
        from_file(desk, repack(out, tmp_path / "a.zip", change), "--bundle", str(small[0]))
    mended = repack(out, tmp_path / "b.zip", change, mend=True)
    code, _, (found,) = from_file(desk, mended, "--bundle", str(small[0]))
    assert (code, found["outcome"], found["recomputed"]) == (1, "altered", 1)


def test_a_verdict_that_was_exchanged_in_the_file_differs(exported, small, tmp_path):
    desk, _, out = exported

    def change(decision):
        decision["instances"][0]["verdict"] = decision["verdict"] = "CLEAN"
        decision["instances"][0]["reasons"] = []

    forged = forge(out, tmp_path / "forged.zip", change)
    code, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]))
    assert (code, found["outcome"]) == (1, "differs")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(peer="ANOTHER@10.0.0.1"),
        lambda d: d.update(decided_at="2001-01-01T00:00:00+00:00"),
        lambda d: d["instances"].pop(),
        lambda d: d["instances"][0].update(mode="enforce"),
        lambda d: d["instances"][0]["scores"]["statistics"].__setitem__(0, 0.5),
    ],
)
def test_a_decision_that_is_not_the_one_of_the_ledger_is_refused(exported, small, tmp_path, change):
    desk, _, out = exported

    def only_there(files):
        decision = json.loads(files["decision.json"])
        change(decision)
        return {**files, "decision.json": json.dumps(decision).encode()}

    forged = repack(out, tmp_path / "forged.zip", only_there, mend=True)
    with pytest.raises(EvidenceError, match="another decision than the row of the ledger"):
        from_file(desk, forged, "--bundle", str(small[0]))


def test_instances_that_the_decision_does_not_name_are_refused(exported, small, tmp_path):
    desk, _, out = exported
    for name, change in (("none", lambda d: d["instances"].clear()), ("fewer", lambda d: d["instances"].pop())):
        forged = forge(out, tmp_path / f"{name}.zip", change)
        with pytest.raises(EvidenceError, match="instances that its decision does not name"):
            from_file(desk, forged, "--bundle", str(small[0]))


def test_another_study_or_sender_than_that_of_the_instances_is_said(exported, small, tmp_path):
    desk, _, out = exported
    forged = forge(out, tmp_path / "study.zip", lambda d: d.update(study_instance_uid="1.2.3"))
    code, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]))
    assert (code, found["outcome"], found["recomputed"]) == (1, "altered", 0)
    forged = forge(out, tmp_path / "peer.zip", lambda d: d.update(peer="ANOTHER@10.0.0.1"))
    code, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]))
    assert any("ANOTHER@10.0.0.1" in note and "the receipts say" in note for note in found["notes"])


def no_scores(decision):
    """As if the model had failed on every image."""
    for instance in decision["instances"]:
        instance.update(verdict="UNSCORABLE", reasons=["model_fault"], scores=None, detail="frame 0: ValueError")
    decision.update(verdict="UNSCORABLE", reasons=["model_fault"])


@pytest.mark.parametrize("seeds", ["[]", "whole"])
def test_that_the_model_failed_is_not_believed(exported, small, tmp_path, seeds):
    desk, _, out = exported
    forged = forge(
        out,
        tmp_path / "forged.zip",
        no_scores,
        lambda files: files if seeds == "whole" else {**files, "seeds.json": seeds.encode()},
    )
    code, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]))
    expected = (1, "differs", 2) if seeds == "whole" else (3, "not disclosed", 0)
    assert (code, found["outcome"], found["recomputed"]) == expected
    if seeds == "[]":
        assert [uid in problem for uid, problem in zip(_uids(out), found["problems"], strict=True)] == [True, True]


def _uids(path):
    with Archive(path) as archive:
        return [instance["sop_instance_uid"] for instance in archive.json("decision.json")["instances"]]


def test_that_one_seed_is_missing_takes_no_other_image_along(exported, small, tmp_path):
    desk, _, out = exported
    first, _ = _uids(out)

    def without_first(files):
        seeds = [s for s in json.loads(files["seeds.json"]) if s["sop_instance_uid"] != first]
        return {**files, "seeds.json": json.dumps(seeds).encode()}

    forged = repack(out, tmp_path / "forged.zip", without_first, mend=True)
    code, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]))
    assert (code, found["outcome"], found["recomputed"]) == (3, "not disclosed", 1)
    assert [first in p for p in found["problems"]] == [True]
    assert not found["differences"]


def test_where_the_model_failed_somebody_else_can_see_whether_it_does(tmp_path, small, monkeypatch):
    from dicomguard.scoring.scorer import Scorer

    def fails(*_):
        raise ValueError("out of tune")

    desk = Desk(tmp_path, **section(small[0]))
    send_patient(desk, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "score", fails)
        desk.screen()
        (decision,) = decisions(desk)
        assert [r.value for r in decision.reasons] == ["model_fault"]
        out = tmp_path / "x.zip"
        assert export(desk, decision, out, "--with-instances")[2][0]["seeds"] == 2
        code, _, (found,) = from_file(desk, out, "--bundle", str(small[0]))
        assert (code, found["outcome"], found["recomputed"]) == (0, "agrees", 1)
    code, _, (found,) = from_file(desk, out, "--bundle", str(small[0]))
    assert (code, found["outcome"], found["recomputed"]) == (1, "differs", 1)


def test_a_row_that_was_edited_before_the_export_is_an_alarm(node, small, tmp_path):
    decision = scored(node)
    with sqlite3.connect(node.config.data_dir / "ledger.db") as database:
        database.execute("DROP TRIGGER decisions_no_update")
        database.execute("UPDATE decisions SET version = 7 WHERE decision_id = ?", (decision.decision_id,))
    database.close()
    assert export(node, decision, tmp_path / "x.zip", "--with-instances")[0] == 1
    code, _, (found,) = from_file(node, tmp_path / "x.zip", "--bundle", str(small[0]))
    assert (code, found["outcome"]) == (1, "altered")
    assert "decisions seq" in found["problems"][0]


def test_scores_that_no_version_wrote_differ(exported, small, tmp_path):
    desk, _, out = exported
    for number, change in enumerate(
        [
            lambda s: s.update(statistics=["x", None], worst={"frame": 1}),
            lambda s: s.update(thresholds="none", enrolment=None),
            lambda s: s.clear(),
        ]
    ):
        forged = forge(out, tmp_path / f"{number}.zip", lambda d, c=change: c(d["instances"][0]["scores"]))
        code, _, (found,) = from_file(desk, forged, "--bundle", str(small[0]))
        assert (code, found["outcome"] in {"differs", "other model"}) == (code, True), found
        assert code in {1, 3}


def _without(name):
    return lambda files: {n: c for n, c in files.items() if n != name}


def _with(name, content=b"x"):
    return lambda files: {**files, name: content}


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (_with("../../evil.dcm"), {"mend": True}),
        (_with("/etc/evil"), {"mend": True}),
        (_with("instances/../../evil"), {"mend": True}),
        (_with("instances\\..\\evil"), {"mend": True}),
        (_with("c:evil"), {"mend": True}),
        (_with("stranger.txt"), {}),
        (_without("manifest.json"), {}),
        (_without("decision.json"), {}),
        (_without("decision.json"), {"mend": True}),
        (_without("seeds.json"), {"mend": True}),
        (_with("manifest.json", b"{}"), {}),
        (_with("manifest.json", b"[]"), {}),
        (_with("manifest.json", b"\xff"), {}),
        (_with("manifest.json", b'{"format": "another", "files": {}}'), {}),
        (_with("manifest.json", b'{"format": "dicomguard evidence 1", "files": {"a": 1}}'), {}),
        (_with("decision.json", b"{}"), {"mend": True}),
        (_with("decision.json", b"null"), {"mend": True}),
        (_with("ledger.json", b"null"), {"mend": True}),
        (_with("ledger.json", b'{"rows": []}'), {"mend": True}),
        (_with("ledger.json", b'{"rows": [{"table": "decisions", "covered": {"row": 5}}]}'), {"mend": True}),
        (_with("seeds.json", b"[5]"), {"mend": True}),
        (_with("model.json", b'{"policy": {"overdue": 5}}'), {"mend": True}),
        (_with("seeds.json", b'[{"seed": "00"}]'), {"mend": True}),
        (_with("seeds.json", b'{"a": 1}'), {"mend": True}),
        (_with("model.json", b'{"policy": {"unknown": 1}}'), {"mend": True}),
        (_with("README.txt", b"another"), {}),
        (_with("manifest.json", b"[" * 100_000), {}),
        (_with("manifest.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), {}),
        (_with("decision.json", b"[" * 100_000 + b"]" * 100_000), {"mend": True}),
        (_with("decision.json", b'{"a":' * 100 + b"1" + b"}" * 100), {"mend": True}),
        (_with("seeds.json", b'[{"seed": "' + b"00" * 32 + b'", "frame": 1e999}]'), {"mend": True}),
        (_with("model/x/enrolment.json", b"[" * 100_000 + b"]" * 100_000), {"mend": True}),
        (lambda files: files, {"compression": zipfile.ZIP_DEFLATED}),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(exported, small, tmp_path, change, options):
    desk, _, out = exported
    forged = repack(out, tmp_path / "forged.zip", change, **options)
    with pytest.raises(EvidenceError) as refused:
        from_file(desk, forged, "--bundle", str(small[0]))
    assert str(forged) in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["forged.zip"]


def test_words_of_a_file_do_nothing_to_the_terminal(exported, small, tmp_path):
    desk, _, out = exported
    words = "\x1b]0;title\x07\x1b[2J\r\u202eAGREES\nall is well"

    def change(decision):
        for instance in decision["instances"]:
            instance["bundle"] = instance["fingerprint"] = words

    forged = forge(out, tmp_path / "forged.zip", change)
    code, text, _ = desk.run("reproduce", "--from", str(forged), "--bundle", str(small[0]))
    assert code == 3
    assert r"\x1b]0;title\x07\x1b[2J\r\u202eAGREES\nall is well" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\nall" not in text


def test_a_file_that_was_cut_off_is_refused_wherever_that_was(exported, tmp_path):
    desk, _, out = exported
    whole = out.read_bytes()
    for part in (0, 1, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:part])
        with pytest.raises(EvidenceError):
            from_file(desk, tmp_path / "cut.zip")
    with pytest.raises(EvidenceError, match="cannot be opened"):
        from_file(desk, tmp_path / "nowhere.zip")


def test_one_flipped_bit_anywhere_is_refused_or_changes_nothing(exported, tmp_path):
    """Not in the comments of a zip's headers, which say nothing; but whatever is read must be what was written."""
    _, _, out = exported
    whole = out.read_bytes()
    with Archive(out) as archive:
        wanted = {name: archive._content(name) for name in archive.names}
    refused = 0
    for position in range(0, len(whole), max(len(whole) // 300, 1)):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        (tmp_path / "x.zip").write_bytes(flipped)
        try:
            with Archive(tmp_path / "x.zip") as archive:
                archive.check()
                assert {name: archive._content(name) for name in archive.names} == wanted
        except EvidenceError:
            refused += 1
    assert refused > 200


def test_an_enrolment_that_fits_no_bundle_is_refused(node, tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "enrolment.json").write_text('{"fingerprint": "aaaa"}')
    with pytest.raises(BundleError, match="--bundle"):
        node.run("reproduce", "--all", "--enrolment", str(tmp_path / "e"))
    with pytest.raises(BundleError, match="no enrolment"):
        node.run("reproduce", "--all", "--enrolment", str(Path("nowhere")))


def test_names_and_headers_that_no_program_writes_are_refused(exported, tmp_path):
    _, _, out = exported
    whole = out.read_bytes()
    with Archive(out) as archive:
        where = {info.filename: info.header_offset for info in archive._zip.infolist()}
    offset = where["seeds.json"]
    for number, (at, value) in enumerate([(offset + 30, b"\xff"), (offset + 7, b"\x08"), (offset + 28, b"\xff\xff")]):
        forged = bytearray(whole)
        forged[at : at + len(value)] = value
        (tmp_path / f"{number}.zip").write_bytes(forged)
        with Archive(tmp_path / f"{number}.zip") as archive:
            if number == 1:
                forged[offset + 30] = 0xFF  # with the bit that says UTF-8, a name that is none
                (tmp_path / "1.zip").write_bytes(forged)
        with pytest.raises(EvidenceError), Archive(tmp_path / f"{number}.zip") as archive:
            archive.check()
