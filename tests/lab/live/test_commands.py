"""The commands as a researcher types them, on the real screener and a small bundle, without a network."""

import json
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from dicomguard.cli.app import app
from dicomguard.errors import ConfigError, DicomguardError, LedgerError
from dicomguard.lab.live import manifest
from dicomguard.lab.live.sources import opened
from dicomguard.ledger.snapshot import snapshot
from dicomguard.pixels.sandbox import DecodeWorker
from tests.cli.conftest import Desk
from tests.cli.enrolled import write_enrolled
from tests.lab.live.made import STRONG, phantoms


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_enrolled(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def forged(bundle, tmp_path_factory):
    """Six studies, one of two images, attacked and clean; the manifest."""
    folder = tmp_path_factory.mktemp("forged")
    phantoms(folder / "clean", 5, first=20)
    phantoms(folder / "clean", 1, first=30, images=2)
    words = ("--clean", folder / "clean", "--out", folder / "set", "--attack", STRONG, "--with-clean", "--keep-failed")
    code, _, (summary,) = run("lab", "forge", bundle, *words, "--json")
    assert code == 0
    assert (summary["rows"], summary["sent"], summary["clean"]) == (14, 14, 7)
    return folder / "set" / "manifest.jsonl"


@pytest.fixture
def desk(tmp_path, bundle):
    return Desk(tmp_path, bundles=[{"path": str(bundle)}])


def send(desk, path, rows):
    with DecodeWorker() as worker:
        for row in rows:
            source = opened(path.parent / row.path, worker)
            data = source.path.read_bytes()[source.data_offset :]
            header = source.header
            uids = (str(header.sop_instance_uid), str(header.study_instance_uid))
            others = {"series": str(header.series_instance_uid), "sop_class": str(header.sop_class_uid)}
            desk.put(data, *uids, **others, syntax=str(header.transfer_syntax_uid))


def test_every_file_is_accounted_for_and_comes_out_the_same_offline(desk, forged):
    desk.screen()
    send(desk, forged, manifest.read(forged))
    code, _, (waiting,) = desk.run("lab", "join", str(forged), "--json")
    assert (code, waiting["statuses"]["waiting"]) == (1, 14)
    desk.screen()
    code, _, (joined,) = desk.run("lab", "join", str(forged), "--out", str(desk.path.parent / "joined"), "--json")
    assert code == 0
    assert (joined["files"], joined["accounted"]) == (14, 14)
    assert joined["statuses"]["forwarded"] + joined["statuses"]["quarantined"] == 14
    assert joined["clean"]["scored"] == 7
    assert joined["latency"]["decisions"] == 12
    written = json.loads((desk.path.parent / "joined" / "join.json").read_text())
    assert [one["accounted"] for one in written["of_files"]] == [True] * 14
    assert {path.name for path in (desk.path.parent / "joined").iterdir()} == {"join.json", "join.md", "join.png"}
    code, _, (again,) = desk.run("lab", "offline", str(forged), "--json")
    assert code == 0
    assert (again["agree"], again["decisions"], again["instances_recomputed"]) == (12, 12, 14)
    assert again["largest_distance"] < 0.001


def test_a_ledger_file_and_its_key_do_as_well(desk, forged, bundle):
    send(desk, forged, manifest.read(forged)[:3])
    desk.screen()
    ledger = ("--ledger", desk.config.data_dir / "ledger.db")
    code, _, (joined,) = run("lab", "join", forged, *ledger, "--json")
    assert (code, joined["accounted"], joined["statuses"]["never arrived"]) == (1, 3, 11)
    assert "3 of 14 files" in run("lab", "join", forged, *ledger)[1]
    code, _, (again,) = run("lab", "offline", forged, *ledger, "--bundle", bundle, "--json")
    assert (code, again["agree"], again["not_decided_by_the_node"]) == (1, 3, 11)
    with pytest.raises(ConfigError, match="No bundle"):
        run("lab", "offline", forged, *ledger)
    (desk.config.data_dir / "keys" / "site.key").rename(desk.path.parent / "elsewhere.key")
    with pytest.raises(ConfigError, match="--site-key"):
        run("lab", "join", forged, *ledger)
    assert run("lab", "join", forged, *ledger, "--site-key", desk.path.parent / "elsewhere.key")[0] == 1


def test_a_ledger_that_is_evidence_is_only_read(desk, forged, tmp_path):
    send(desk, forged, manifest.read(forged)[:3])
    desk.screen()
    key = ("--site-key", desk.config.data_dir / "keys" / "site.key", "--json")
    media = tmp_path / "media"
    media.mkdir()
    with closing(sqlite3.connect(desk.config.data_dir / "ledger.db")) as ledger:
        ledger.execute("VACUUM INTO ?", (str(media / "ledger.db"),))
    with closing(sqlite3.connect(media / "ledger.db")) as copy:
        copy.execute("PRAGMA journal_mode=WAL")
    before = (media / "ledger.db").read_bytes()
    code, _, (joined,) = run("lab", "join", forged, "--ledger", media / "ledger.db", *key)
    assert (code, joined["accounted"]) == (1, 3)
    assert (media / "ledger.db").read_bytes() == before
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(LedgerError, match="is no ledger"):
        run("lab", "join", forged, "--ledger", empty, *key)
    assert empty.stat().st_size == 0
    empty.write_text("no database, but text of some length" * 100)
    with pytest.raises(LedgerError, match="cannot be read"):
        run("lab", "join", forged, "--ledger", empty, *key)


def test_a_ledger_is_read_from_where_nothing_can_be_written(desk, forged, tmp_path, monkeypatch):
    """As SQLite answers on read-only media: a database in WAL mode opens only if it is said never to change."""
    send(desk, forged, manifest.read(forged)[:1])
    desk.screen()
    asked = []

    def connect(name, **options):
        if str(name).endswith("?mode=ro"):
            asked.append(name)
            raise sqlite3.OperationalError("unable to open database file")
        return real(name, **options)

    real = sqlite3.connect
    ledger = desk.config.data_dir / "ledger.db"
    monkeypatch.setattr("dicomguard.ledger.snapshot.sqlite3.connect", connect)
    copy = snapshot(ledger, tmp_path)
    assert asked
    assert copy.stat().st_size == ledger.stat().st_size
    ledger.with_name("ledger.db-wal").write_bytes(b"decisions that are not in the file yet")
    with pytest.raises(LedgerError, match=r"ledger\.db-wal"):
        snapshot(ledger, tmp_path)


def test_only_the_images_that_a_configuration_sends_to_the_bundle_are_forged(bundle, tmp_path):
    clean = phantoms(tmp_path / "clean", 2)
    desk = Desk(tmp_path, bundles=[{"path": str(bundle), "match": {"Modality": "MR"}}])
    words = ("lab", "forge", str(bundle), "--clean", str(clean), "--with-clean", "--json", "--out")
    with pytest.raises(DicomguardError, match="its Modality is none of MR"):
        desk.run(*words, str(tmp_path / "set"))
    code, _, (made,) = desk.run(*words, str(tmp_path / "set"), "--match", "Modality=DX")
    assert (code, made["match"], made["sent"]) == (0, {"Modality": ["DX"]}, 2)
    (tmp_path / "other").mkdir()
    other = Desk(tmp_path / "other", bundles=[{"path": str(bundle), "match": {"Modality": "DX"}}])
    code, _, (made,) = other.run(*words, str(tmp_path / "another set"))
    assert (code, made["match"], made["sent"]) == (0, {"Modality": ["DX"]}, 2)
    (tmp_path / "twice").mkdir()
    entries = [{"path": str(bundle), "match": {"Modality": kind}} for kind in ("DX", "CR")]
    with pytest.raises(ConfigError, match="2 times"):
        Desk(tmp_path / "twice", bundles=entries).run(*words, str(tmp_path / "a third set"))


def test_offline_notices_another_decision_and_another_file(desk, forged, bundle, tmp_path):
    rows = [row for row in manifest.read(forged) if row.truth == "clean"][:2]
    send(desk, forged, rows)
    desk.screen()
    other = write_enrolled(tmp_path / "other", seed=3)
    words = ("--ledger", desk.config.data_dir / "ledger.db", "--json")
    copy = tmp_path / "set"
    for row in rows:
        (copy / row.path).parent.mkdir(parents=True, exist_ok=True)
        (copy / row.path).write_bytes((forged.parent / row.path).read_bytes())
    manifest.write(copy / "manifest.jsonl", rows)
    assert run("lab", "offline", copy / "manifest.jsonl", "--bundle", bundle, *words)[0] == 0
    code, _, (again,) = run("lab", "offline", copy / "manifest.jsonl", "--bundle", other, *words)
    assert (code, again["outcomes"]) == (1, {"other model": 2})
    data = bytearray((copy / rows[0].path).read_bytes())
    data[-100] ^= 1
    (copy / rows[0].path).write_bytes(bytes(data))
    (copy / rows[1].path).unlink()
    code, _, (again,) = run("lab", "offline", copy / "manifest.jsonl", "--bundle", bundle, *words)
    assert (code, again["outcomes"]) == (1, {"altered": 1, "missing": 1})


def test_offline_needs_something_that_was_decided(desk, forged):
    desk.screen()
    with pytest.raises(DicomguardError, match="no decision about a file"):
        desk.run("lab", "offline", str(forged))


@pytest.mark.parametrize("command", ["join", "offline"])
def test_a_ledger_must_be_named(forged, command, monkeypatch):
    monkeypatch.delenv("DICOMGUARD_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="No ledger"):
        run("lab", command, forged)


def test_what_cannot_be_forged_is_said_before_anything_is_done(bundle, tmp_path):
    clean = phantoms(tmp_path / "clean", 1)
    words = ("lab", "forge", bundle, "--clean", clean, "--out")
    for wrong, said in (
        ((tmp_path / "set", "--attack", "magic"), "magic"),
        ((tmp_path / "set",), "name at least one"),
        ((clean / "set", "--attack", STRONG), "folders apart"),
        ((tmp_path / "set", "--attack", STRONG, "--match", "Modality"), "Modality=CR"),
        ((tmp_path / "set", "--attack", STRONG, "--match", "Mode=CR"), "Modality=CR"),
    ):
        code, output, _ = run(*words, *wrong)
        assert code == 2
        assert said in " ".join(output.split())
    assert not (tmp_path / "set").exists()


def test_attacks_that_change_nothing_are_said_to_be(bundle, tmp_path, monkeypatch):
    from dicomguard.attacks.attacked import Attacked
    from dicomguard.lab.live import attacks

    monkeypatch.setattr(attacks, "SUITE", {"idle": lambda margins, pixels, seeds, **_: Attacked.untried(pixels)})
    clean = phantoms(tmp_path / "clean", 1)
    words = ("lab", "forge", bundle, "--clean", clean, "--out", tmp_path / "set", "--attack", "idle")
    code, output, _ = run(*words)
    assert code == 1
    assert "No attack changed an answer" in output
    (row,) = manifest.read(tmp_path / "set" / "manifest.jsonl")
    assert (row.path, row.flipped) == (None, False)
