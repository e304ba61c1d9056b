from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from dicomguard import phantom
from dicomguard.attacks.forge import forge, presentation, stored_values
from dicomguard.errors import DicomguardError
from dicomguard.pixels.image import Image, StoredMapping
from dicomguard.pixels.reader import images


@pytest.fixture(scope="module")
def source() -> Dataset:
    return phantom.make(7, opacity=True, rows=96, columns=80)


def moved(image: Image, by: float) -> np.ndarray:
    noise = np.random.default_rng(0).choice([-by, by], image.pixels.shape)
    return np.clip(image.pixels + noise, 0, 1).astype(np.float32)


def test_what_is_forged_is_read_back_up_to_rounding(source: Dataset) -> None:
    (image,) = images(source)
    wanted = moved(image, 0.004)
    forged = forge(source, image, wanted, description="test")
    (read,) = images(forged)
    assert np.abs(read.pixels - wanted).max() <= 0.5 / 4095 + 1e-6
    assert read.mapping == image.mapping


def test_the_source_stays_as_it_was(source: Dataset) -> None:
    before = copy.deepcopy(source)
    (image,) = images(source)
    forge(source, image, moved(image, 0.01), description="test")
    assert source == before


def test_the_header_says_what_it_is(source: Dataset) -> None:
    (image,) = images(source)
    forged = forge(source, image, moved(image, 0.01), description="Early-stopped BIM")
    assert forged.SOPInstanceUID != source.SOPInstanceUID
    assert forged.file_meta.MediaStorageSOPInstanceUID == forged.SOPInstanceUID
    assert forged.StudyInstanceUID == source.StudyInstanceUID
    assert forged.ImageType[0] == "DERIVED"
    assert forged.DerivationDescription == "Early-stopped BIM"
    assert forged.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert not forged.file_meta.TransferSyntaxUID.is_compressed
    again = forge(source, image, moved(image, 0.01), description="Early-stopped BIM")
    assert again.SOPInstanceUID == forged.SOPInstanceUID
    assert forge(source, image, moved(image, 0.02), description="x").SOPInstanceUID != forged.SOPInstanceUID


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["RLE", "JPEG 2000"])
def test_a_compressed_source_is_forged_uncompressed(source: Dataset, syntax: str) -> None:
    compressed = copy.deepcopy(source)
    compressed.compress(syntax, generate_instance_uid=False)
    (image,) = images(compressed)
    forged = forge(compressed, image, moved(image, 0.01), description="test")
    (read,) = images(forged)
    assert np.abs(read.pixels - moved(image, 0.01)).max() <= 0.5 / 4095 + 1e-6


def test_only_the_named_frame_changes(source: Dataset) -> None:
    (image,) = images(source)
    both = copy.deepcopy(source)
    both.NumberOfFrames = 2
    both.PixelData = source.PixelData * 2
    second = Image(image.pixels, 1, 12, "MONOCHROME2", image.voi, image.mapping)
    forged = forge(both, second, moved(image, 0.01), description="test")
    frames = forged.pixel_array
    assert np.array_equal(frames[0], source.pixel_array)
    assert not np.array_equal(frames[1], source.pixel_array)


def test_without_an_affine_way_back_there_is_no_forging(source: Dataset) -> None:
    (image,) = images(source)
    no_way = Image(image.pixels, 0, 12, "PALETTE COLOR", "palette", None)
    with pytest.raises(DicomguardError, match="has no inverse"):
        forge(source, no_way, image.pixels, description="test")


@settings(max_examples=60, deadline=None)
@given(
    stored=hnp.arrays(np.int32, (3, 4), elements=st.integers(-2048, 2047)),
    scale=st.sampled_from([1 / 4095, -1 / 4095, 1 / 400, -1 / 400]),
    offset=st.integers(-2048, 2047),
)
def test_untouched_pixels_keep_their_stored_values_even_outside_the_window(
    stored: np.ndarray, scale: float, offset: int
) -> None:
    mapping = StoredMapping(scale=scale, offset=float(offset), low=-2048, high=2047)
    blank = Image(np.zeros((1, 3, 4), np.float32), 0, 12, "MONOCHROME2", "window", mapping)
    image = Image(presentation(blank, stored), 0, 12, "MONOCHROME2", "window", mapping)
    assert np.array_equal(stored_values(image, image.pixels, stored), stored)
    other = stored_values(image, 1 - image.pixels, stored)
    assert other.min() >= -2048
    assert other.max() <= 2047


@pytest.mark.peer
@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_dciodvfy_finds_no_error(modality: phantom.Modality, tmp_path: Path) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    source = phantom.make(3, opacity=False, rows=96, columns=96, modality=modality)
    (image,) = images(source)
    forged = forge(source, image, moved(image, 0.004), description="Early-stopped BIM")
    forged.save_as(tmp_path / "forged.dcm", enforce_file_format=True)
    found = subprocess.run(["dciodvfy", tmp_path / "forged.dcm"], capture_output=True, text=True, check=False)
    assert "Error" not in found.stderr
    assert "Image" in found.stderr
