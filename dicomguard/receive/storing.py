"""One C-STORE from its command to its status: bytes into a part of the spool, a look at the head, commit (PS3.4 B.2).

Success means: on disk, under its final name, synced, and the folder synced. Whatever fails is a status of PS3.4
table B.2-1, never an exception, and the association goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from dicomguard.errors import OutOfSpaceError, SpoolError
from dicomguard.receive import head
from dicomguard.receive.command import Command
from dicomguard.spool.incoming import Incoming, Part
from dicomguard.study import Receipt, Uid

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
UNPARSABLE = 0xC101
MISSING_UID = 0xC104
INVALID_UID = 0xC105
NO_DATA_SET = 0xC106
INTERNAL_ERROR = 0xC1FF

# All associations together overrun the reserve by less than this times their number.
_SPACE_CHECK_BYTES = 2**20

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of the response, its Error Comment, and whether the bytes are in the spool."""

    status: int
    comment: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Sender:
    """What a receipt says about the association."""

    calling_ae: str
    called_ae: str
    address: str
    association_id: str


_FAULTS = {
    "uid_mismatch": Answer(MISMATCH, "UIDs of data set and command differ", kept=True),
    "missing_uid": Answer(MISSING_UID, "SOP or Study Instance UID missing", kept=True),
    "invalid_uid": Answer(INVALID_UID, "A UID has illegal characters or length", kept=True),
    "unparsable": Answer(UNPARSABLE, "Head of the data set cannot be read", kept=True),
}


class Storing:
    """Receives one instance: `write` for each fragment, then `finish` once; `discard` when there will be no end."""

    def __init__(
        self,
        command: Command,
        context: tuple[str, str],
        sender: Sender,
        incoming: Incoming,
        *,
        needs_study: bool,
        max_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        """`context` is the presentation context's abstract and transfer syntax."""
        self._command = command
        self._abstract_syntax, self._transfer_syntax = context
        self._sender = sender
        self._incoming = incoming
        self._needs_study = needs_study
        self._max_bytes = max_bytes
        self._next_check = _SPACE_CHECK_BYTES
        self._now = now
        self._part: Part | None = None
        self._refused: Answer | None = None
        self.size_bytes = 0
        if command.has_data_set:
            self._guarded(self._begin)
        else:
            self._refused = Answer(NO_DATA_SET, "C-STORE without a data set")

    def write(self, fragment: memoryview) -> None:
        """Take a fragment of the data set. After a failure the rest is thrown away, so that the status arrives."""
        self.size_bytes += len(fragment)
        if self._refused is None:
            self._guarded(lambda: self._write(fragment))

    def finish(self) -> Answer:
        """The data set is complete: say what became of it."""
        answer: Answer | None = None
        if self._refused is None:
            answer = self._guarded(self._commit)
        self.discard()
        return self._refused or answer or Answer(INTERNAL_ERROR, "Internal error")

    def discard(self) -> None:
        """Remove what is not committed. Safe to call at any time."""
        part, self._part = self._part, None
        if part is not None:
            try:
                part.discard()
            except OSError as error:
                _LOG.error("A part could not be removed: %s; it goes when the receiver starts again.", error.strerror)

    def _begin(self) -> None:
        self._incoming.check_space()
        self._part = self._incoming.begin(
            sop_class_uid=_shown(self._command.sop_class_uid),
            sop_instance_uid=_shown(self._command.sop_instance_uid),
            transfer_syntax_uid=self._transfer_syntax,
            calling_ae=self._sender.calling_ae,
        )

    def _write(self, fragment: memoryview) -> None:
        if self.size_bytes > self._max_bytes:
            self._refuse(Answer(OUT_OF_RESOURCES, "Instance larger than this node takes"))
            return
        if self.size_bytes > self._next_check:
            self._next_check += _SPACE_CHECK_BYTES
            self._incoming.check_space()
        assert self._part is not None
        self._part.write(fragment)

    def _commit(self) -> Answer:
        part = self._part
        assert part is not None
        descriptor, offset = part.descriptor, part.data_offset
        seen = head.look(lambda size, position: os.pread(descriptor, size, offset + position), self._transfer_syntax)
        fault = self._fault(seen)
        part.commit(
            Receipt(
                received_at=self._now(),
                calling_ae=self._sender.calling_ae,
                called_ae=self._sender.called_ae,
                address=self._sender.address,
                association_id=self._sender.association_id,
                sop_class_uid=Uid(_shown(self._command.sop_class_uid)),
                sop_instance_uid=Uid(_shown(self._command.sop_instance_uid)),
                transfer_syntax_uid=Uid(self._transfer_syntax),
                study_instance_uid=Uid(_shown(seen.study_instance_uid)),
                series_instance_uid=Uid(_shown(seen.series_instance_uid)),
                sha256="",
                size_bytes=0,
                fault=fault,
            )
        )
        return _FAULTS[fault] if fault else Answer(SUCCESS, kept=True)

    def _fault(self, seen: head.Head) -> str:
        if seen.problem:
            return "unparsable"
        command = self._command
        needed = [command.sop_class_uid, command.sop_instance_uid, seen.sop_class_uid, seen.sop_instance_uid]
        if self._needs_study:
            needed.append(seen.study_instance_uid)
        if not all(needed):
            return "missing_uid"
        sent = (*needed, seen.study_instance_uid, seen.series_instance_uid)
        if not all(head.is_uid(uid) for uid in sent if uid):
            return "invalid_uid"
        same_class = command.sop_class_uid == seen.sop_class_uid == self._abstract_syntax
        return "" if same_class and command.sop_instance_uid == seen.sop_instance_uid else "uid_mismatch"

    def _guarded(self, act: Callable[[], _T]) -> _T | None:
        try:
            return act()
        except OutOfSpaceError as error:
            _LOG.error("%s", error)
            self._refuse(Answer(OUT_OF_RESOURCES, "Out of storage space; send again later"))
        except (SpoolError, OSError) as error:
            _LOG.error("The spool failed: %s", error)
            self._refuse(Answer(OUT_OF_RESOURCES, "Storage failed; send again later"))
        except Exception:  # noqa: BLE001 - the association outlives any fault of one instance, and the sender is told
            _LOG.exception("A C-STORE failed for a reason nobody foresaw; please report this.")
            self._refuse(Answer(INTERNAL_ERROR, "Internal error"))
        return None

    def _refuse(self, answer: Answer) -> None:
        self._refused = answer
        self.discard()


def _shown(uid: str) -> str:
    """A UID as it may stand in a header and a receipt, with `?` for every character that may not."""
    if not uid or head.is_uid(uid):
        return uid
    return "".join(character if character in "0123456789." else "?" for character in uid[:64])
