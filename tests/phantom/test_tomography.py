import hashlib
import io
import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.phantom.tomograph import Noise
from dicomguard.pixels.reader import images

DCIODVFY = Path("/usr/bin/dciodvfy")


def encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def digest(seed: int, slices: int = 3) -> bytes:
    made = phantom.series(seed, slices=slices, rows=96, columns=96, opacity=True)
    return hashlib.sha256(b"".join(map(encoded, made))).digest()


def test_same_seed_gives_identical_bytes_and_another_seed_does_not() -> None:
    assert digest(5) == digest(5) != digest(6)


def test_a_series_shares_its_uids_and_steps_evenly_towards_the_feet() -> None:
    made = list(phantom.series(3, slices=6, rows=96, columns=128))
    assert [int(image.InstanceNumber) for image in made] == [1, 2, 3, 4, 5, 6]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({image[keyword].value for image in made}) == 1
    assert len({image.SOPInstanceUID for image in made}) == 6
    heights = [float(image.ImagePositionPatient[2]) for image in made]
    assert heights[0] == 0
    assert np.diff(heights) == pytest.approx([-50.0] * 5)
    assert [float(image.SliceLocation) for image in made] == heights
    assert {str(image.Modality) for image in made} == {"CT"}
    assert "PHANTOM" in made[0].PatientName


@pytest.mark.peer
@pytest.mark.skipif(not DCIODVFY.exists(), reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_and_dcentvfy_find_no_error(tmp_path: Path) -> None:
    paths = []
    for number, dataset in enumerate(phantom.series(11, slices=3, rows=128, columns=96, opacity=True)):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(encoded(dataset))
        told = subprocess.run([DCIODVFY, paths[-1]], capture_output=True, text=True, check=False)
        assert told.returncode == 0
        assert "Error" not in told.stderr + told.stdout
        assert "CTImage" in told.stderr
    told = subprocess.run([DCIODVFY.with_name("dcentvfy"), *paths], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_hounsfield_units_of_air_lung_soft_tissue_and_bone() -> None:
    scan = phantom.Tomography(4, slices=30, rows=256, columns=256, opacity=False)
    hounsfield = scan.stored(14).astype(float) - 1024
    assert hounsfield[:12].mean() == pytest.approx(-1000, abs=5)
    for low, high, share in ((-930, -700, 0.08), (0, 100, 0.08), (250, 700, 0.004)):
        assert ((hounsfield > low) & (hounsfield < high)).mean() > share


def test_neighbouring_slices_are_nearly_alike_and_distant_ones_are_not() -> None:
    for seed in range(4):
        scan = phantom.Tomography(seed, slices=300, rows=128, columns=128, opacity=False)
        planes = {index: scan.stored(index).astype(float).ravel() for index in (120, 121, 220)}
        near, far = (np.corrcoef(planes[120], planes[index])[0, 1] for index in (121, 220))
        assert near > 0.99
        assert far < 0.97 < near


def test_neighbouring_slices_share_noise_and_distant_ones_do_not() -> None:
    noise = Noise([1, 2], 256, 256)
    first, second, third, distant = (noise.at(index) for index in (5, 6, 7, 9))
    assert 0.55 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.75
    assert 0.1 < np.corrcoef(first.ravel(), third.ravel())[0, 1] < 0.25
    assert abs(np.corrcoef(first.ravel(), distant.ravel())[0, 1]) < 0.03
    assert 0.1 < np.corrcoef(first[:, 1:].ravel(), first[:, :-1].ravel())[0, 1] < 0.7


def test_a_slice_is_the_same_whichever_others_are_made() -> None:
    scans = [phantom.Tomography(2, slices=40, rows=96, columns=96, opacity=True) for _ in range(2)]
    in_order = [scans[0].stored(index) for index in range(12, 20)]
    backwards = [scans[1].stored(index) for index in reversed(range(12, 20))]
    assert all(np.array_equal(a, b) for a, b in zip(in_order, reversed(backwards), strict=True))


def test_an_opacity_fills_one_lung_where_its_slices_say_so_and_nowhere_else() -> None:
    for seed in range(6):
        without, with_it = (
            phantom.Tomography(seed, slices=60, rows=128, columns=128, opacity=opacity) for opacity in (False, True)
        )
        shown = [index for index in range(60) if with_it.shows_opacity(index)]
        assert 3 <= len(shown) <= 12
        assert shown == list(range(shown[0], shown[-1] + 1))
        assert not any(map(without.shows_opacity, range(60)))
        middle = shown[len(shown) // 2]
        difference = with_it.stored(middle).astype(float) - without.stored(middle).astype(float)
        changed = difference > 120
        assert 0.003 < changed.mean() < 0.06, f"seed {seed}"
        columns = np.flatnonzero(changed.sum(axis=0) > 2)
        assert columns.max() < 70 or columns.min() > 58, f"seed {seed}: both lungs changed"
        assert np.array_equal(with_it.stored(0), without.stored(0))


@given(
    seed=st.integers(0, 2**63),
    opacity=st.booleans(),
    slices=st.integers(1, 500),
    rows=st.integers(64, 90),
    columns=st.integers(64, 90),
)
@settings(max_examples=15, deadline=None)
def test_every_slice_reads_back_as_the_node_reads_it(
    seed: int, opacity: bool, slices: int, rows: int, columns: int
) -> None:
    for made in itertools.islice(phantom.series(seed, slices=slices, rows=rows, columns=columns, opacity=opacity), 2):
        (image,) = images(dcmread(io.BytesIO(encoded(made))))
        assert image.pixels.shape == (1, rows, columns)
        assert image.bits_stored == 12
        # The lung window, -1350 to 150 HU, whatever the picture's own extremes are.
        expected = np.clip((made.pixel_array - 1024.0 + 600.5) / 1499 + 0.5, 0, 1)
        assert np.abs(image.pixels[0] - expected).max() < 1e-5
        assert made.SOPInstanceUID.is_valid


@pytest.mark.parametrize(("slices", "rows"), [(0, 128), (5000, 128), (3, 16), (3, 2048)])
def test_impossible_sizes_are_refused(slices: int, rows: int) -> None:
    with pytest.raises(ValueError, match="1 to 4096 slices"):
        next(phantom.series(1, slices=slices, rows=rows, columns=128))
