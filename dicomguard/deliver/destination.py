"""Where to send, as whom, and with how much patience."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from dicomguard import scu
from dicomguard.errors import DeliveryError
from dicomguard.scu import Timeouts
from dicomguard.study import Peer


@dataclass(frozen=True, slots=True)
class Destination:
    """A node that clean studies are forwarded to. `name` is its folder in the spool and its name in the ledger."""

    name: str
    peer: Peer


@dataclass(frozen=True, slots=True)
class Settings:
    """How the deliverer behaves; every duration in seconds.

    `alarm_after_s`: a destination that fails for so long raises an alarm, once. `batch`: instances of one study on one
    association. `max_strikes`: with so many doubtful answers in a row, the last a status that no table knows, an
    instance is dead.
    """

    calling_ae: str
    retry_first_s: float = 1.0
    retry_max_s: float = 900.0
    alarm_after_s: float = 3600.0
    batch: int = 500
    max_strikes: int = 5
    timeouts: Timeouts = field(default_factory=Timeouts)

    def delay_s(self, failures: int, jitter: float | None = None) -> float:
        """The pause after the `failures`-th failure in a row: doubled each time, up to the maximum, less up to a half.

        `jitter` in [0, 1); drawn where it is None. Without it, all senders that lost a receiver come back at once.
        """
        full_s = min(self.retry_max_s, self.retry_first_s * 2.0 ** min(failures - 1, 62))
        drawn = random.random() if jitter is None else jitter  # noqa: S311 - spreads load, guards nothing
        return full_s * (1.0 - 0.5 * drawn)


def echo(destination: Destination, *, calling_ae: str, timeouts: Timeouts | None = None) -> None:
    """C-ECHO a destination.

    Raises:
        DeliveryError: it cannot be reached, or does not answer with success; with advice.

    """
    peer = destination.peer
    where = f"Destination {destination.name} ({peer})"
    try:
        outcome = scu.echo(peer.host, peer.port, calling_ae=calling_ae, called_ae=peer.ae_title, timeouts=timeouts)
    except scu.RejectedError as error:
        raise DeliveryError(
            f"{where}: {error.message}", advice=f"Have it accept the calling AE title {calling_ae}, and check its own."
        ) from error
    except DeliveryError as error:
        raise DeliveryError(f"{where}: {error.message}", advice="Check its address, port and firewall.") from error
    if outcome.status != 0:
        raise DeliveryError(f"{where} answers C-ECHO with status 0x{outcome.status:04X}.", advice="See its log.")
