"""Several acceptor processes on one listening socket, watched by their parent.

One Python process serves little more than one core. The acceptors share the socket that the parent listens on, because
SO_REUSEPORT would give each a queue of its own and lose the connections queued for one that dies; and a few words of
shared memory for the association caps. They share nothing else: any of them may be killed at any moment.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomguard.errors import SpoolError
from dicomguard.receive.catalogue import standard_offer
from dicomguard.receive.census import Census, shared_memory
from dicomguard.receive.server import Doorman, listen
from dicomguard.receive.settings import ReceiveSettings
from dicomguard.receive.thinning import Bucket

_WATCH_S = 0.2
# An acceptor that dies at once is not started again in a tight loop.
_RESPAWN_S = 0.5
# Without an acceptor for so long, whoever waits is told to come again. A new one takes a second, or a few when busy.
_NOBODY_S = 5.0
_TURNED_AWAY_AT_ONCE = 256
# What goes on being wrong is said again after so long.
_REMIND_S = 60.0
# Between the end of the grace period and the end of our patience.
KILL_S = 10.0

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Acceptor:
    """The process that has a row of the census, or that had it last. `next_s`: when another one may take its place."""

    process: subprocess.Popen[bytes]
    is_ready: bool = False
    is_buried: bool = False
    next_s: float = 0.0


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
        self._acceptors: list[_Acceptor] = []
        self._doorman = Doorman()
        self._served_s = time.monotonic()
        self._unable, self._alone = (Bucket(1, 1 / _REMIND_S) for _ in range(2))
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="acceptors", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Start the acceptors and wait until they accept. Raises SpoolError when they do not come up."""
        try:
            for row in range(self._count):
                self._acceptors.append(_Acceptor(self._spawn(row)))
        except OSError as error:
            self.stop(0.0)
            raise SpoolError(
                f"An acceptor process cannot be started: {error.strerror}.",
                advice="Raise this user's limits on processes and open files.",
            ) from error
        for acceptor in self._acceptors:
            acceptor.is_ready = _is_ready(acceptor.process)  # blocks until the acceptor speaks or ends
            if not acceptor.is_ready:
                self.stop(0.0)
                raise SpoolError("An acceptor process did not come up.", advice="Its own message stands above.")
        self._served_s = time.monotonic()
        self._watcher.start()

    def stop(self, grace_s: float) -> None:
        """Stop accepting, let associations end within `grace_s`, and wait for the processes."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        self._listener.close()
        self._doorman.close()
        processes = [acceptor.process for acceptor in self._acceptors]
        for process in processes:
            _tell(process, {"stop": grace_s})
        deadline = time.monotonic() + grace_s + KILL_S
        for process in processes:
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
            try:
                self._tend()
            except Exception:  # noqa: BLE001 - the top of a loop that nothing may end: nobody else replaces acceptors
                _LOG.exception("The acceptors could not be looked after; it is tried again.")

    def _tend(self) -> None:
        now_s = time.monotonic()
        for row, acceptor in enumerate(self._acceptors):
            if acceptor.process.poll() is None:
                acceptor.is_ready = acceptor.is_ready or (_has_spoken(acceptor.process) and _is_ready(acceptor.process))
            elif not acceptor.is_buried:
                self._bury(row, acceptor, now_s)
            elif now_s >= acceptor.next_s:
                self._replace(row, acceptor, now_s)
        if any(acceptor.is_ready for acceptor in self._acceptors):
            self._served_s = now_s
        elif now_s - self._served_s > _NOBODY_S:
            self._turn_away(now_s)

    def _bury(self, row: int, acceptor: _Acceptor, now_s: float) -> None:
        process = acceptor.process
        _LOG.error("Acceptor %d ended with status %d; another one takes its place.", process.pid, process.returncode)
        _close_pipes(process)
        self._census.clear(row)
        acceptor.is_ready, acceptor.is_buried, acceptor.next_s = False, True, now_s + _RESPAWN_S

    def _replace(self, row: int, acceptor: _Acceptor, now_s: float) -> None:
        """Where no process can be started now, the dead one keeps the row until one can."""
        try:
            self._acceptors[row] = _Acceptor(self._spawn(row))
        except (OSError, MemoryError) as error:
            acceptor.next_s = now_s + _RESPAWN_S
            if self._unable.take() is not None:
                _LOG.error("No acceptor can be started: %s. It is tried again and again.", error)

    def _turn_away(self, now_s: float) -> None:
        """Nobody accepts: tell those who wait to come again, rather than let them hang."""
        for _ in range(_TURNED_AWAY_AT_ONCE):
            if not self._doorman.turn_away_next(self._listener):
                break
        if self._alone.take() is not None:
            _LOG.critical(
                "No acceptor has served for %.0f s: nothing is received, and who calls is told to come again (2/3/2).",
                now_s - self._served_s,
            )


def _has_spoken(process: subprocess.Popen[bytes]) -> bool:
    """True where reading from the process does not block."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    return bool(poll.poll(0))


def _is_ready(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == b"ready\n"


def _tell(process: subprocess.Popen[bytes], task: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()
    except (OSError, ValueError):
        return  # it has died, which the watcher notices, or has noticed: then the pipe is closed


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # a flush to a process that is gone
