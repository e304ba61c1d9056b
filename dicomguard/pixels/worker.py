"""The decoding process: `python -m dicomguard.pixels.worker`. Reads requests on stdin, answers on stdout.

A request is one line of JSON; an answer is lines of JSON, each followed by as many raw bytes as its `bytes` says. No
pickle in either direction. The process takes its own rights away before it reads the first request: no new files over
zero bytes, few descriptors, bounded memory, no gain of privileges, no network where the kernel lets it go, death with
its parent. Each request runs under a timer of processor time that kills the process, in C code too.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from dicomguard.decision import Fault, Reason
from dicomguard.pixels import reader, source
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.reader import Opened
from dicomguard.pixels.refusal import RefusalError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MAX_DESCRIPTORS: Final = 32


def confine(limits: Limits) -> None:
    """Give up what decoding does not need. What a kernel does not offer (name spaces, often) is done without."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory_bytes, limits.max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def warm_up() -> None:
    """Load the codecs' shared libraries while files may still be opened freely and no request is waiting."""
    import imagecodecs  # noqa: PLC0415 - half a second that belongs here

    for name in ("jpeg8_decode", "jpegls_decode", "jpeg2k_decode", "dicomrle_decode"):
        getattr(imagecodecs, name)


class Worker:
    """Answers requests one after the other. Keeps the last data set's structure: its next frames are asked for next."""

    def __init__(self, replies: BinaryIO, limits: Limits) -> None:
        self._replies, self._limits = replies, limits
        self._key: tuple[Any, ...] = ()
        self._opened: Opened | None = None

    def answer(self, request: dict[str, Any]) -> None:
        """One request: `locate`, `header` or `frames`. Whatever goes wrong is answered as a fault."""
        self._grant(0, _size(request))
        try:
            match request["do"]:
                case "locate":
                    offset, uid = source.locate(source.open_mapped(Path(request["path"]), self._limits))
                    self._reply({"kind": "located", "data_offset": offset, "transfer_syntax_uid": uid})
                case "header":
                    header = reader.header(self._open(request), request["keywords"], self._limits)
                    self._reply({"kind": "header", **asdict(header)})
                case "frames":
                    self._frames(request)
                case unknown:
                    raise ValueError(unknown)  # noqa: TRY301 - answered below like everything unforeseen
        except Exception as error:  # noqa: BLE001 - the top of the process: nothing a file does may end the answers
            self._opened = None
            self._reply({"kind": "fault", **asdict(fault_of(error))})

    def _frames(self, request: dict[str, Any]) -> None:
        opened = self._open(request)
        described = opened.described
        samples = 0 if described is None else described.samples_per_frame
        self._grant(samples, 0)
        for image in reader.frames(opened, request["start"], request["count"], self._limits):
            small = image.miniature
            head = {
                "kind": "frame",
                "shape": image.pixels.shape,
                "frame": image.frame,
                "bits_stored": image.bits_stored,
                "photometric_interpretation": image.photometric_interpretation,
                "voi": image.voi,
                "mapping": None if image.mapping is None else asdict(image.mapping),
                "bytes": image.pixels.nbytes,
                "miniature": None if small is None else (small.low, small.high, small.has_table),
            }
            bodies = [image.pixels.data.cast("B")]
            if small is not None:
                bodies.append(np.ascontiguousarray(small.values, dtype=np.float64).data.cast("B"))
            self._reply(head, *bodies)
            self._grant(samples, 0)
        self._reply({"kind": "end"})

    def _open(self, request: dict[str, Any]) -> Opened:
        path = Path(request["path"])
        status = path.stat()
        asked = (str(path), request["data_offset"], request["transfer_syntax_uid"])
        key = (*asked, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._opened is None or key != self._key:
            self._opened = None
            data = source.open_mapped(path, self._limits)
            self._opened = reader.open_data_set(
                data, request["data_offset"], request["transfer_syntax_uid"], self._limits
            )
            self._key = key
        return self._opened

    def _grant(self, samples: int, size_bytes: int) -> None:
        """Start the timer of processor time anew, and tell the parent how long to wait for the next line."""
        cpu_s = self._limits.cpu_s(samples, size_bytes)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        if samples or size_bytes:
            self._reply({"kind": "wait", "cpu_s": cpu_s})

    def _reply(self, head: dict[str, Any], *bodies: memoryview) -> None:
        self._replies.write(json.dumps(head).encode("ascii") + b"\n")
        for body in bodies:
            self._replies.write(body)
        self._replies.flush()


def fault_of(error: Exception) -> Fault:
    """What an exception means to the screener. Only our own texts are passed on: others may quote the data set."""
    match error:
        case RefusalError():
            return error.fault
        case MemoryError():
            return Fault(Reason.OVER_LIMITS, "Reading this needs more memory than the decoder may use.")
        case RecursionError():
            return Fault(Reason.UNPARSABLE, "Sequences are nested too deep.")
        case OSError():
            return Fault(Reason.UNPARSABLE, f"The file cannot be read: {os.strerror(error.errno or 0)}.")
        case _:
            return Fault(Reason.UNDECODABLE, f"The reader stopped unexpectedly ({type(error).__name__}).")


def _size(request: dict[str, Any]) -> int:
    try:
        return Path(str(request.get("path"))).stat().st_size
    except (OSError, ValueError):
        return 0


def main() -> None:
    """Serve requests until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    # Libraries that print must not break the protocol, nor write what they read into anybody's log.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.close(silence)
    limits = Limits(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else Limits()
    warm_up()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    confine(limits)
    worker = Worker(replies, limits)
    replies.write(b'{"kind": "ready"}\n')
    replies.flush()
    for line in sys.stdin.buffer:
        worker.answer(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
