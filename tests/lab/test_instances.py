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
from dicomguard.lab.instances import computed_radiograph, magnetic_resonance
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
