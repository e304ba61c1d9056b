"""How a conversation with a peer can fail, sorted by what the sender should do about it."""

from __future__ import annotations

from dicomguard.errors import DeliveryError, HostError, SpoolError, is_of_the_host


class LinkError(DeliveryError):
    """The connection could not be made, broke, or the peer spoke something else than DICOM. Worth another try."""


class SilenceError(LinkError):
    """The peer did not answer, or did not read, in time. What it did with the last instance is unknown."""


class AbortedError(LinkError):
    """The peer aborted the association (A-ABORT, PS3.8 section 9.3.8)."""


class RejectedError(DeliveryError):
    """The peer rejected the association (A-ASSOCIATE-RJ). `result` 1 is permanent, 2 transient (PS3.8 table 9-21)."""

    def __init__(self, message: str, result: int, source: int, reason: int) -> None:
        super().__init__(message)
        self.result = result
        self.source = source
        self.reason = reason

    @property
    def is_permanent(self) -> bool:
        """True when the peer says that asking again in the same way is of no use."""
        return self.result == 1


class AlteredError(SpoolError):
    """The data set is not, or no longer, the one whose digest was expected. Not sent, or cut off before its end."""


def unreadable(name: str, error: OSError) -> AlteredError | HostError:
    """What it means that a file to be sent cannot be read: the machine's trouble passes, a missing file's does not."""
    if is_of_the_host(error):
        return HostError(f"{name} cannot be read just now: {error.strerror}.")
    return AlteredError(f"{name} cannot be read: {error.strerror}.")
