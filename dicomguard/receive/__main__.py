"""One acceptor process. Started by `acceptors`, which tells it on standard input what to do and when to stop.

It imports neither pynetdicom nor pydicom: what to accept comes with the task, and everything else is ours.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from dicomguard.receive.census import Census
from dicomguard.receive.chronicle import FloodFilter
from dicomguard.receive.offer import Offer
from dicomguard.receive.server import Receiver
from dicomguard.receive.settings import ReceiveSettings
from dicomguard.spool.incoming import Incoming
from dicomguard.spool.journal import JournalWriter

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # as the command line's

_LOG = logging.getLogger(__name__)


def _log_uncaught(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        info = (args.exc_type, args.exc_value, args.exc_traceback)
        _LOG.critical("A thread ended for a reason nobody foresaw; please report this.", exc_info=info)


def main() -> None:
    """Serve until told to stop, or until the parent is gone."""
    # A Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    task = json.loads(sys.stdin.buffer.readline())
    handler = logging.StreamHandler()
    handler.addFilter(FloodFilter())
    logging.basicConfig(level=task["log_level"], handlers=[handler], format=_LOG_FORMAT)
    threading.excepthook = _log_uncaught
    root = Path(task["spool_root"])
    receiver = Receiver(
        ReceiveSettings.from_json(task["settings"]),
        Incoming(root, reserve_bytes=task["reserve_bytes"]),
        JournalWriter(root),
        listener=socket.socket(fileno=task["listener"]),
        census=Census(task["rows"], task["row"], task["census"]),
        offer=Offer(*(frozenset(task[key]) for key in ("storage_classes", "non_patient_classes", "transfer_syntaxes"))),
    )
    receiver.start()
    try:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)  # the parent was killed meanwhile, see below
    last = sys.stdin.buffer.readline()
    if not last:
        # The parent was killed. Whoever comes next must find the port free and the parts nobody's: end here and now.
        # No sender loses anything by it, for what is not acknowledged is sent again.
        os._exit(1)
    receiver.stop(float(json.loads(last)["stop"]))


if __name__ == "__main__":
    main()
