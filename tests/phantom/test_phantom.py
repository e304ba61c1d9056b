import hashlib
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.phantom.detector import expose

DCIODVFY = Path("/usr/bin/dciodvfy")


def encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_same_seed_gives_identical_bytes_and_another_seed_does_not() -> None:
    digests = [
        hashlib.sha256(encoded(phantom.make(seed, opacity=True, rows=128, columns=128))).digest() for seed in (5, 5, 6)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("modality", ["CR", "DX"])
@pytest.mark.parametrize("opacity", [False, True], ids=["normal", "opacity"])
@pytest.mark.peer
@pytest.mark.skipif(not DCIODVFY.exists(), reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(tmp_path: Path, modality: phantom.Modality, opacity: bool) -> None:
    path = tmp_path / "phantom.dcm"
    path.write_bytes(encoded(phantom.make(11, opacity=opacity, rows=128, columns=96, modality=modality)))
    told = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    assert told.returncode == 0
    assert "Error" not in told.stderr + told.stdout
    assert {"CR": "CRImage", "DX": "DXImageForPresentation"}[modality] in told.stderr


def test_twelve_bits_that_never_clip_and_a_window_over_all_of_them() -> None:
    for seed in range(4):
        dataset = dcmread(io.BytesIO(encoded(phantom.make(seed, opacity=seed % 2 == 1, rows=256, columns=256))))
        stored = dataset.pixel_array
        assert stored.shape == (256, 256)
        assert 0 < stored.min() < 700
        assert 3000 < stored.max() < 4095
        assert (dataset.BitsStored, dataset.WindowCenter, dataset.WindowWidth) == (12, 2048, 4096)
        assert dataset.BurnedInAnnotation == "NO"
        assert str(dataset.PatientName).startswith("PHANTOM^")


def test_opacity_brightens_one_lung_and_leaves_the_rest() -> None:
    for seed in range(6):
        without, with_it = (
            phantom.make(seed, opacity=opacity, rows=256, columns=256).pixel_array.astype(float)
            for opacity in (False, True)
        )
        difference = with_it - without
        changed = difference > 60
        assert 0.004 < changed.mean() < 0.12, f"seed {seed}"
        assert difference[changed].mean() > 80
        columns = np.flatnonzero(changed.sum(axis=0) > 4)
        assert columns.max() < 140 or columns.min() > 116, f"seed {seed}: both lungs changed"


def test_noise_grows_with_attenuation_and_is_correlated() -> None:
    rng = np.random.default_rng(1)
    thin, thick = (expose(np.full((256, 256), t, dtype=np.float32), 2e4, rng).astype(float) - 260 for t in (1.0, 3.0))
    assert thick.std() > 2 * thin.std() > 0
    residual = thick - thick.mean()
    neighbour = (residual[:, 1:] * residual[:, :-1]).mean() / residual.var()
    distant = (residual[:, 8:] * residual[:, :-8]).mean() / residual.var()
    assert 0.2 < neighbour < 0.6
    assert abs(distant) < 0.05


def test_study_shares_its_uids_and_no_two_images_are_alike() -> None:
    images = phantom.study(3, opacity=True, images=3, rows=128, columns=128)
    assert [int(image.InstanceNumber) for image in images] == [1, 2, 3]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        assert len({image[keyword].value for image in images}) == 1
    assert len({image.SOPInstanceUID for image in images}) == 3
    assert len({bytes(image.PixelData) for image in images}) == 3


@given(
    seed=st.integers(0, 2**63),
    opacity=st.booleans(),
    rows=st.integers(64, 90),
    columns=st.integers(64, 90),
    modality=st.sampled_from(["CR", "DX"]),
)
@settings(max_examples=25, deadline=None)
def test_every_phantom_reads_back(
    seed: int, opacity: bool, rows: int, columns: int, modality: phantom.Modality
) -> None:
    made = phantom.make(seed, opacity=opacity, rows=rows, columns=columns, modality=modality)
    read = dcmread(io.BytesIO(encoded(made)))
    assert read.pixel_array.shape == (rows, columns)
    assert read.file_meta.MediaStorageSOPInstanceUID == read.SOPInstanceUID == made.SOPInstanceUID
    assert read.SOPInstanceUID.is_valid
    assert read.Modality == modality


def test_uids_differ_wherever_the_picture_does() -> None:
    variants = [
        phantom.make(1, opacity=opacity, rows=rows, columns=128, modality=modality)
        for opacity in (False, True)
        for rows in (128, 129)
        for modality in ("CR", "DX")
    ]
    assert len({variant.SOPInstanceUID for variant in variants}) == len(variants)
    assert len({variant.StudyInstanceUID for variant in variants}) == len(variants)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="64 to 16384"):
        phantom.make(1, opacity=False, rows=8, columns=128)
