"""Commands that run the node: `serve` and each of its parts."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from typing import Annotated

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption
from dicomguard.errors import LedgerError

_log = logging.getLogger(__name__)
_IDLE_S = 0.2
_TROUBLE_S = 2.0

Supervised = Annotated[bool, typer.Option("--supervised", hidden=True, help="End when standard input does.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    for command in (serve, receive, screen, deliver):
        app.command()(command)


def serve(config: ConfigOption) -> None:
    """Run the whole node: every part as a supervised child. SIGTERM drains and stops it."""
    from dicomguard.receive.process import ENDS_WITHIN_S
    from dicomguard.supervise import GRACE_S, Part, Supervisor

    settings = compose.read_config(config)
    compose.open_spool(settings)
    compose.site_key(settings)  # made once, before three children would race for it
    # The ledger is opened by the parts that need it, and they come back until it is there: reception does not wait.
    command = [sys.executable, "-m", "dicomguard"]
    path = str(config.resolve())
    graces_s = {"receive": ENDS_WITHIN_S, "screen": GRACE_S, "deliver": GRACE_S}
    parts = [Part(name, [*command, name, "-c", path, "--supervised"], grace_s) for name, grace_s in graces_s.items()]
    raise typer.Exit(Supervisor(parts).run(_until_stopped(supervised=False)))


def receive(config: ConfigOption, supervised: Supervised = False) -> None:
    """Run the Storage SCP: receives studies into the spool."""
    from dicomguard.receive.process import run

    settings = compose.read_config(config)
    compose.check_owner(settings)
    run(
        compose.receive_settings(settings),
        settings.spool_dir,
        reserve_bytes=settings.limits.spool_reserve_mib * 2**20,
        stop=_until_stopped(supervised=supervised),
    )


def screen(config: ConfigOption, supervised: Supervised = False) -> None:
    """Run the screener: reads, scores, decides, records and routes what was received."""
    settings = compose.read_config(config)
    spool = compose.open_spool(settings)
    stop = _until_stopped(supervised=supervised)
    with (
        spool.exclusive("screen"),
        compose.open_ledger(settings, "screen") as ledger,
        compose.decode_worker(settings) as worker,
    ):
        screener = compose.screener(settings, spool, ledger, worker)
        _log.info("The screener is ready: %d bundle(s).", len(settings.bundles))
        recovered = False
        pause_s = 0.0
        while not stop.wait(pause_s):
            try:
                if not recovered:
                    count = screener.recover()
                    recovered = True
                    if count:
                        _log.info("Took up %d claim(s) of a former run.", count)
                pause_s = 0.0 if screener.step() else _IDLE_S
            except LedgerError as error:
                # Reception goes on meanwhile; nothing is decided that cannot be recorded.
                _log.error("%s Trying again.", error)
                pause_s = _TROUBLE_S
            except Exception:  # noqa: BLE001  # the top of the part's loop: the next step may well succeed
                _log.exception("A step of the screener failed; it goes on.")
                pause_s = _TROUBLE_S


def deliver(config: ConfigOption, supervised: Supervised = False) -> None:
    """Run the Storage SCU: forwards what was found clean, and ends retention periods."""
    from dicomguard.deliver import run

    settings = compose.read_config(config)
    spool = compose.open_spool(settings)
    with spool.exclusive("deliver"), compose.open_ledger(settings, "deliver") as ledger:
        run(
            spool,
            ledger,
            compose.destinations(settings),
            calling_ae=settings.node.ae_title,
            retention_days=settings.retention_days,
            stop=_until_stopped(supervised=supervised),
            settings=compose.delivery_settings(settings),
        )


def _until_stopped(*, supervised: bool) -> threading.Event:
    """Set by SIGTERM and SIGINT; under a supervisor also when that one is gone."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not in the handler: `set` takes a lock that the main thread may hold at the moment that it is interrupted in.
        signal.signal(number, lambda *_: _set_elsewhere(stop))
    if supervised:
        threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    return stop


def _set_elsewhere(stop: threading.Event) -> None:
    _thread.start_new_thread(stop.set, ())


def _watch_parent(stop: threading.Event) -> None:
    # The supervisor holds the other end and never writes: a read ends only when it is gone, however it went.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()
