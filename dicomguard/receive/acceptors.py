"""Several acceptor processes on one listening socket, watched by their parent.

One Python process serves little more than one core. The acceptors share the socket that the parent listens on, because
SO_REUSEPORT would give each a queue of its own and lose the connections queued for one that dies; and a few words of
shared memory for the association caps. They share nothing else: any of them may be killed at any moment.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dicomguard.errors import SpoolError
from dicomguard.receive.catalogue import standard_offer
from dicomguard.receive.census import Census, shared_memory
from dicomguard.receive.server import listen
from dicomguard.receive.settings import ReceiveSettings

_WATCH_S = 0.2
_READY_S = 60.0
# An acceptor that dies at once is not started again in a tight loop.
_RESPAWN_S = 0.5
# Between the end of the grace period and the end of our patience.
_KILL_S = 10.0

_LOG = logging.getLogger(__name__)


class Acceptors:
    """Starts `settings.acceptors` processes, replaces those that die, and stops them all."""

    def __init__(self, settings: ReceiveSettings, spool_root: Path, *, reserve_bytes: int) -> None:
        """Listens at once, so that the port is known. Raises ConfigError."""
        self._listener = listen(settings.host, settings.port)
        self._count = max(1, settings.acceptors)
        self._memory = shared_memory(self._count)
        self._census = Census(self._count, 0, self._memory)
        offer = standard_offer(settings.private_sop_classes)
        self._task: dict[str, Any] = {
            "settings": settings.to_json(),
            "spool_root": str(spool_root),
            "reserve_bytes": reserve_bytes,
            "storage_classes": sorted(offer.storage_classes),
            "non_patient_classes": sorted(offer.non_patient_classes),
            "transfer_syntaxes": sorted(offer.transfer_syntaxes),
            "listener": self._listener.fileno(),
            "census": self._memory,
            "rows": self._count,
            "log_level": _LOG.getEffectiveLevel(),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="acceptors", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Start the acceptors and wait until they accept. Raises SpoolError when they do not come up."""
        self._processes = [self._spawn(row) for row in range(self._count)]
        for process in self._processes:
            # Blocks until the acceptor speaks or ends.
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                self.stop(0.0)
                raise SpoolError("An acceptor process did not come up.", advice="Its own message stands above.")
        self._watcher.start()

    def stop(self, grace_s: float) -> None:
        """Stop accepting, let associations end within `grace_s`, and wait for the processes."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        self._listener.close()
        for process in self._processes:
            _tell(process, {"stop": grace_s})
        deadline = time.monotonic() + grace_s + _KILL_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _LOG.error("Acceptor %d does not end; it is killed.", process.pid)
                process.kill()
                process.wait()
            _close_pipes(process)
        os.close(self._memory)

    def _spawn(self, row: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dicomguard.receive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._listener.fileno(), self._memory),
        )
        _tell(process, {**self._task, "row": row})
        return process

    def _watch(self) -> None:
        while not self._stopping.wait(_WATCH_S):
            for row, process in enumerate(self._processes):
                if process.poll() is None:
                    continue
                _LOG.error(
                    "Acceptor %d ended with status %d; another one takes its place.", process.pid, process.returncode
                )
                _close_pipes(process)
                self._census.clear(row)
                if self._stopping.wait(_RESPAWN_S):
                    return
                self._processes[row] = self._spawn(row)


def _tell(process: subprocess.Popen[bytes], task: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()
    except OSError:
        return  # it has died, which the watcher notices


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # a flush to a process that is gone
