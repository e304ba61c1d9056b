from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from dicomguard.attacks.forge import forge
from dicomguard.errors import DicomguardError
from dicomguard.lab.instances import (
    computed_radiograph,
    computed_tomograph,
    magnetic_resonance,
    ophthalmic_photograph,
    secondary_capture,
    ultrasound,
)
from dicomguard.pixels.reader import images

DCIODVFY = Path("/usr/bin/dciodvfy")
Make = Callable[..., Dataset]

both = pytest.mark.parametrize("make", [computed_radiograph, magnetic_resonance], ids=["CR", "MR"])
depths = pytest.mark.parametrize("bits", [8, 12, 16])


def gray(shape: tuple[int, int] = (31, 33)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@both
@depths
def test_what_the_node_reads_is_the_picture(make: Make, bits: int) -> None:
    (image,) = images(dcmread(io.BytesIO(encoded(make(gray(), bits=bits, name="a")))))
    assert image.bits_stored == bits
    np.testing.assert_allclose(image.pixels[0], gray() / 255, atol=0.5 / (2**bits - 1) + 1e-6)


@both
def test_the_same_picture_is_the_same_instance_and_another_is_not(make: Make) -> None:
    first, again, other, deeper = (make(gray(), bits=b, name=n) for n, b in (("a", 8), ("a", 8), ("b", 8), ("a", 12)))
    assert encoded(first) == encoded(again)
    assert len({d.SOPInstanceUID for d in (first, other, deeper)}) == 3
    assert len({d.StudyInstanceUID for d in (first, other, deeper)}) == 3


@both
@depths
@pytest.mark.peer
@pytest.mark.skipif(not DCIODVFY.exists(), reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_finds_nothing_wrong(tmp_path: Path, make: Make, bits: int) -> None:
    path = tmp_path / "picture.dcm"
    path.write_bytes(encoded(make(gray((64, 48)), bits=bits, name="a")))
    told = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False)
    assert told.returncode == 0
    assert "Error" not in told.stderr + told.stdout
    assert "Warning" not in told.stderr + told.stdout
    assert ("MRImage" if make is magnetic_resonance else "CRImage") in told.stdout + told.stderr


@both
@depths
def test_an_attack_is_written_back_to_the_nearest_stored_value(make: Make, bits: int) -> None:
    source = make(gray(), bits=bits, name="a")
    (image,) = images(source)
    wanted = np.clip(image.pixels + 0.01, 0, 1).astype(np.float32)
    (forged,) = images(forge(source, image, wanted, description="test"))
    np.testing.assert_allclose(forged.pixels, wanted, atol=0.5 / (2**bits - 1) + 1e-6)


def colours(shape: tuple[int, int] = (31, 33)) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)


# What stays is a warning about something that is not known of a picture file, or that no defined term says.
OTHERS = {
    "CT 12": (computed_tomograph, gray, 12, {"RescaleType"}),
    "CT 16": (computed_tomograph, gray, 16, {"RescaleType"}),
    "US": (ultrasound, gray, 8, {"Laterality"}),
    "OP": (ophthalmic_photograph, colours, 8, set()),
    "SC": (secondary_capture, gray, 8, {"Laterality"}),
    "SC 16": (secondary_capture, gray, 16, {"Laterality"}),
    "SC RGB": (secondary_capture, colours, 8, {"Laterality"}),
}
others = pytest.mark.parametrize(("make", "picture", "bits", "warned"), OTHERS.values(), ids=OTHERS)


@others
def test_the_node_reads_the_picture_of_other_modalities_too(make: Make, picture, bits: int, warned: set[str]) -> None:
    (image,) = images(dcmread(io.BytesIO(encoded(make(picture(), bits=bits, name="a")))))
    shown = picture() / 255
    expected = np.moveaxis(shown, -1, 0) if shown.ndim == 3 else shown[None]
    np.testing.assert_allclose(image.pixels, expected, atol=0.5 / (2**bits - 1) + 1e-6)
    assert image.mapping is not None
    assert encoded(make(picture(), bits=bits, name="a")) == encoded(make(picture(), bits=bits, name="a"))


@others
@pytest.mark.peer
@pytest.mark.skipif(not DCIODVFY.exists(), reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize("forged", [False, True], ids=["clean", "forged"])
def test_dciodvfy_finds_no_error_in_other_modalities(
    tmp_path: Path, make: Make, picture, bits: int, warned: set[str], forged: bool
) -> None:
    dataset = make(picture((64, 48)), bits=bits, name="a")
    if forged:
        (image,) = images(dataset)
        dataset = forge(dataset, image, np.clip(image.pixels + 0.02, 0, 1).astype(np.float32), description="test")
    path = tmp_path / "picture.dcm"
    path.write_bytes(encoded(dataset))
    told = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False)
    said = told.stdout + told.stderr
    assert "Error" not in said
    assert "Image" in said
    warnings = [line for line in said.splitlines() if line.startswith("Warning")]
    allowed = warned | ({"ImageType"} if forged and picture is colours else set())
    assert all(any(f"/{keyword}(" in line for keyword in allowed) for line in warnings), warnings


def test_the_eye_is_taken_from_the_name_where_it_says_one() -> None:
    names = ("10003_left.jpg", "10003_right.jpg", "7.jpg")
    made = [ophthalmic_photograph(colours(), name=name) for name in names]
    assert [one.ImageLaterality for one in made] == ["L", "R", "R"]
    assert ["nominal" in one.ImageComments for one in made] == [False, False, True]


@pytest.mark.parametrize(
    ("make", "bits"), [(computed_tomograph, 8), (ultrasound, 12), (ophthalmic_photograph, 12)], ids=["CT", "US", "OP"]
)
def test_depths_that_a_modality_does_not_have_are_refused(make: Make, bits: int) -> None:
    with pytest.raises(DicomguardError, match="stored bits"):
        make(gray(), bits=bits, name="a")
