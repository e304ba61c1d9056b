"""Why an instance's pixels cannot be had, as an exception inside this package; outside it is a `Fault`."""

from __future__ import annotations

from dicomguard.decision import Fault, Reason
from dicomguard.errors import DicomguardError


class RefusalError(DicomguardError):
    """Reading stops here. `detail` is for people: tags, sizes and counts, never a value that may concern a patient."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    @property
    def fault(self) -> Fault:
        """The same as a value."""
        return Fault(self.reason, self.message)


def unparsable(detail: str) -> RefusalError:
    """The data set's structure cannot be followed."""
    return RefusalError(Reason.UNPARSABLE, detail)


def truncated(detail: str) -> RefusalError:
    """Bytes are missing."""
    return RefusalError(Reason.TRUNCATED, detail)


def over_limits(detail: str) -> RefusalError:
    """More is asked for than this node grants."""
    return RefusalError(Reason.OVER_LIMITS, detail)


def undecodable(detail: str) -> RefusalError:
    """The pixels contradict their description or their codec."""
    return RefusalError(Reason.UNDECODABLE, detail)


def codec_missing(detail: str) -> RefusalError:
    """Nothing installed here decodes this."""
    return RefusalError(Reason.CODEC_MISSING, detail)
