import errno
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicomguard import phantom
from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.suite import SUITE
from dicomguard.errors import DicomguardError
from dicomguard.lab.live import forging, manifest, sources
from dicomguard.pixels.reader import images
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.scoring.scorer import Scorer
from tests.lab.live.made import STRONG, forge, many_frames, phantoms, wishes
from tests.scoring.small import write_small

DCIODVFY = Path("/usr/bin/dciodvfy")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return Scorer.load(write_small(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Four studies of two images each."""
    return phantoms(tmp_path_factory.mktemp("clean"), 4, images=2)


@pytest.fixture(scope="module")
def forged(scorer, clean, tmp_path_factory):
    out = tmp_path_factory.mktemp("set")
    return out, forge(scorer, clean, out, wishes(STRONG, with_clean=True))


def answer(scorer, dataset):
    (odds,) = scorer.answer(scorer.prepare(images(dataset)).pixels).log_odds
    return scorer.head.name(tuple(int(c) for c in odds.argmax(-1)))


def files(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.dcm")}


def test_the_manifest_is_true_of_every_file(scorer, forged):
    out, made = forged
    rows = manifest.read(made.manifest)
    assert rows == list(made.rows)
    attacked = [row for row in rows if row.truth == "attacked"]
    assert len(rows) == 16
    assert len(attacked) == 8
    assert {Path(row.path) for row in rows if row.is_sent} == set(files(out))
    assert sum(row.flipped for row in attacked) > 2  # else nothing below says anything
    by_uid = {row.sop_instance_uid: row for row in rows}
    for path in files(out):
        dataset = dcmread(out / path)
        row = by_uid[str(dataset.SOPInstanceUID)]
        assert row.study_instance_uid == dataset.StudyInstanceUID
        assert row.series_instance_uid == dataset.SeriesInstanceUID
        assert answer(scorer, dataset) == row.answer_after_rounding
        assert row.fingerprint == scorer.fingerprint
        if row.truth == "attacked":
            assert row.flipped
            assert row.answer_after_rounding != row.answer_clean
            assert row.eps == 0.016
            assert row.settings["eps"] == 0.016
            assert 0 < row.moved <= 0.016 + 1 / 4095


def test_a_forged_study_is_a_study(forged, clean):
    out, made = forged
    source = {str(d.SOPInstanceUID): d for d in map(dcmread, clean.iterdir())}
    taken = {uid for d in source.values() for uid in (d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID)}
    studies = {}
    for row in made.rows:
        dataset = dcmread(out / row.path) if row.path else None
        studies.setdefault((row.truth, row.source_study_instance_uid), set()).add(row.study_instance_uid)
        if dataset is None:
            continue
        original = source[row.source_sop_instance_uid]
        assert {dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID}.isdisjoint(taken)
        assert (dataset.InstanceNumber, dataset.PatientID) == (original.InstanceNumber, original.PatientID)
        if row.truth == "attacked":
            assert dataset.ImageType[0] == "DERIVED"
            assert "adversarial test object" in dataset.DerivationDescription
            (reference,) = dataset.SourceImageSequence
            assert reference.ReferencedSOPInstanceUID == original.SOPInstanceUID
        else:
            assert dataset.PixelData == original.PixelData
            assert "copy" in dataset.ContributingEquipmentSequence[0].ContributionDescription
    assert len(studies) == 8
    assert all(len(uids) == 1 for uids in studies.values())
    assert len(set.union(*studies.values())) == 8


@pytest.mark.peer
@pytest.mark.skipif(not DCIODVFY.exists(), reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_finds_nothing_wrong(forged):
    out, _ = forged
    assert files(out)
    for path in files(out):
        told = subprocess.run([DCIODVFY, "-new", out / path], capture_output=True, text=True, check=False)
        assert told.returncode == 0
        assert "Error" not in told.stderr + told.stdout
        assert "Warning" not in told.stderr + told.stdout


def test_every_frame_is_attacked_and_counted(scorer, tmp_path):
    many_frames(tmp_path / "clean" / "a.dcm", 0, 10)
    made = forge(scorer, tmp_path / "clean", tmp_path / "set", wishes(STRONG))
    (row,) = made.rows
    (source, result) = (images(dcmread(p)) for p in (tmp_path / "clean" / "a.dcm", tmp_path / "set" / row.path))
    assert row.frames == len(result) == 10
    moved = [np.abs(a.pixels - b.pixels).max() for a, b in zip(source, result, strict=True)]
    assert all(0 < m <= 0.016 + 1 / 4095 for m in moved)
    assert row.moved == pytest.approx(max(moved), abs=1e-6)
    assert 0 < row.flipped_frames <= 10


def test_an_attack_that_dies_in_rounding_is_not_sent(scorer, clean, tmp_path):
    def feeble(margins, pixels, seeds, *, chunk=8):
        """Says that it flipped, and moves nothing that could be stored."""
        found = Attacked.untried(pixels)
        found.flipped[:] = True
        return found

    wanted = replace(wishes(STRONG), attacks={"feeble": feeble})
    made = forge(scorer, clean, tmp_path / "a", wanted)
    assert [(row.path, row.flipped, row.eps) for row in made.rows] == [(None, False, None)] * 8
    assert files(tmp_path / "a") == {}
    kept = forge(scorer, clean, tmp_path / "b", replace(wanted, keep_failed=True))
    assert {Path(row.path) for row in kept.rows} == set(files(tmp_path / "b"))
    assert len(files(tmp_path / "b")) == 8
    assert not any(row.flipped for row in kept.rows)


class Counting:
    """The strong attack, which counts its images and is interrupted at one of its calls."""

    def __init__(self, stop_at=None):
        self.calls, self.images, self.stop_at = 0, 0, stop_at

    def __call__(self, margins, pixels, seeds, *, chunk=8):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.images += len(pixels)
        return SUITE[STRONG](margins, pixels, seeds, chunk=chunk)


def test_what_was_interrupted_goes_on_and_comes_out_the_same(scorer, tmp_path):
    clean = phantoms(tmp_path / "clean", 10)
    whole, first, second = Counting(), Counting(stop_at=2), Counting()
    at_once = forge(scorer, clean, tmp_path / "a", replace(wishes(STRONG), attacks={"x": whole}))
    assert (whole.calls, whole.images) == (2, 10)
    with pytest.raises(KeyboardInterrupt):
        forge(scorer, clean, tmp_path / "b", replace(wishes(STRONG), attacks={"x": first}))
    assert not (tmp_path / "b" / "manifest.jsonl").exists()
    with (tmp_path / "b" / "made.jsonl").open("a") as file:
        file.write('{"key": "torn')
    resumed = forge(scorer, clean, tmp_path / "b", replace(wishes(STRONG), attacks={"x": second}))
    assert second.images == 2
    assert resumed.rows == at_once.rows
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_more_can_be_added_and_what_was_lost_is_made_again(scorer, tmp_path):
    clean = phantoms(tmp_path / "clean", 3)
    counting = Counting()
    wanted = replace(wishes(STRONG), attacks={"x": counting}, limit=2)
    before = forge(scorer, clean, tmp_path / "a", wanted)
    assert counting.images == 2
    lost, cut = (tmp_path / "a" / row.path for row in before.rows if row.path)
    lost.unlink()
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-40])
    after = forge(scorer, clean, tmp_path / "a", replace(wanted, limit=None, with_clean=True))
    assert counting.images == 5
    assert cut.read_bytes() == whole
    assert len(after.rows) == 6
    assert [row for row in after.rows if row in before.rows] == list(before.rows)


def test_a_folder_belongs_to_one_set(scorer, tmp_path):
    clean = phantoms(tmp_path / "clean", 1)
    forge(scorer, clean, tmp_path / "a", wishes(with_clean=True))
    with pytest.raises(DicomguardError, match="another forged set; this one differs in seed"):
        forge(scorer, clean, tmp_path / "a", wishes(with_clean=True, seed=1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("keep me")
    with pytest.raises(DicomguardError, match="no forged set"):
        forge(scorer, clean, tmp_path / "b", wishes(with_clean=True))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine.txt"]


def test_another_seed_makes_other_studies(scorer, tmp_path):
    clean = phantoms(tmp_path / "clean", 1)
    made = [forge(scorer, clean, tmp_path / str(n), wishes(with_clean=True, seed=n)).rows[0] for n in (0, 1)]
    assert made[0].study_instance_uid != made[1].study_instance_uid


def test_one_bad_file_does_not_stop_the_others(scorer, tmp_path):
    clean = phantoms(tmp_path / "clean", 2)
    bent = phantom.make(7, opacity=True, rows=64, columns=64)
    bent.VOILUTFunction = "SIGMOID"
    bent.save_as(clean / "bent.dcm", enforce_file_format=True)
    (clean / "text.dcm").write_text("hello")
    whole = (clean / "0-1.dcm").read_bytes()
    (clean / "copy.dcm").write_bytes(whole)
    (clean / "cut.dcm").write_bytes(whole[:4000])
    made = forge(scorer, clean, tmp_path / "a", wishes(STRONG))
    assert len(made.rows) == 2
    why = {one.path.name: one.why for one in made.refused}
    assert set(why) == {"bent.dcm", "text.dcm", "copy.dcm", "cut.dcm"}
    assert "has no inverse" in why["bent.dcm"]
    assert "is that of 0-1.dcm" in why["copy.dcm"]
    assert why["cut.dcm"].startswith("truncated")


def test_nothing_to_forge_says_why(scorer, tmp_path):
    bent = phantom.make(7, opacity=True, rows=64, columns=64)
    bent.VOILUTFunction = "SIGMOID"
    (tmp_path / "clean").mkdir()
    bent.save_as(tmp_path / "clean" / "bent.dcm", enforce_file_format=True)
    with pytest.raises(DicomguardError, match=r"Nothing could be forged.*no inverse"):
        forge(scorer, tmp_path / "clean", tmp_path / "a", wishes(STRONG))
    assert not (tmp_path / "a" / "manifest.jsonl").exists()


def test_images_for_another_bundle_are_left_out(tmp_path):
    clean = phantoms(tmp_path / "clean", 2)
    with DecodeWorker() as worker:
        found = sources.find(clean, worker, {"Modality": ["DX", "CR"]}, lambda *_: None)
        assert len(found.studies) == 2
        with pytest.raises(DicomguardError, match="is none of MR"):
            sources.find(clean, worker, {"Modality": ["MR"]}, lambda *_: None)
        with pytest.raises(DicomguardError, match="None of the 0 files"):
            sources.find(tmp_path / "empty", worker, {}, lambda *_: None)


@pytest.mark.parametrize("after", [0, 1], ids=["at once", "later"])
def test_a_full_disk_ends_it_and_loses_nothing(scorer, tmp_path, monkeypatch, after):
    clean = phantoms(tmp_path / "clean", 3)
    write, written = forging.dcmwrite, []

    def full(path, dataset, **options):
        if len(written) == after:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, dataset, **options)

    monkeypatch.setattr(forging, "dcmwrite", full)
    with pytest.raises(DicomguardError, match=r"No space left on device.*make room"):
        forge(scorer, clean, tmp_path / "a", wishes(with_clean=True))
    assert not (tmp_path / "a" / "manifest.jsonl").exists()
    assert list((tmp_path / "a").glob("*.partial")) == []
    assert len(files(tmp_path / "a")) == after
    monkeypatch.undo()
    assert len(forge(scorer, clean, tmp_path / "a", wishes(with_clean=True)).rows) == 3


def test_a_network_that_fails_on_one_image_is_not_asked_for_the_set(scorer, tmp_path):
    clean = phantoms(tmp_path / "clean", 3)

    def picky(margins, pixels, seeds, *, chunk=8):
        if len(seeds) != 1 or seeds == bad:
            raise DicomguardError("The network cannot be attacked: a margin is not a finite number.")
        return SUITE[STRONG](margins, pixels, seeds, chunk=chunk)

    seen = []
    wanted = replace(
        wishes(STRONG), attacks={"x": lambda m, p, seeds, **_: seen.append(seeds) or SUITE[STRONG](m, p, seeds)}
    )
    forge(scorer, clean, tmp_path / "a", wanted)
    bad = seen[0][1:2]
    made = forge(scorer, clean, tmp_path / "b", replace(wanted, attacks={"x": picky}))
    assert [one.path.name for one in made.refused] == ["1-1.dcm"]
    assert len(made.rows) == 2
