"""One connection from its first byte to its last: the acceptor's half of the upper layer (PS3.8 9.2) in a thread.

There are no queues and no polling: a PDU is read when the one before it has been dealt with. So a peer that sends
faster than the disk can write, or pipelines requests, waits in its own TCP window and costs no memory here.
"""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.receive import command as dimse
from dicomguard.receive import pdu
from dicomguard.receive.admission import UNKNOWN_ADDRESS, Admission, Refusal
from dicomguard.receive.census import Census
from dicomguard.receive.chronicle import Chronicle
from dicomguard.receive.offer import VERIFICATION, Offer
from dicomguard.receive.pdu import ProtocolError
from dicomguard.receive.settings import ReceiveSettings
from dicomguard.receive.storing import INTERNAL_ERROR, SUCCESS, Sender, Storing
from dicomguard.receive.stream import GoneError, LateError, Stream, hang_up, send
from dicomguard.spool.incoming import Incoming

_UNRECOGNISED_OPERATION = 0x0211
_SOP_CLASS_NOT_SUPPORTED = 0x0122
_MAX_COMMAND_BYTES = 16 * 1024
# How long a peer may pause between two instances once the node is stopping.
_STOPPING_IDLE_S = 2.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class House:
    """What all conversations of one acceptor share."""

    settings: ReceiveSettings
    offer: Offer
    admission: Admission
    census: Census
    chronicle: Chronicle
    incoming: Incoming
    now: Callable[[], datetime]
    stopping: threading.Event


class Conversation:
    """Serves one connection. `run` in a thread of its own; `cut` from any other."""

    def __init__(self, connection: socket.socket, address: str, house: House) -> None:
        self._connection = connection
        self._address = address
        self._house = house
        self._settings = house.settings
        self._stream = Stream(connection, is_stopping=self._must_end)
        self._association_id = ""
        self._request: pdu.AssociateRequest | None = None
        self._contexts: dict[int, tuple[str, str]] = {}
        self._refusal: Refusal | None = None
        self._last_words = b""
        # The message being received.
        self._command_bytes = bytearray()
        self._command: dimse.Command | None = None
        self._context_id = 0
        self._storing: Storing | None = None
        self._message_began_s = 0.0
        self._message_bytes = 0
        # For the journal.
        self._instances = 0
        self._bytes = 0
        self._faulty = 0
        self._refused = 0
        self._internal_errors = 0

    @property
    def is_open(self) -> bool:
        """True once an association is established."""
        return bool(self._association_id)

    def cut(self) -> None:
        """End the conversation from outside: its thread finds the connection closed and cleans up."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already

    def run(self, on_open: Callable[[], None]) -> None:
        """Everything, including the close. Never raises. `on_open` is called when the association is established."""
        kind, detail = AssociationKind.DROPPED, ""
        try:
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind, detail = self._converse(on_open)
        except GoneError as error:
            detail = str(error) or "connection closed"
        except LateError as error:
            detail = str(error)
            kind = AssociationKind.ABORTED if self.is_open else AssociationKind.DROPPED
            self._last_words = pdu.encode_abort(0, by_provider=False) if self.is_open else b""
        except ProtocolError as error:
            detail = error.what
            kind = AssociationKind.ABORTED
            self._last_words = pdu.encode_abort(error.reason)
        except OSError as error:
            detail = error.strerror or "connection error"
        except Exception:  # noqa: BLE001 - one bad peer must not end the acceptor; it is told, logged and journalled
            _LOG.exception(
                "An association from %s ended for a reason nobody foresaw; please report this.", self._address
            )
            detail = "internal error"
            kind = AssociationKind.ABORTED
            self._last_words = pdu.encode_abort(0)
        finally:
            self._clean_up(kind, detail)

    def _clean_up(self, kind: AssociationKind, detail: str) -> None:
        if self._storing is not None:
            self._storing.discard()
        if self.is_open:
            self._house.census.dismiss(self._address)
        self._tell(kind, "; ".join(part for part in (detail, self._tally()) if part))
        if self._last_words:
            hang_up(self._connection, self._last_words, linger_s=self._settings.linger_s)
        else:
            self._connection.close()

    # --- the association

    def _converse(self, on_open: Callable[[], None]) -> tuple[AssociationKind, str]:
        house = self._house
        if not house.admission.knows_address(self._address):
            # Refused before a byte of theirs is read.
            return self._reject(UNKNOWN_ADDRESS)
        kind, body = self._stream.read(
            max_bytes=self._settings.max_associate_bytes,
            opening=True,
            wait_s=self._settings.associate_s,
            pdu_s=self._settings.associate_s,
            waits_for="an association request",
        )
        if kind == pdu.ABORT:
            return AssociationKind.DROPPED, "aborted before it asked for an association"
        request = self._request = pdu.decode_associate_request(body)
        refusal = house.admission.refusal(self._address, request) or self._crowded()
        if refusal is not None:
            return self._reject(refusal)
        self._association_id = uuid.uuid4().hex
        on_open()
        results = house.offer.answer(request.contexts)
        self._contexts = {
            result.context_id: (result.abstract_syntax, result.transfer_syntax)
            for result in results
            if result.result == pdu.ACCEPTANCE
        }
        self._send(pdu.encode_accept(request, results, self._settings.max_pdu_bytes))
        self._tell(AssociationKind.ACCEPTED, "")
        return self._serve()

    def _reject(self, refusal: Refusal) -> tuple[AssociationKind, str]:
        self._last_words = pdu.encode_reject(refusal.result, refusal.source, refusal.reason)
        return AssociationKind.REJECTED, str(refusal)

    def _crowded(self) -> Refusal | None:
        return self._house.census.admit(
            self._address,
            limit=self._settings.max_associations,
            limit_per_address=self._settings.max_associations_per_address,
        )

    def _serve(self) -> tuple[AssociationKind, str]:
        settings = self._settings
        longest = settings.max_pdu_bytes + settings.pdu_slack_bytes
        while True:
            in_message = self._in_message
            kind, body = self._stream.read(
                max_bytes=longest,
                opening=False,
                wait_s=settings.gap_s if in_message else settings.idle_s,
                pdu_s=settings.pdu_s,
                waits_for="the rest of a message" if in_message else "a request",
            )
            if kind == pdu.P_DATA:
                self._take(body)
            elif kind == pdu.RELEASE_RQ:
                self._last_words = pdu.RELEASE_RESPONSE
                return AssociationKind.RELEASED, "amid a message" if in_message else ""
            else:
                return AssociationKind.ABORTED, "by the peer"

    def _must_end(self, waiting_s: float) -> bool:
        """Asked while nothing comes: once the node is stopping, nobody is waited for between two messages."""
        return self._house.stopping.is_set() and not self._in_message and waiting_s >= _STOPPING_IDLE_S

    # --- messages

    @property
    def _in_message(self) -> bool:
        return bool(self._command_bytes) or self._command is not None

    def _take(self, body: memoryview) -> None:
        arrived_s = self._stream.now_s
        if not self._in_message:
            self._message_began_s = arrived_s
            self._message_bytes = 0
        self._message_bytes += len(body)
        for context_id, control, fragment in pdu.fragments(body):
            if context_id not in self._contexts:
                raise ProtocolError("a PDV names a context that was not accepted", pdu.INVALID_PARAMETER)
            if control & 1:
                self._take_command(context_id, fragment, is_last=bool(control & 2))
            else:
                self._take_data(context_id, fragment, is_last=bool(control & 2))
        # An answered message is late no more.
        elapsed_s = arrived_s - self._message_began_s
        is_slow = self._message_bytes < elapsed_s * self._settings.min_rate_bytes_s
        if self._in_message and is_slow and elapsed_s > self._settings.gap_s:
            raise LateError("a message came too slowly")
        self._message_began_s += self._stream.now_s - arrived_s  # what our own disk takes is not the peer's fault

    def _take_command(self, context_id: int, fragment: memoryview, *, is_last: bool) -> None:
        if self._command is not None or (self._command_bytes and context_id != self._context_id):
            raise ProtocolError("a command set interrupts a message", pdu.UNEXPECTED_PARAMETER)
        self._context_id = context_id
        self._command_bytes += fragment
        if len(self._command_bytes) > _MAX_COMMAND_BYTES:
            raise ProtocolError("a command set is too long", pdu.INVALID_PARAMETER)
        if is_last:
            command = dimse.decode(bytes(self._command_bytes))
            self._command_bytes.clear()
            self._begin(command)

    def _begin(self, command: dimse.Command) -> None:
        self._command = command
        context = self._contexts[self._context_id]
        if command.field == dimse.C_STORE_RQ and context[0] != VERIFICATION:
            assert self._request is not None
            sender = Sender(self._request.calling_ae, self._request.called_ae, self._address, self._association_id)
            self._storing = Storing(
                command,
                context,
                sender,
                self._house.incoming,
                needs_study=self._house.offer.needs_study(context[0]),
                max_bytes=self._settings.max_instance_bytes,
                now=self._house.now,
            )
        if not command.has_data_set:
            self._finish(command)

    def _take_data(self, context_id: int, fragment: memoryview, *, is_last: bool) -> None:
        command = self._command
        if command is None or context_id != self._context_id:
            raise ProtocolError("a data set belongs to no command", pdu.UNEXPECTED_PARAMETER)
        if self._storing is not None:
            self._storing.write(fragment)
        if is_last:
            self._finish(command)

    def _finish(self, command: dimse.Command) -> None:
        storing, self._storing, self._command = self._storing, None, None
        status, comment = _UNRECOGNISED_OPERATION, ""
        if storing is not None:
            answer = storing.finish()
            status, comment = answer.status, answer.comment
            self._instances += status == SUCCESS
            self._faulty += answer.kept and status != SUCCESS
            self._refused += not answer.kept
            self._bytes += storing.size_bytes if answer.kept else 0
            self._internal_errors += status == INTERNAL_ERROR
        elif command.field == dimse.C_ECHO_RQ:
            status = SUCCESS
        elif command.field == dimse.C_STORE_RQ:
            status = _SOP_CLASS_NOT_SUPPORTED
        if command.field != dimse.C_CANCEL_RQ:  # which has no response (PS3.7 section 9.3.2.3)
            self._send(pdu.encode_command(self._context_id, dimse.encode_response(command, status, comment)))

    def _send(self, data: bytes) -> None:
        send(self._connection, data, within_s=self._settings.send_s)

    # --- the journal

    def _tally(self) -> str:
        if not self.is_open:
            return ""
        counts = [f"{self._bytes} bytes"] if self._bytes else []
        counts += [f"{self._faulty} kept with a fault"] if self._faulty else []
        counts += [f"{self._refused} refused"] if self._refused else []
        counts += [f"{self._internal_errors} internal error(s)"] if self._internal_errors else []
        return ", ".join(counts)

    def _tell(self, kind: AssociationKind, detail: str) -> None:
        request = self._request
        self._house.chronicle.tell(
            AssociationEvent(
                at=self._house.now(),
                kind=kind,
                address=self._address,
                association_id=self._association_id,
                calling_ae=request.calling_ae if request else "",
                called_ae=request.called_ae if request else "",
                detail=detail,
                implementation_uid=request.implementation_uid[:64] if request else "",
                implementation_version=request.implementation_version[:64] if request else "",
                contexts_proposed=len(request.contexts) if request else 0,
                contexts_accepted=len(self._contexts),
                instances=self._instances,
            )
        )
