"""A small bundle that is enrolled on phantoms, as the sandbox reads them; its promises are worth nothing."""

import tempfile
from pathlib import Path

from dicomguard import phantom
from dicomguard.pixels.sandbox import DecodeWorker
from tests.scoring.small import enrol_small, write_small


def write_enrolled(folder, out=None, *, seed=0, images=180, alpha=0.1, first_image=0):
    """The bundle's folder; its enrolment goes to `out`, by default into it."""
    write_small(folder, seed=seed, levels=[0.01, 0.03, 0.05], repeats=2)
    enrol(folder, out or folder / "enrolment", images=images, alpha=alpha, first_image=first_image)
    return folder


def enrol(folder, out, *, images=180, alpha=0.1, first_image=0):
    return enrol_small(folder, out, images=phantoms(first_image, images), alpha=alpha)


def phantoms(first, count):
    """With all that the checks look at."""
    found = []
    with tempfile.TemporaryDirectory() as folder, DecodeWorker() as worker:
        for number in range(first, first + count):
            path = Path(folder) / "phantom.dcm"
            phantom.make(number, opacity=False, rows=64, columns=64).save_as(path, enforce_file_format=True)
            offset, syntax = worker.locate(path)
            found += worker.frames(path, offset, syntax, start=0, count=1)
    return found
