"""PDUs from a socket that may be hostile, slow or dead.

Lengths are checked before memory is taken; deadlines, which a drip cannot extend, run on the monotonic clock.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from dicomguard.receive import pdu
from dicomguard.receive.pdu import ProtocolError

_HEADER_BYTES = 6
_FIRST_BUFFER_BYTES = 4096
_SMALL_PDU_BYTES = 1024
_TICK_S = 0.5
_DRAIN_BYTES = 64 * 1024


class GoneError(Exception):
    """The peer closed the connection, or it broke."""


class LateError(Exception):
    """A deadline has passed; the text says which."""


class Stream:
    """Reads PDUs. One thread. A returned body is valid until the next call."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        is_stopping: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_stopping(waiting_s)` is asked while nothing comes: True ends the wait with LateError."""
        self._connection = connection
        self._is_stopping = is_stopping
        self._clock = clock
        self._buffer = bytearray(_FIRST_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        connection.settimeout(_TICK_S)

    @property
    def now_s(self) -> float:
        """The stream's monotonic clock."""
        return self._clock()

    def read(
        self, *, max_bytes: int, opening: bool, wait_s: float, pdu_s: float, waits_for: str
    ) -> tuple[int, memoryview]:
        """The next PDU's type and body.

        Args:
            max_bytes: the longest acceptable A-ASSOCIATE-RQ (`opening`) or P-DATA-TF body.
            opening: True while the peer has not asked for an association: only that request is acceptable.
            wait_s: patience until the first byte.
            pdu_s: patience from the first byte to the last; while `opening`, `wait_s` bounds both together.
            waits_for: what a missed deadline is called.

        Raises:
            GoneError, LateError, ProtocolError.

        """
        began = self._clock()
        deadline = began + wait_s
        in_pdu = False
        needed = _HEADER_BYTES
        while True:
            held = self._end - self._start
            if held >= _HEADER_BYTES and needed == _HEADER_BYTES:
                needed = self._checked_length(max_bytes, opening=opening) + _HEADER_BYTES
                self._make_room(needed, max_bytes)
            if held >= needed:
                return self._taken(needed)
            if held and not in_pdu:
                in_pdu = True
                now = self._clock()
                deadline = min(deadline, now + pdu_s) if opening else now + pdu_s
            self._fill(deadline, began, waits_for if not in_pdu or opening else "a PDU to be complete", held)

    def _taken(self, size: int) -> tuple[int, memoryview]:
        kind = self._buffer[self._start]
        body = self._view[self._start + _HEADER_BYTES : self._start + size]
        self._start += size
        return kind, body

    def _checked_length(self, max_bytes: int, *, opening: bool) -> int:
        kind, length = struct.unpack_from(">BxI", self._buffer, self._start)
        if kind not in range(pdu.ASSOCIATE_RQ, pdu.ABORT + 1):
            raise ProtocolError("unknown PDU type", pdu.UNRECOGNISED_PDU)
        if opening:
            acceptable = {pdu.ASSOCIATE_RQ: max_bytes, pdu.ABORT: _SMALL_PDU_BYTES}
        else:
            acceptable = {pdu.P_DATA: max_bytes, pdu.RELEASE_RQ: _SMALL_PDU_BYTES, pdu.ABORT: _SMALL_PDU_BYTES}
        if kind not in acceptable:
            raise ProtocolError(f"unexpected PDU type {kind}", pdu.UNEXPECTED_PDU)
        if length > acceptable[kind]:
            raise ProtocolError(f"a PDU of type {kind} claims {length} bytes", pdu.INVALID_PARAMETER)
        return int(length)

    def _make_room(self, needed: int, max_bytes: int) -> None:
        """A buffer that holds the whole PDU. Once an association sends data, it is made for the longest right away."""
        if needed > len(self._buffer):
            size = needed if needed <= _FIRST_BUFFER_BYTES * 4 else max(needed, max_bytes + _HEADER_BYTES)
            buffer = bytearray(size)
            held = self._end - self._start
            buffer[:held] = self._view[self._start : self._end]
            self._buffer, self._view = buffer, memoryview(buffer)
            self._start, self._end = 0, held

    def _fill(self, deadline: float, began: float, waits_for: str, held: int) -> None:
        """Receive at least one byte."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            # What is left of the last read moves to the front; at most one partial PDU.
            self._buffer[:held] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, held
        while True:
            now = self._clock()
            if now >= deadline:
                raise LateError(f"waited too long for {waits_for}")
            if deadline - now < _TICK_S:
                self._connection.settimeout(deadline - now)
            try:
                # A peer with Nagle on holds its last segment back until all before it are acknowledged, and Linux may
                # delay that by 40 ms. The option wears off, so it is set for every read.
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                received = self._connection.recv_into(self._view[self._end :])
            except TimeoutError:
                if self._is_stopping(0.0 if held else now - began):
                    raise LateError("the node is stopping") from None
                continue
            except OSError as error:
                raise GoneError(error.strerror or "connection error") from error
            if not received:
                raise GoneError("cut off within a PDU" if held else "")
            self._end += received
            if deadline - now < _TICK_S:
                self._connection.settimeout(_TICK_S)
            return


def send(connection: socket.socket, data: bytes, *, within_s: float) -> None:
    """Send all of it. Raises GoneError when the peer is gone or takes nothing."""
    connection.settimeout(within_s)
    try:
        connection.sendall(data)
    except OSError as error:
        raise GoneError("the peer does not take our answer") from error
    finally:
        connection.settimeout(_TICK_S)


def hang_up(connection: socket.socket, last_words: bytes, *, linger_s: float) -> None:
    """Send the last PDU and close so that it arrives: closing over unread bytes would reset the connection.

    Reads and forgets what the peer still sends, for `linger_s` and 64 KiB at most.
    """
    deadline = time.monotonic() + linger_s
    try:
        connection.settimeout(linger_s)
        connection.sendall(last_words)
        connection.shutdown(socket.SHUT_WR)
        drained = 0
        while drained < _DRAIN_BYTES and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            chunk = connection.recv(4096)
            if not chunk:
                break
            drained += len(chunk)
    except OSError:
        pass  # gone already, or late: there is nobody to tell
    finally:
        connection.close()
