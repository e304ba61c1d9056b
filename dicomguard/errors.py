"""The family of errors that dicomguard raises on purpose, each placed on one arrow of the river.

Every error says what happened, to which file or UID, and what to do next. No error text carries patient data.
"""


class DicomguardError(Exception):
    """Base of everything raised on purpose. `advice` is the next step for a person, "" where there is none."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        """Message and advice on one line, as the command line and the log show them."""
        return f"{self.message} {self.advice}".strip()


class ConfigError(DicomguardError):
    """The configuration cannot be used; the message names file, line and what to write instead."""


class SpoolError(DicomguardError):
    """The spool cannot do what was asked: wrong volume, missing folder, unknown item."""


class OutOfSpaceError(SpoolError):
    """The spool's volume is full, or over its watermark. The sender keeps the data (status 0xA700)."""


class EnvelopeError(SpoolError):
    """A file in the spool is not one that this node wrote, or was altered since."""


class BundleError(DicomguardError):
    """A protected model cannot be loaded: layout, checksum, constructor not on the allow list, fingerprint."""


class LedgerError(DicomguardError):
    """The ledger cannot be opened, written or trusted."""


class NotFoundError(DicomguardError):
    """A person named a decision, a study or a delivery that is not there."""


class ReviewError(DicomguardError):
    """A review that cannot be carried out: no actor, no reason, already ruled on."""


class DeliveryError(DicomguardError):
    """A destination cannot be reached, or refused what it was sent."""
