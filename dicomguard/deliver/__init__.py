"""The deliverer: sends what was decided to forward, as it was received, and never gives up by count.

It reads `spool/outbound/<destination>/`, records every step in the ledger, and moves nothing itself: the spool does.
At least once: after a crash between sending and recording, an instance is sent again (its UID makes that harmless).
"""

from dicomguard.deliver.deliverer import Deliverer, run
from dicomguard.deliver.destination import Destination, Settings, echo
from dicomguard.deliver.requeue import resend, retry
from dicomguard.deliver.retention import Retention

__all__ = ["Deliverer", "Destination", "Retention", "Settings", "echo", "resend", "retry", "run"]
