import dataclasses
import hashlib
import json
import os
import signal
import struct
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicomguard import phantom
from dicomguard.decision import Fault, Reason
from dicomguard.errors import HostError
from dicomguard.pixels.header import Header
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.reader import images
from dicomguard.pixels.refusal import truncated
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.pixels.worker import fault_of


def saved(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def located(worker: DecodeWorker, path: Path) -> tuple[Path, int, str]:
    found = worker.locate(path)
    assert not isinstance(found, Fault), found
    return path, *found


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    return saved(phantom.make(1, opacity=True, rows=128, columns=96), tmp_path / "chest.dcm")


def test_a_phantom_goes_through_the_pipe_unchanged(worker: DecodeWorker, chest: Path) -> None:
    place = located(worker, chest)
    header = worker.header(*place, ["Modality", "BodyPartExamined"])
    assert isinstance(header, Header)
    assert header.attributes == {"Modality": "DX", "BodyPartExamined": "CHEST"}
    data_set = chest.read_bytes()[place[1] :]
    assert header.sha256 == hashlib.sha256(data_set).hexdigest()
    assert header.size_bytes == len(data_set)
    got = worker.frames(*place, 0, 4)
    assert isinstance(got, list)
    (expected,) = images(phantom.make(1, opacity=True, rows=128, columns=96))
    np.testing.assert_array_equal(got[0].pixels, expected.pixels)
    small, wanted = got[0].miniature, expected.miniature
    assert small is not None
    assert wanted is not None
    np.testing.assert_array_equal(small.values, wanted.values)
    assert (small.low, small.high) == (wanted.low, wanted.high) == (0, 4095)
    assert dataclasses.replace(got[0], pixels=expected.pixels, miniature=wanted) == expected
    assert got[0].pixels.flags.writeable


def test_frames_are_given_in_slices(worker: DecodeWorker, build: Any, tmp_path: Path) -> None:
    stored = np.arange(5 * 8 * 8).reshape(5, 8, 8)
    place = located(worker, saved(build(stored), tmp_path / "cine.dcm"))
    whole = worker.frames(*place, 0, 5)
    parts = [worker.frames(*place, start, 2) for start in (0, 2, 4, 6)]
    assert isinstance(whole, list)
    assert [len(part) for part in parts] == [2, 2, 1, 0]
    assert [image.frame for part in parts for image in part] == [0, 1, 2, 3, 4]
    for image, expected in zip((image for part in parts for image in part), whole, strict=True):
        np.testing.assert_array_equal(image.pixels, expected.pixels)


def test_a_file_that_changed_is_read_anew(worker: DecodeWorker, build: Any, tmp_path: Path) -> None:
    path = saved(build(np.zeros((8, 8))), tmp_path / "one.dcm")
    place = located(worker, path)
    first = worker.header(*place, [])
    saved(build(np.full((8, 8), 7)), path)
    second = worker.header(*place, [])
    assert isinstance(first, Header)
    assert isinstance(second, Header)
    assert first.sha256 != second.sha256


def test_a_crash_is_a_fault_of_one_question(worker: DecodeWorker, chest: Path) -> None:
    place = located(worker, chest)
    before = worker.pid
    # The next question waits in the pipe, and the child dies over it.
    os.kill(before, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (before, signal.SIGSEGV)).start()
    threading.Timer(0.25, os.kill, (before, signal.SIGCONT)).start()
    fault = worker.header(*place, [])
    assert fault == Fault(Reason.UNDECODABLE, "The decoder crashed (SIGSEGV).")
    assert worker.pid != before
    assert isinstance(worker.header(*place, []), Header)
    assert not alive(before)


def test_a_child_that_died_between_questions_is_replaced_without_a_fault(worker: DecodeWorker, chest: Path) -> None:
    place = located(worker, chest)
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert isinstance(worker.header(*place, []), Header)


def test_a_decoder_that_does_not_start_is_no_fault_of_the_file(
    worker: DecodeWorker, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = located(worker, chest)
    worker._stop()
    with monkeypatch.context() as patch:
        patch.setattr("dicomguard.pixels.sandbox.sys.executable", "/bin/false")
        with pytest.raises(HostError, match="does not start"):
            worker.header(*place, [])
    mute = SimpleNamespace(stdin=SimpleNamespace(write=broken_pipe))
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_started", lambda: mute)
        with pytest.raises(HostError, match="does not start"):
            worker.header(*place, [])
    assert isinstance(worker.header(*place, []), Header)


def broken_pipe(_line: bytes) -> None:
    raise BrokenPipeError


def test_a_hung_child_is_given_up(chest: Path) -> None:
    with DecodeWorker(Limits(base_cpu_s=0.2, wall_factor=2.0)) as worker:
        place = located(worker, chest)
        os.kill(worker.pid, signal.SIGSTOP)
        before = time.monotonic()
        fault = worker.header(*place, [])
        assert time.monotonic() - before < 2
        assert isinstance(fault, Fault)
        assert fault.reason is Reason.TIMEOUT
        assert isinstance(worker.header(*place, []), Header)


def test_processor_time_is_bounded(tmp_path: Path) -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    path = tmp_path / "items"
    path.write_bytes(struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(item) * 399_000) + item * 399_000)
    with DecodeWorker(Limits(base_cpu_s=0.1)) as worker:
        before = time.monotonic()
        fault = worker.header(path, 0, ExplicitVRLittleEndian, [])
        assert time.monotonic() - before < 2
        assert isinstance(fault, Fault)
        assert fault.reason is Reason.TIMEOUT
        assert "processor time" in fault.detail


def test_memory_is_bounded(build: Any, tmp_path: Path) -> None:
    path = saved(build(np.zeros((4096, 4096))), tmp_path / "big.dcm")
    with DecodeWorker(Limits(max_memory_bytes=320 << 20)) as worker:
        place = located(worker, path)
        fault = worker.frames(*place, 0, 1)
        assert isinstance(fault, Fault)
        assert fault.reason is Reason.OVER_LIMITS
        assert isinstance(worker.header(*place, []), Header)


BOMBS = {
    "two million items": (
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 2_000_000,
        ExplicitVRLittleEndian,
        Reason.OVER_LIMITS,
    ),
    "a hundred thousand levels": (
        (struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF))
        * 100_000,
        ExplicitVRLittleEndian,
        Reason.OVER_LIMITS,
    ),
    "a gigabyte deflated": (
        (packer := zlib.compressobj(wbits=-15)).compress(bytes(1 << 20))
        + b"".join(packer.compress(bytes(1 << 20)) for _ in range(1023))
        + packer.flush(),
        DeflatedExplicitVRLittleEndian,
        Reason.OVER_LIMITS,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_answered_within_two_seconds(worker: DecodeWorker, tmp_path: Path, name: str) -> None:
    content, syntax, reason = BOMBS[name]
    path = tmp_path / "bomb"
    path.write_bytes(content)
    before = time.monotonic()
    fault = worker.header(path, 0, syntax, ["ReferencedImageSequence"])
    assert time.monotonic() - before < 2
    assert isinstance(fault, Fault)
    # On a busy machine the budget of processor time may end before the limit is reached.
    assert fault.reason in {reason, Reason.TIMEOUT}
    with Path(f"/proc/{worker.pid}/status").open() as status:
        peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_kib < 512 * 1024


def test_what_is_no_file_is_a_fault(worker: DecodeWorker, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", tmp_path / "empty", Path("/dev/zero")):
        found = worker.locate(path)
        assert isinstance(found, Fault), path
        assert found.reason is Reason.UNPARSABLE
        header = worker.header(path, 0, ExplicitVRLittleEndian, [])
        assert isinstance(header, Fault), path


def test_offsets_outside_the_file_are_faults(worker: DecodeWorker, chest: Path) -> None:
    for offset in (-1, chest.stat().st_size, 1 << 40):
        fault = worker.header(chest, offset, ExplicitVRLittleEndian, [])
        assert isinstance(fault, Fault), offset


def test_the_child_has_few_rights_and_no_secrets(chest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMGUARD_LEDGER_KEY", "hush")
    with DecodeWorker() as worker:
        located(worker, chest)
        process = Path(f"/proc/{worker.pid}")
        limits = (process / "limits").read_text()
        assert b"hush" not in (process / "environ").read_bytes()
        maps = (process / "maps").read_text()
        assert "/torch/" not in maps
        assert "sqlalchemy" not in maps
        status = (process / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    for label, value in (("Max file size", "0"), ("Max open files", "32"), ("Max address space", str(5 << 30))):
        line = next(line for line in limits.splitlines() if line.startswith(label))
        assert line.removeprefix(label).split()[:2] == [value, value]


def test_leaving_the_context_ends_the_child(chest: Path) -> None:
    with DecodeWorker() as worker:
        located(worker, chest)
        pid = worker.pid
    assert worker.pid is None
    assert not alive(pid)


def test_a_child_that_lies_is_replaced(chest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DecodeWorker() as worker:
        place = located(worker, chest)
        for line in (b"no json\n", b'{"kind": "header", "x": 1}\n'):
            before = worker._started().pid
            worker._buffer += line
            fault = worker.header(*place, [])
            assert isinstance(fault, Fault), line
            assert "nonsense" in fault.detail
            assert worker.pid != before
        assert isinstance(worker.header(*place, []), Header)
        lies = {
            "kind": "frame",
            "frame": 0,
            "bits_stored": 8,
            "photometric_interpretation": "",
            "voi": "",
            "mapping": None,
        }
        for shape, size in (([1, 10**9, 10**9], 4 * 10**18), ([1, 2, 2], 1)):
            worker._started()
            worker._buffer += json.dumps({**lies, "shape": shape, "bytes": size}).encode() + b"\n"
            fault = worker.frames(*place, 0, 1)
            assert isinstance(fault, Fault), shape


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (truncated("x"), Reason.TRUNCATED),
        (MemoryError(), Reason.OVER_LIMITS),
        (RecursionError(), Reason.UNPARSABLE),
        (FileNotFoundError(2, "SECRET"), Reason.UNPARSABLE),
        (ValueError("SECRET^NAME"), Reason.UNDECODABLE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_exceptions_become_faults_without_their_words(error: Exception, reason: Reason) -> None:
    fault = fault_of(error)
    assert fault.reason is reason
    assert "SECRET" not in fault.detail


def test_a_relative_path_is_one_of_the_callers_folder(worker: DecodeWorker, tmp_path: Path, monkeypatch) -> None:
    saved(phantom.make(1, opacity=False, rows=64, columns=64), tmp_path / "here.dcm")
    monkeypatch.chdir(tmp_path)
    assert not isinstance(worker.locate(Path("here.dcm")), Fault)
