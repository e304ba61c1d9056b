"""Runs the parts of the node as child processes: starts them, starts them again, and stops them in the right order.

A part that ends with exit code 2 says that what a person gave it is wrong: the configuration, or a bundle. While the
node starts, the whole node then stops, because that person is still looking. Later it never does: a model that changed
on disk must not end reception. The other parts go on, and this one is tried again until somebody has mended the cause.
Knows nothing of DICOM.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)

CONFIGURATION_EXIT = 2
GRACE_S = 30.0
_POLL_S = 0.2
# How long a node counts as starting. Loading torch and a model takes 5 to 20 s.
_STARTING_S = 60.0
_BACKOFF_MAX_S = 30.0
_RETRY_S = 1.0  # where the system starts no process at all; said at first, and every so many times:
_REMINDER = 60
_HEALTHY_S = 60.0  # a part that ran so long starts its next life without delay


@dataclass(slots=True)
class Part:
    """One child process. `grace_s`: how long it may take to end by itself after SIGTERM.

    `refusals`: how often in a row the system would start none.
    """

    name: str
    argv: Sequence[str]
    grace_s: float = GRACE_S
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    next_start_s: float = 0.0
    failures: int = 0
    restarts: int = 0
    refusals: int = 0


class Supervisor:
    """Parts in the order in which they stop: reception first, so that nothing new comes while the rest drains."""

    def __init__(self, parts: Sequence[Part], monotonic: Callable[[], float] = time.monotonic) -> None:
        self.parts = list(parts)
        self._monotonic = monotonic
        self._started_s = monotonic()

    def run(self, stop: threading.Event) -> int:
        """Keep the parts running until `stop` is set. Returns the exit code for the node."""
        self._started_s = self._monotonic()
        try:
            while not stop.is_set():
                code = self.step()
                if code is not None:
                    return code
                stop.wait(_POLL_S)
            return 0
        finally:
            self.stop()

    def step(self) -> int | None:
        """Look after every part once. Returns the node's exit code where it should stop, None where it should not."""
        for part in self.parts:
            code = self._tend(part)
            if code is not None:
                return code
        return None

    def _tend(self, part: Part) -> int | None:
        now = self._monotonic()
        if part.process is None:
            if now >= part.next_start_s:
                self._start(part, now)
            return None
        code = part.process.poll()
        if code is None:
            return None
        _forget(part)
        if code == CONFIGURATION_EXIT and now - self._started_s < _STARTING_S:
            _log.error("'%s' cannot run with this configuration; the node stops.", part.name)
            return code
        part.failures = 0 if now - part.started_s > _HEALTHY_S else part.failures + 1
        delay_s = min(_BACKOFF_MAX_S, 0.5 * 2.0 ** (part.failures - 1)) if part.failures > 1 else 0.0
        part.next_start_s = now + delay_s
        part.restarts += 1
        if code == CONFIGURATION_EXIT:
            _log.critical(
                "'%s' cannot run with the configuration or a bundle as they are now. The other parts go on and nothing"
                " is lost; run 'dicomguard doctor'. It starts again in %.1f s.",
                part.name,
                delay_s,
            )
        else:
            _log.error("'%s' ended with code %d; it starts again in %.1f s.", part.name, code, delay_s)
        return None

    def _start(self, part: Part, now: float) -> None:
        # The child ends when its standard input does: so it cannot outlive a supervisor that was killed.
        try:
            part.process = subprocess.Popen(part.argv, stdin=subprocess.PIPE)
        except (OSError, MemoryError) as error:
            # No descriptor, process or memory left: the other parts go on, and this one comes as soon as there is.
            part.next_start_s = now + _RETRY_S
            if part.refusals % _REMINDER == 0:
                _log.critical("'%s' cannot be started: %s. It is tried every %.0f s.", part.name, error, _RETRY_S)
            part.refusals += 1
            return
        part.refusals = 0
        part.started_s = now
        _log.info("'%s' runs as process %d.", part.name, part.process.pid)

    def stop(self) -> None:
        """Stop the parts one after the other, each with its grace."""
        for part in self.parts:
            if part.process is None:
                continue
            part.process.terminate()
            try:
                part.process.wait(part.grace_s)
            except subprocess.TimeoutExpired:
                _log.error(
                    "'%s' did not end within %.0f s; killed. Nothing acknowledged is lost.", part.name, part.grace_s
                )
                part.process.kill()
                part.process.wait()
            _forget(part)


def _forget(part: Part) -> None:
    if part.process is not None and part.process.stdin is not None:
        part.process.stdin.close()
    part.process = None
