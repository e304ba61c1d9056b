"""The receiver as a process: from a clean spool to SIGTERM."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dicomguard.errors import ConfigError
from dicomguard.receive.acceptors import KILL_S, Acceptors
from dicomguard.receive.settings import ReceiveSettings
from dicomguard.spool.store import Spool

# How long associations may go on once the node is told to stop.
GRACE_S: Final = 30.0
ENDS_WITHIN_S: Final = GRACE_S + KILL_S + 5.0
# Acceptors whose parent was killed end within milliseconds; then the port is free.
_PORT_WAIT_S = 5.0
# Parts of an acceptor that was killed: a live one is written to at least every `gap_s`.
_SWEEP_S = 60.0
_STALE_S = 600.0

_LOG = logging.getLogger(__name__)


def run(
    settings: ReceiveSettings,
    spool_root: Path,
    *,
    reserve_bytes: int,
    stop: threading.Event,
    grace_s: float = GRACE_S,
    on_ready: Callable[[int], None] = lambda _: None,
) -> None:
    """Receive until `stop` is set; then drain for `grace_s`, and return.

    `on_ready` is told the port once connections are served. Raises ConfigError or SpoolError where it cannot start.
    """
    spool = Spool(spool_root)
    spool.create()
    # The port before the parts: while an acceptor of a former run lives it holds the port, and its parts are not ours.
    acceptors = _listening(settings, spool_root, reserve_bytes)
    with spool.exclusive("receive"):
        removed = spool.sweep_parts()
        if removed:
            _LOG.info("Removed %d part(s) of instances that were never acknowledged.", removed)
        acceptors.start()
        _LOG.info("Receiving as %s on %s port %d.", settings.ae_title, settings.host, acceptors.port)
        on_ready(acceptors.port)
        while not stop.wait(_SWEEP_S):
            try:
                spool.sweep_parts(older_than_s=max(_STALE_S, 2 * settings.gap_s))
            except OSError as error:  # such as no descriptor left: reception goes on, and the next sweep finds them
                _LOG.error("Parts that nobody finished cannot be swept away: %s.", error.strerror)
        _LOG.info("Stopping: associations may end within %.0f s.", grace_s)
        acceptors.stop(grace_s)


def _listening(settings: ReceiveSettings, spool_root: Path, reserve_bytes: int) -> Acceptors:
    deadline = time.monotonic() + _PORT_WAIT_S
    while True:
        try:
            return Acceptors(settings, spool_root, reserve_bytes=reserve_bytes)
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
