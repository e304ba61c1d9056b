"""A small Storage SCU on a plain socket: what `deliver`, `replay` and `doctor` send with. It distrusts the peer.

Own code and not a library's, because a sender must survive its receiver: every wait here has a deadline on the
monotonic clock, also in the middle of a PDU and while the peer has stopped reading; a hostile PDU length allocates
nothing; the data set goes from the file to the wire byte for byte, and its digest is known before the last byte leaves.
"""

from dicomguard.scu.association import Association, Outcome, Timeouts, echo
from dicomguard.scu.errors import AbortedError, AlteredError, LinkError, RejectedError, SilenceError, unreadable

__all__ = [
    "AbortedError",
    "AlteredError",
    "Association",
    "LinkError",
    "Outcome",
    "RejectedError",
    "SilenceError",
    "Timeouts",
    "echo",
    "unreadable",
]
