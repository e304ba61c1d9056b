"""All destinations side by side, each with its own courier, and the retention period beside them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from dicomguard.deliver.courier import Courier
from dicomguard.deliver.destination import Destination, Settings
from dicomguard.deliver.retention import Retention
from dicomguard.errors import DicomguardError
from dicomguard.ledger import Ledger
from dicomguard.spool.store import Spool

_log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.2
_TROUBLE_S: Final = 5.0
_RETENTION_S: Final = 600.0


class Deliverer:
    """The couriers and the retention. `step` does one round in this thread; `run` gives each a thread of its own."""

    def __init__(
        self, couriers: Sequence[Courier], retention: Retention | None = None, *, stop: threading.Event | None = None
    ) -> None:
        self._couriers = list(couriers)
        self._retention = retention
        self._stop = stop or threading.Event()

    def step(self) -> bool:
        """One batch for each destination that has one due, and one look at the retention. True: there was work."""
        steps = [courier.step for courier in self._couriers]
        if self._retention is not None:
            steps.append(self._retention.step)
        return any([_try(step) for step in steps])  # noqa: C419 - everyone gets a turn, not only the first with work

    def run(self) -> None:
        """Until the stop event is set; then every courier ends after the instance that it is sending."""
        threads = [
            threading.Thread(target=self._loop, args=(courier.step, _PAUSE_S), name=f"to {courier.destination.name}")
            for courier in self._couriers
        ]
        if self._retention is not None:
            threads.append(
                threading.Thread(target=self._loop, args=(self._retention.step, _RETENTION_S), name="retention")
            )
        for thread in threads:
            thread.start()
        self._stop.wait()
        for thread in threads:
            thread.join()

    def _loop(self, step: Callable[[], bool], pause_s: float) -> None:
        while not self._stop.is_set():
            worked = _try(step)
            if not worked:
                self._stop.wait(_TROUBLE_S if worked is None else pause_s)


def run(
    spool: Spool,
    ledger: Ledger,
    destinations: Sequence[Destination],
    *,
    calling_ae: str,
    retention_days: float,
    stop: threading.Event,
    settings: Settings | None = None,
) -> None:
    """Deliver until `stop` is set. `settings` for other patience than the default."""
    settings = settings or Settings(calling_ae)
    couriers = [Courier(spool, ledger, destination, settings, stop=stop) for destination in destinations]
    known = {destination.name for destination in destinations}
    queued, strays = spool.queues()
    for name in queued:
        if name not in known:
            _log.error("Instances wait for destination %s, which is not configured. Add it again.", name)
    for name in strays:
        # Whoever can write here chose the name: repr() keeps it on one line.
        _log.error("%r in %s is no destination's folder; it is passed over.", name, spool.root / "outbound")
    Deliverer(couriers, Retention(spool, ledger, retention_days=retention_days), stop=stop).run()


def _try(step: Callable[[], bool]) -> bool | None:
    """None: it failed. One destination's trouble, or the ledger's, must not end the others."""
    try:
        return step()
    except DicomguardError as error:
        _log.error("%s", error)
    except Exception:  # noqa: BLE001 - the top of a part's loop: nothing may end it
        _log.exception("Delivery failed unexpectedly; it goes on.")
    return None
