"""`dicomguard enrol`, and what a node may do with what came of it."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from dicomguard import phantom
from dicomguard.cli import compose
from dicomguard.cli.app import app
from dicomguard.cli.enrolling import _match, _read_labels
from dicomguard.config import load
from dicomguard.errors import BundleError
from dicomguard.scoring.head import Head, HeadKind
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import enrol_small, write_small

FINDINGS = Head(HeadKind.MULTILABEL, ("effusion", "mass", "nodule"))


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.set_num_threads(1)
    return write_small(tmp_path_factory.mktemp("enrol"), size=16, repeats=2)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


def phantoms(folder, count, first=0):
    folder.mkdir(exist_ok=True)
    for seed in range(first, first + count):
        made = phantom.make(seed, opacity=seed % 2 == 0, rows=64, columns=64)
        made.PatientID = f"P{seed}"
        made.save_as(folder / f"{seed}.dcm", enforce_file_format=True)
    return folder


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_files_becomes_an_enrolment(copy, tmp_path):
    clean = phantoms(tmp_path / "clean", 200)
    (clean / "README").write_text("no DICOM")
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((f"{n}.dcm", "opacity") for n in range(0, 200, 2))])
    words = ["--alpha", "0.1", "--eps", "0", "--labels", labels, "--json"]
    code, _, (made,) = run("enrol", copy, "--clean", clean, *words)
    assert code == 0
    assert made["clean_set"]["images"] == made["clean_set"]["patients"] == 200
    assert (made["clean_set"]["left_out"], made["clean_set"]["unreadable"]) == (0, 1)
    assert made["clean_set"]["source"] == "200 images of this site"
    parts = [made["clean_set"][name] for name in ("distilled", "validation", "reference", "held_back")]
    assert sum(parts) == 200
    assert min(parts) > 0
    assert (made["alpha"], made["guard"], made["certified"]) == (0.1, None, [])
    assert len(made["self_test"]) == 3
    assert made["armed"] == ("enforce" if not made["refusal"] else "shadow")
    code, _, (shown,) = run("enrol", copy, "--show", "--json")
    assert (code, shown) == (0, made)
    code, page, _ = run("enrol", copy, "--show")
    assert code == 0
    assert "What dicomguard promises for small" in page
    assert "None: this bundle was enrolled without a guard" in page
    assert Scorer.load(copy).enrolment is not None

    # Elsewhere, and the same clean set under other names: the hash of what was trusted is the same.
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, path in enumerate(sorted(clean.glob("*.dcm"), reverse=True)):
        shutil.copy(path, moved / f"copy-{number}")
    shutil.copy(clean / "3.dcm", moved / "twice")
    out = tmp_path / "elsewhere"
    code, _, (again,) = run("enrol", copy, "--clean", moved, "--out", out, "--alpha", "0.1", "--eps", "0", "--json")
    assert code == 0
    assert again["clean_set"]["sha256"] == made["clean_set"]["sha256"]
    assert again["clean_set"]["images"] == 200
    assert (out / "enrolment.json").exists()
    assert run("enrol", copy, "--show", "--out", out, "--json")[2] == [again]


def test_too_few_images_are_refused_with_the_numbers(copy, tmp_path):
    clean = phantoms(tmp_path / "clean", 12)
    with pytest.raises(
        BundleError, match=r"too few to calibrate at alpha 0\.05: \d+ for reference \(20 needed\)"
    ) as raised:
        run("enrol", copy, "--clean", clean, "--json")
    assert "held back (19 needed)" in str(raised.value)
    assert not (copy / "enrolment").exists()


def test_a_folder_without_images_is_named(copy, tmp_path):
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "notes.txt").write_text("nothing")
    with pytest.raises(BundleError, match="no readable DICOM image") as raised:
        run("enrol", copy, "--clean", tmp_path / "clean", "--json")
    assert raised.value.advice


def test_a_bundle_that_was_never_enrolled_has_nothing_to_show(copy):
    with pytest.raises(BundleError, match="is not enrolled") as raised:
        run("enrol", copy, "--show")
    assert "--clean" in raised.value.advice


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="nothing"),
        pytest.param(["--clean", ".", "--show"], id="both"),
        pytest.param(["--clean", "nowhere"], id="no-folder"),
        pytest.param(["--clean", ".", "--window", "3"], id="one-number"),
        pytest.param(["--clean", ".", "--window", "3,x"], id="no-number"),
        pytest.param(["--clean", ".", "--window", "3,-3"], id="upside-down"),
        pytest.param(["--clean", ".", "--alpha", "0"], id="alpha"),
        pytest.param(["--clean", ".", "--eps", "-1"], id="eps"),
    ],
)
def test_bad_usage_exits_with_2(copy, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert run("enrol", copy, *words)[0] == 2


# Labels --------------------------------------------------------------------------------------------------------------


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_labels_are_read_for_each_file(tmp_path):
    path = table(tmp_path, "file,label\na/1.dcm,mass|effusion\n2.dcm, nodule \n3.dcm,\n")
    assert _read_labels(path, FINDINGS) == {"a/1.dcm": (1, 1, 0), "2.dcm": (0, 0, 1), "3.dcm": (0, 0, 0)}


def test_a_label_is_for_the_only_file_of_that_name_or_for_a_path(tmp_path):
    files = [tmp_path / name for name in ("a/1.dcm", "b/1.dcm", "b/2.dcm")]
    read = {"a/1.dcm": (1,), "b/1.dcm": (0,), "2.dcm": (1,), "elsewhere.dcm": (0,)}
    assert _match(Path("t.csv"), read, tmp_path, files) == dict(zip(files, [(1,), (0,), (1,)], strict=True))
    with pytest.raises(BundleError, match="the name of 2 files"):
        _match(Path("t.csv"), {"1.dcm": (1,)}, tmp_path, files)
    with pytest.raises(BundleError, match="names no file"):
        _match(Path("t.csv"), {"3.dcm": (1,)}, tmp_path, files)


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    assert _read_labels(table(tmp_path, "file,label\r\n1.dcm,mass\r\n", "utf-8-sig"), FINDINGS) == {"1.dcm": (0, 1, 0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\n1.dcm,mass\n", "lacks the columns file,label"),
        ("", "lacks the columns file,label"),
        ("file,label\n1.dcm,mass\n2.dcm,tumour\n", "line 3: 'tumour' is none of the labels"),
        ("label,file\nmass\n", "line 2: there is no file"),
        ("file,label\n1.dcm,mass\n1.dcm,mass\n1.dcm,nodule\n", "line 4: 1.dcm has another label"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(tmp_path, text, words):
    with pytest.raises(BundleError, match=words) as raised:
        _read_labels(table(tmp_path, text), FINDINGS)
    assert raised.value.advice


def test_a_table_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(b"file,label\n\xff\xfe\xff,mass\n")
    with pytest.raises(BundleError, match="is no CSV"):
        _read_labels(path, FINDINGS)


# What a node may do with it ------------------------------------------------------------------------------------------


def node(tmp_path, bundle, *, mode="enforce", certificate="record", **entry):
    path = tmp_path / "node.yaml"
    config = {
        "data_dir": str(tmp_path / "data"),
        "bundles": [{"path": str(bundle), "mode": mode, **entry}],
        "policy": {"certificate": certificate},
    }
    path.write_text(json.dumps(config))
    return load(path, {})


def test_a_node_refuses_to_enforce_what_was_never_enrolled(bundle, tmp_path):
    with pytest.raises(BundleError, match="was never enrolled") as raised:
        compose.load_models(node(tmp_path, bundle))
    assert "dicomguard enrol" in raised.value.advice
    (model,) = compose.load_models(node(tmp_path, bundle, mode="shadow"))
    assert model.mode == "shadow"
    assert model.scorer.thresholds is None


def test_a_node_refuses_to_enforce_what_failed_its_self_test(copy, tmp_path):
    enrol_small(copy, armed="shadow", refusal="the check does not see 'PGD 0.004'.")
    with pytest.raises(BundleError, match="does not see 'PGD"):
        compose.load_models(node(tmp_path, copy))
    assert len(compose.load_models(node(tmp_path, copy, mode="shadow"))) == 1


def test_a_required_certificate_needs_a_guard(copy, tmp_path):
    enrol_small(copy, guard=None)
    assert len(compose.load_models(node(tmp_path, copy))) == 1
    with pytest.raises(BundleError, match="enrolled without a guard") as raised:
        compose.load_models(node(tmp_path, copy, certificate="require"))
    assert "record" in raised.value.advice
    assert len(compose.load_models(node(tmp_path, copy, mode="shadow", certificate="require"))) == 1
    enrol_small(copy)
    (model,) = compose.load_models(node(tmp_path, copy, certificate="require"))
    assert model.scorer.guard is not None


def test_an_enrolment_of_another_bundle_stops_the_node_in_every_mode(copy, tmp_path):
    enrol_small(copy)
    other = write_small(tmp_path / "other", seed=1, size=16, repeats=2)
    for mode in ("enforce", "shadow"):
        with pytest.raises(BundleError, match="belongs to the fingerprint"):
            compose.load_models(node(tmp_path, other, mode=mode, enrolment=str(copy / "enrolment")))


def test_a_pinned_fingerprint_is_held_to(copy, tmp_path):
    enrol_small(copy)
    fingerprint = Scorer.load(copy).fingerprint
    assert len(compose.load_models(node(tmp_path, copy, fingerprint=fingerprint))) == 1
    with pytest.raises(BundleError, match="the configuration pins"):
        compose.load_models(node(tmp_path, copy, fingerprint="0" * 64))


def test_the_command_line_has_the_command():
    assert "enrol" in typer.main.get_command(app).commands
