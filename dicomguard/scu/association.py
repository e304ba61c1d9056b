"""One association as its requestor: negotiate, store instance after instance, release."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dicomguard.errors import HostError
from dicomguard.scu import pdu
from dicomguard.scu.errors import AbortedError, AlteredError, LinkError, RejectedError, SilenceError, unreadable
from dicomguard.scu.pdu import Syntaxes

MAX_CONTEXTS: Final = 128  # context ids are odd and fit a byte (PS3.8 section 9.3.2.2)
VERIFICATION: Final = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")

# What we read is small: responses. What we send is as large as the peer takes, up to this.
_OUR_MAX_PDU_BYTES: Final = 16_384
_SEND_MAX_BYTES: Final = 131_072
_SEND_MIN_BYTES: Final = 128
# A peer that leaves Nagle's algorithm on (DCMTK) sends its response in two writes and holds back the second until we
# acknowledge the first; our kernel would let it wait 40 ms for each instance. The option wears off, so it is set again.
_QUICK_ACK: Final = socket.TCP_QUICKACK
# The longest acceptance that 128 contexts can need, with room; everything else is shorter than our own limit.
_ACCEPT_MAX_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds.

    `connect_s`: for the connection; `acse_s`: for the answer to the association request and to the release; `dimse_s`:
    for a response after our last byte; `network_s`: for the peer to read on while we send.
    """

    connect_s: float = 5.0
    acse_s: float = 10.0
    dimse_s: float = 60.0
    network_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The peer's answer to one C-STORE: its status and its own comment on it."""

    status: int
    comment: str = ""


class Association:
    """An established association; a context manager that releases it, or aborts it after an error. Not thread-safe.

    `accepted` maps (SOP class, transfer syntax) to the context id, for those contexts that the peer took.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        calling_ae: str,
        called_ae: str,
        contexts: Sequence[Syntaxes],
        timeouts: Timeouts | None = None,
    ) -> None:
        """Connect and negotiate.

        Raises:
            LinkError: no connection, no answer, no DICOM.
            RejectedError: the peer said no.
            ValueError: no context, or more than 128.

        """
        if not 0 < len(contexts) <= MAX_CONTEXTS:
            raise ValueError(f"an association has 1 to {MAX_CONTEXTS} presentation contexts, not {len(contexts)}")
        self._timeouts = timeouts or Timeouts()
        self._message_id = 0
        self._is_open = True
        try:
            self._socket = socket.create_connection((host, port), self._timeouts.connect_s)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise LinkError(f"No connection to {host}:{port}: {why}.") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._send(pdu.associate_request(calling_ae, called_ae, contexts, _OUR_MAX_PDU_BYTES))
            answer = self._negotiate()
        except BaseException:
            self.abort()
            raise
        self.accepted: dict[Syntaxes, int] = {
            syntaxes: 2 * index + 1
            for index, syntaxes in enumerate(contexts)
            if answer.contexts.get(2 * index + 1) == (0, syntaxes[1])
        }
        # Zero means "no limit". The maximum counts from the PDV's own length field on (PS3.8 annex D.1).
        limit = min(answer.max_pdu_bytes or _SEND_MAX_BYTES, _SEND_MAX_BYTES)
        if limit < _SEND_MIN_BYTES:
            raise self._nonsense(f"The peer takes PDUs of {limit} bytes only, which is too little to send anything.")
        self._fragment_bytes = (limit - pdu.PDV_OVERHEAD_BYTES) & ~1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    def store(
        self, path: Path, data_offset: int, *, syntaxes: Syntaxes, sop_instance_uid: str, sha256: str | None = None
    ) -> Outcome:
        """Send the bytes of `path` from `data_offset` to the end as one data set, and wait for the answer.

        With `sha256` they are checked while they go: the last fragment is held back until the digest is known.

        Raises:
            AlteredError: the digest is another one, or there is no such file; the association is aborted, and the
                peer never saw a whole instance.
            HostError: the machine cannot read the file just now; else the same.
            LinkError: as its subclasses say. The association is closed, and the instance's fate at the peer unknown.
            KeyError: the peer did not accept a context for `syntaxes`.

        """
        context_id = self.accepted[syntaxes]
        message_id = self._next_message_id()
        command = pdu.store_request(message_id, syntaxes[0], sop_instance_uid)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self.abort()
            raise unreadable(path.name, error) from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size - data_offset
            read = _read(descriptor, data_offset, size_bytes, self._fragment_bytes, path.name)
            fragments = _checked(read, sha256, path.name)
            try:
                self._send_all(pdu.data_pdus(context_id, pdu.COMMAND, _whole(command, self._fragment_bytes)))
                self._send_all(pdu.data_pdus(context_id, 0, fragments))
            except (AlteredError, HostError):
                self.abort()
                raise
        return self._response(pdu.C_STORE_RSP, message_id)

    def echo(self) -> Outcome:
        """C-ECHO; needs the context `VERIFICATION`. Raises LinkError, or KeyError when that was not accepted."""
        message_id = self._next_message_id()
        command = _whole(pdu.echo_request(message_id), self._fragment_bytes)
        self._send_all(pdu.data_pdus(self.accepted[VERIFICATION], pdu.COMMAND, command))
        return self._response(pdu.C_ECHO_RSP, message_id)

    def release(self) -> None:
        """End in order. A peer that does not answer is left: whatever it acknowledged stays acknowledged."""
        if not self._is_open:
            return
        try:
            self._send(pdu.RELEASE_REQUEST)
            deadline = time.monotonic() + self._timeouts.acse_s
            while (kind := self._receive(deadline)[0]) != pdu.RELEASE_RP:
                if kind == pdu.RELEASE_RQ:  # both at once (PS3.8 section 7.2.3)
                    self._send(pdu.RELEASE_RESPONSE)
                    break
        except LinkError:
            pass
        finally:
            self._close()

    def abort(self) -> None:
        """End at once; safe to call at any time."""
        if self._is_open:
            try:
                self._socket.settimeout(1.0)
                self._socket.sendall(pdu.ABORT_REQUEST)
            except OSError:
                pass
            self._close()

    def _negotiate(self) -> pdu.Accepted:
        deadline = time.monotonic() + self._timeouts.acse_s
        kind, body = self._receive(deadline, _ACCEPT_MAX_BYTES)
        if kind == pdu.ASSOCIATE_AC:
            return pdu.read_accept(body)
        if kind == pdu.ASSOCIATE_RJ:
            raise RejectedError(*pdu.read_reject(body))
        raise LinkError(f"The peer answered the association request with a PDU of type {kind}.")

    def _next_message_id(self) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    def _response(self, field: int, message_id: int) -> Outcome:
        deadline = time.monotonic() + self._timeouts.dimse_s
        command = bytearray()
        while True:
            kind, body = self._receive(deadline)
            if kind != pdu.P_DATA:
                raise self._nonsense(f"The peer sent a PDU of type {kind} where a response was due.")
            for _, control, fragment in self._parsed(body):
                if not control & pdu.COMMAND:
                    raise self._nonsense("The peer sent a data set where a response was due.")
                command += fragment
                if len(command) > _OUR_MAX_PDU_BYTES:
                    raise self._nonsense("The peer's response has no end.")
                if control & pdu.LAST:
                    return self._outcome(bytes(command), field, message_id)

    def _parsed(self, body: bytes) -> list[tuple[int, int, bytes]]:
        try:
            return list(pdu.read_pdvs(body))
        except LinkError:
            self.abort()
            raise

    def _outcome(self, command: bytes, field: int, message_id: int) -> Outcome:
        try:
            found_field, responded_to, status, comment = pdu.read_response(command)
        except LinkError:
            self.abort()
            raise
        if (found_field, responded_to) != (field, message_id):
            raise self._nonsense("The peer's response belongs to another request.")
        return Outcome(status, comment)

    def _nonsense(self, what: str) -> LinkError:
        self.abort()
        return LinkError(what)

    def _send_all(self, pdus: Iterable[bytes]) -> None:
        for data in pdus:
            self._send(data)

    def _send(self, data: bytes) -> None:
        if not self._is_open:
            raise LinkError("The association has ended.")
        try:
            # One PDU at a time: the timeout counts from one PDU to the next, so it is about progress, not about size.
            self._socket.settimeout(self._timeouts.network_s)
            self._socket.sendall(data)
        except TimeoutError as error:
            self._close()
            raise SilenceError("The peer stopped reading.") from error
        except OSError as error:
            self._explain_broken_pipe()
            self._close()
            raise LinkError(f"The connection broke while sending: {error.strerror}.") from error

    def _explain_broken_pipe(self) -> None:
        """The peer that closed on us may have said why before."""
        try:
            self._receive(time.monotonic() + 0.2)
        except AbortedError:
            raise
        except LinkError:
            return

    def _receive(self, deadline: float, limit: int = _OUR_MAX_PDU_BYTES) -> tuple[int, bytes]:
        """One PDU's type and body. An A-ABORT is raised, a length over `limit` is never allocated."""
        kind, length = struct.unpack(">BxI", self._exactly(6, deadline))
        if length > limit:
            raise self._nonsense(f"The peer announced a PDU of {length} bytes where {limit} is the limit.")
        body = self._exactly(length, deadline)
        if kind == pdu.ABORT:
            self._close()
            source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
            raise AbortedError(f"The peer aborted the association (source {source}, reason {reason}).")
        return kind, body

    def _exactly(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            left_s = deadline - time.monotonic()
            try:
                if left_s <= 0:
                    raise TimeoutError  # noqa: TRY301 - the same end as the socket's own timeout
                self._socket.settimeout(left_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
                chunk = self._socket.recv(count - len(data))
            except TimeoutError as error:
                self.abort()
                raise SilenceError("The peer did not answer in time.") from error
            except OSError as error:
                self._close()
                raise LinkError(f"The connection broke: {error.strerror}.") from error
            if not chunk:
                self._close()
                raise LinkError("The peer closed the connection.")
            data += chunk
        return bytes(data)

    def _close(self) -> None:
        self._is_open = False
        self._socket.close()


def echo(host: str, port: int, *, calling_ae: str, called_ae: str, timeouts: Timeouts | None = None) -> Outcome:
    """C-ECHO to a peer on an association of its own. Raises LinkError or RejectedError."""
    with Association(
        host, port, calling_ae=calling_ae, called_ae=called_ae, contexts=[VERIFICATION], timeouts=timeouts
    ) as association:
        if VERIFICATION not in association.accepted:
            raise LinkError("The peer accepts associations but offers no C-ECHO.")
        return association.echo()


def _whole(data: bytes, fragment_bytes: int) -> Iterator[tuple[bytes, bool]]:
    for start in range(0, len(data), fragment_bytes):
        yield data[start : start + fragment_bytes], start + fragment_bytes >= len(data)


def _read(
    descriptor: int, offset: int, size_bytes: int, fragment_bytes: int, name: str
) -> Iterator[tuple[bytes, bool]]:
    position = 0
    while True:
        try:
            data = os.pread(descriptor, max(min(fragment_bytes, size_bytes - position), 0), offset + position)
        except OSError as error:
            raise unreadable(name, error) from error
        position += len(data)
        # A file that shrank ends early, and its digest will tell.
        is_last = position >= size_bytes or not data
        yield data, is_last
        if is_last:
            return


def _checked(fragments: Iterator[tuple[bytes, bool]], sha256: str | None, name: str) -> Iterator[tuple[bytes, bool]]:
    digest = hashlib.sha256()
    for data, is_last in fragments:
        digest.update(data)
        if is_last and sha256 is not None and digest.hexdigest() != sha256:
            raise AlteredError(f"{name} is not what was received: its SHA-256 differs.")
        yield data, is_last
