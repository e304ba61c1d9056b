"""The family of errors that dicomguard raises on purpose, each placed on one arrow of the river.

Every error says what happened, to which file or UID, and what to do next. No error text carries patient data.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

# The process, or the machine, has no more of something: whatever is looked at now fails the same way.
_SHORTAGES: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_OF_THE_HOST: Final = _SHORTAGES | {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOLCK, errno.ESTALE}


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


class HostError(DicomguardError):
    """The host cannot do its part just now: no process starts, a file cannot be read. No fault of the instance."""


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


def is_shortage(error: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from, says that process or machine has no more of something."""
    return any(isinstance(one, OSError) and one.errno in _SHORTAGES for one in _with_causes(error))


def is_of_the_host(error: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from, says nothing about the data at hand but about the machine.

    A MemoryError is none of these: what one instance asks for can be too much on any machine.
    """
    return any(
        isinstance(one, (HostError, OutOfSpaceError)) or (isinstance(one, OSError) and one.errno in _OF_THE_HOST)
        for one in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
