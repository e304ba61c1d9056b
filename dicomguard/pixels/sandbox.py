"""The screener's side of decoding: asks a confined child process, and outlives whatever happens to it.

The child may hang, crash or lie; each is a `Fault` of the instance that was asked about, and the next question goes to
a new child. Nothing that it says is executed or trusted beyond its bounds: lines of JSON, and floats as bytes whose
number is checked before they are taken.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from dicomguard.decision import Fault, Reason
from dicomguard.errors import HostError
from dicomguard.pixels.header import Header
from dicomguard.pixels.image import Image, StoredMapping
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.miniature import SIDE, Miniature

_LINE_MAX_BYTES: Final = 1 << 20
_START_S: Final = 60.0
_DEFAULT_LIMITS: Final = Limits()
# The child gets no more of the environment than it needs to start: keys and passwords stay here.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "HOME", "TMPDIR")


class _GoneError(Exception):
    """The child cannot be asked any more: it died, hung, or broke the protocol."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


class DecodeWorker:
    """A context manager around one decoding process, started with the context and replaced whenever it fails.

    Not for use by several threads at once, and not to be entered in a thread that ends before the context does: the
    child dies with the thread that started it. Every question raises HostError, or OSError where the system starts no
    process, if no child can be started: that is no fault of the instance, and the next question may be answered.
    """

    def __init__(self, limits: Limits = _DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._is_ready = False

    def __enter__(self) -> Self:
        """Start the child; it gets ready while the caller goes on."""
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child."""
        self._stop()

    @property
    def pid(self) -> int | None:
        """The child's process id, for whoever watches it."""
        return None if self._child is None else self._child.pid

    def locate(self, path: Path) -> tuple[int, str] | Fault:
        """Where the data set of a plain Part 10 file begins (bytes), and its transfer syntax UID.

        Also for files without preamble or file meta information. The answer is what `header` and `frames` ask for.
        """
        try:
            found = self._ask({"do": "locate", "path": str(path.absolute())}, "located")
            return int(found["data_offset"]), str(found["transfer_syntax_uid"])
        except _GoneError as gone:
            return gone.fault
        except _AnsweredError as answered:
            return answered.fault

    def header(self, path: Path, data_offset: int, transfer_syntax_uid: str, keywords: Sequence[str]) -> Header | Fault:
        """Identity, attributes and pixel description of the data set that begins at `data_offset`.

        Its structure has been walked, its pixel description checked against its pixel data and the limits, and its
        SHA-256 taken anew; compare that with the receipt. Nothing was decoded.
        """
        question = {"do": "header", "keywords": list(keywords), **_where(path, data_offset, transfer_syntax_uid)}
        try:
            found = self._ask(question, "header")
            del found["kind"]
            return Header.from_json(found)
        except _GoneError as gone:
            return gone.fault
        except _AnsweredError as answered:
            return answered.fault
        except TypeError:
            return self._lied().fault

    def frames(
        self, path: Path, data_offset: int, transfer_syntax_uid: str, start: int, count: int
    ) -> list[Image] | Fault:
        """Presentation values of frames `start` (from 0) to `start + count`, fewer where the instance ends before.

        One frame that cannot be decoded makes all of them a fault: an instance is scored whole or not at all.
        """
        question = {"do": "frames", "start": start, "count": count, **_where(path, data_offset, transfer_syntax_uid)}
        images: list[Image] = []
        try:
            self._send(question)
            while (head := self._answer())["kind"] != "end":
                if head["kind"] != "frame" or len(images) >= count:
                    raise self._lied()
                images.append(self._image(head))
        except _GoneError as gone:
            return gone.fault
        except _AnsweredError as answered:
            return answered.fault
        except (KeyError, TypeError, ValueError):
            return self._lied().fault
        return images

    def _ask(self, question: dict[str, Any], kind: str) -> dict[str, Any]:
        self._send(question)
        answer = self._answer()
        if answer["kind"] != kind:
            raise self._lied()
        return answer

    def _send(self, question: dict[str, Any]) -> None:
        line = json.dumps(question).encode("ascii") + b"\n"
        for is_last in (False, True):
            child = self._started()
            assert child.stdin is not None
            try:
                child.stdin.write(line)
                child.stdin.flush()
            except OSError as error:
                # It died between two questions, which says nothing about this file.
                self._stop()
                if is_last:
                    raise _not_starting() from error
            else:
                self._wait_until = time.monotonic() + self._limits.wall_s(self._limits.base_cpu_s)
                return

    def _answer(self) -> dict[str, Any]:
        """The next line that is not about waiting. A fault line raises `_AnsweredError`."""
        while True:
            head = self._line()
            if head.get("kind") == "wait":
                cpu_s = head.get("cpu_s")
                if not isinstance(cpu_s, float):
                    raise self._lied()
                self._wait_until = time.monotonic() + self._limits.wall_s(cpu_s)
            elif head.get("kind") == "fault":
                raise _AnsweredError(_fault(head))
            else:
                return head

    def _image(self, head: dict[str, Any]) -> Image:
        shape = tuple(int(n) for n in head["shape"])
        size = math.prod(shape) * 4
        bound = self._limits.max_samples_per_frame * 3 * 4
        if len(shape) != 3 or shape[0] not in {1, 3} or min(shape) < 1 or size > bound or size != head["bytes"]:
            raise self._lied()
        pixels = np.empty(shape, dtype=np.float32)
        self._fill(pixels.data.cast("B"))
        mapping = head["mapping"]
        return Image(
            pixels,
            int(head["frame"]),
            int(head["bits_stored"]),
            str(head["photometric_interpretation"]),
            str(head["voi"]),
            None if mapping is None else StoredMapping(**mapping),
            self._miniature(head["miniature"]),
        )

    def _miniature(self, said: Any) -> Miniature | None:
        if said is None:
            return None
        low, high, has_table = said
        values = np.empty((SIDE, SIDE), dtype=np.float64)
        self._fill(values.data.cast("B"))
        return Miniature(values, float(low), float(high), bool(has_table))

    def _line(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_MAX_BYTES:
                raise self._lied()
            self._buffer += self._read(65536)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            head = json.loads(line)
        except ValueError as error:
            raise self._lied() from error
        if not isinstance(head, dict):
            raise self._lied()
        return head

    def _fill(self, target: memoryview) -> None:
        have = min(len(self._buffer), len(target))
        target[:have] = self._buffer[:have]
        del self._buffer[:have]
        while have < len(target):
            chunk = self._read(min(1 << 20, len(target) - have))
            target[have : have + len(chunk)] = chunk
            have += len(chunk)

    def _read(self, size: int) -> bytes:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        left_s = self._wait_until - time.monotonic()
        if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
            self._stop()
            self._start()
            raise _GoneError(Fault(Reason.TIMEOUT, "The decoder took too long and was stopped."))
        chunk = os.read(descriptor, size)
        if not chunk:
            raise self._died(child)
        return chunk

    def _died(self, child: subprocess.Popen[bytes]) -> _GoneError:
        child.wait()
        code = child.returncode
        self._stop()
        self._start()
        if -code in {signal.SIGPROF, signal.SIGXCPU}:
            return _GoneError(Fault(Reason.TIMEOUT, "The decoder used up its processor time and was stopped."))
        label = signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit {code}"
        return _GoneError(Fault(Reason.UNDECODABLE, f"The decoder crashed ({label})."))

    def _lied(self) -> _GoneError:
        self._stop()
        self._start()
        return _GoneError(Fault(Reason.UNDECODABLE, "The decoder answered nonsense and was replaced."))

    def _started(self) -> subprocess.Popen[bytes]:
        """The child, ready to be asked. Waiting for it to start is not charged to the file."""
        if self._child is None:
            self._start()
        if not self._is_ready:
            self._wait_until = time.monotonic() + _START_S
            child = self._child
            try:
                ready = self._line().get("kind") == "ready"
            except _GoneError as gone:
                ready = False
                del gone
            if not ready or self._child is not child:
                self._stop()
                raise _not_starting()
            self._is_ready = True
        assert self._child is not None
        return self._child

    def _start(self) -> None:
        self._buffer.clear()
        self._is_ready = False
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # Libraries that start a thread a core reserve address space for each.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "dicomguard.pixels.worker", json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | threads,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self._buffer.clear()


class _AnsweredError(Exception):
    """The child is well, and says that the instance is not."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


def _not_starting() -> HostError:
    return HostError(
        "The decoding process does not start.",
        advice="See that the limits of this service (ulimit -v) allow 5 GiB of address space.",
    )


def _fault(head: dict[str, Any]) -> Fault:
    try:
        return Fault(Reason(head["reason"]), str(head["detail"])[:500])
    except (KeyError, ValueError):
        return Fault(Reason.UNDECODABLE, "The decoder gave no reason.")


def _where(path: Path, data_offset: int, transfer_syntax_uid: str) -> dict[str, Any]:
    return {"path": str(path.absolute()), "data_offset": data_offset, "transfer_syntax_uid": transfer_syntax_uid}
