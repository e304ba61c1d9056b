"""A DICOM sender that speaks bytes: for tests that break rules no library breaks, for benchmarks that the sender must
not limit, and for kill tests, which need to know what was acknowledged.

Run as a program it sends synthetic CT instances for ever, or `--count` of them, over one association at a time, and
appends `<SOP Instance UID> <SHA-256 of the data set>` to `--acks` for every 0x0000. After a failure it begins again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

Context = tuple[int, str, Sequence[str]]
DEFAULT_CONTEXTS: Sequence[Context] = ((1, CT, (EXPLICIT,)), (3, VERIFICATION, (IMPLICIT,)))


def new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def until(condition: Callable[[], object], within_s: float = 5.0) -> bool:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# --- encoding


def element(group: int, number: int, vr: str, value: bytes, *, order: str = "<") -> bytes:
    """An explicit VR element."""
    value += b"\0" * (len(value) % 2)
    if vr in {"OB", "OW", "SQ", "UN", "UT"}:
        return struct.pack(order + "HH2s2xI", group, number, vr.encode(), len(value)) + value
    return struct.pack(order + "HH2sH", group, number, vr.encode(), len(value)) + value


def implicit_element(group: int, number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", group, number, len(value)) + value


def data_set(
    sop_instance: str, study: str, *, series: str = "2.25.7", sop_class: str = CT, pixels: bytes = b"", order: str = "<"
) -> bytes:
    """An explicit VR data set of the few elements that the receiver looks at, and pixel data."""
    return b"".join(
        (
            element(0x0008, 0x0016, "UI", sop_class.encode(), order=order),
            element(0x0008, 0x0018, "UI", sop_instance.encode(), order=order),
            element(0x0008, 0x0060, "CS", b"CT", order=order),
            element(0x0020, 0x000D, "UI", study.encode(), order=order),
            element(0x0020, 0x000E, "UI", series.encode(), order=order),
            image_description(len(pixels), order=order) if len(pixels) >= 1024 else b"",
            element(0x7FE0, 0x0010, "OW", pixels, order=order),
        )
    )


def image_description(pixel_bytes: int, *, order: str = "<") -> bytes:
    """Group 0028 for 512 columns of 16 bits, so that whoever reads the instance finds a whole image."""
    numbers = {0x0010: pixel_bytes // 1024, 0x0011: 512, 0x0100: 16, 0x0101: 16, 0x0102: 15, 0x0103: 0}
    return b"".join(
        (
            element(0x0028, 0x0002, "US", struct.pack(order + "H", 1), order=order),
            element(0x0028, 0x0004, "CS", b"MONOCHROME2 ", order=order),
            *(element(0x0028, n, "US", struct.pack(order + "H", v), order=order) for n, v in numbers.items()),
        )
    )


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def associate_rq(
    calling: str = "SCU",
    called: str = "GUARD",
    contexts: Sequence[Context] = DEFAULT_CONTEXTS,
    *,
    max_pdu: int = 0,
    version: int = 1,
    application: str = "1.2.840.10008.3.1.1.1",
    user_items: bytes = b"",
) -> bytes:
    items = [_item(0x10, application.encode())]
    for context_id, abstract, transfers in contexts:
        syntaxes = b"".join(_item(0x40, uid.encode()) for uid in transfers)
        items.append(_item(0x20, struct.pack(">B3x", context_id) + _item(0x30, abstract.encode()) + syntaxes))
    user = _item(0x51, struct.pack(">I", max_pdu)) + _item(0x52, b"2.25.1") + user_items + _item(0x55, b"TEST")
    head = struct.pack(">H2x16s16s32x", version, called.ljust(16).encode(), calling.ljust(16).encode())
    return pdu(0x01, head + b"".join(items) + _item(0x50, user))


def command_set(fields: Iterable[tuple[int, bytes]]) -> bytes:
    body = b"".join(implicit_element(0, number, value) for number, value in fields)
    return implicit_element(0, 0, struct.pack("<I", len(body))) + body


def store_command(message_id: int, sop_class: str, sop_instance: str, *, has_data_set: bool = True) -> bytes:
    return command_set(
        (
            (0x0002, sop_class.encode()),
            (0x0100, struct.pack("<H", 0x0001)),
            (0x0110, struct.pack("<H", message_id)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 1 if has_data_set else 0x0101)),
            (0x1000, sop_instance.encode()),
        )
    )


def echo_command(message_id: int) -> bytes:
    return command_set(
        (
            (0x0002, VERIFICATION.encode()),
            (0x0100, struct.pack("<H", 0x0030)),
            (0x0110, struct.pack("<H", message_id)),
            (0x0800, struct.pack("<H", 0x0101)),
        )
    )


def p_data(context_id: int, control: int, fragment: bytes) -> bytes:
    return struct.pack(">BxIIBB", 4, len(fragment) + 6, len(fragment) + 2, context_id, control) + fragment


def data_pdus(context_id: int, data: bytes, max_pdu: int) -> Iterator[bytes]:
    """A data set as P-DATA-TFs of at most `max_pdu` bytes."""
    step = max_pdu - 6
    for start in range(0, len(data) or 1, step):
        yield p_data(context_id, 2 if start + step >= len(data) else 0, data[start : start + step])


# --- an association


@dataclass
class Rejected(Exception):  # noqa: N818 - it is what happened, not an error of the sender
    result: int
    source: int
    reason: int


class Aborted(Exception):  # noqa: N818 - see above
    """The peer sent an A-ABORT, or closed."""


@dataclass
class Response:
    status: int
    comment: str
    message_id: int


class Sender:
    """One association. Raises Rejected, Aborted, or OSError from the socket."""

    def __init__(
        self,
        port: int,
        *,
        calling: str = "SCU",
        called: str = "GUARD",
        contexts: Sequence[Context] = DEFAULT_CONTEXTS,
        host: str = "127.0.0.1",
        timeout_s: float = 20.0,
        max_pdu: int = 1 << 17,
        user_items: bytes = b"",
        acks_at_once: bool = False,
    ) -> None:
        self._acks_at_once = acks_at_once
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._next_id = 0
        try:
            self.accept = self._associate(associate_rq(calling, called, contexts, user_items=user_items))
        except BaseException:
            self.socket.close()
            raise
        self.accepted, self.max_pdu = _read_accept(self.accept)
        self.max_pdu = min(self.max_pdu or max_pdu, max_pdu)

    def _associate(self, request: bytes) -> bytes:
        self.socket.sendall(request)
        kind, body = self.read()
        if kind == 0x03:
            raise Rejected(*body[1:4])
        if kind != 0x02:
            raise Aborted
        return body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self) -> tuple[int, bytes]:
        """One PDU."""
        kind, length = struct.unpack(">BxI", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if self._acks_at_once:
                # Linux forgets this after a while, so it is said again for every read.
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise Aborted
            data += chunk
        return bytes(data)

    def next_id(self) -> int:
        self._next_id = self._next_id % 65535 + 1
        return self._next_id

    def response(self) -> Response:
        """The next DIMSE response."""
        kind, body = self.read()
        if kind != 0x04:
            raise Aborted
        fields = _read_command(body[6:])
        return Response(
            struct.unpack("<H", fields[0x0900])[0],
            fields.get(0x0902, b"").decode().strip(),
            struct.unpack("<H", fields[0x0120])[0],
        )

    def echo(self, context_id: int = 3) -> int:
        self.socket.sendall(p_data(context_id, 3, echo_command(self.next_id())))
        return self.response().status

    def send_store(self, sop_instance: str, data: bytes, *, context_id: int = 1, sop_class: str = CT) -> None:
        command = store_command(self.next_id(), sop_class, sop_instance)
        self.socket.sendall(p_data(context_id, 3, command) + b"".join(data_pdus(context_id, data, self.max_pdu)))

    def store(self, sop_instance: str, data: bytes, *, context_id: int = 1, sop_class: str = CT) -> Response:
        self.send_store(sop_instance, data, context_id=context_id, sop_class=sop_class)
        return self.response()

    def release(self) -> None:
        self.socket.sendall(pdu(0x05, bytes(4)))
        kind, _ = self.read()
        if kind != 0x06:
            raise Aborted
        self.socket.close()

    def abort(self) -> None:
        self.socket.sendall(pdu(0x07, bytes(4)))
        self.socket.close()


def _read_accept(body: bytes) -> tuple[dict[int, tuple[int, str]], int]:
    """Context ID → (result, transfer syntax), and the acceptor's maximum length."""
    contexts: dict[int, tuple[int, str]] = {}
    max_pdu = 0
    start = 68
    while start < len(body):
        kind, length = struct.unpack_from(">BxH", body, start)
        value = body[start + 4 : start + 4 + length]
        if kind == 0x21:
            contexts[value[0]] = (value[2], value[8:].decode())
        if kind == 0x50:
            (max_pdu,) = struct.unpack_from(">I", value, 4)
        start += 4 + length
    return contexts, max_pdu


def _read_command(data: bytes) -> dict[int, bytes]:
    fields = {}
    start = 0
    while start < len(data):
        _, number, length = struct.unpack_from("<HHI", data, start)
        fields[number] = data[start + 8 : start + 8 + length]
        start += 8 + length
    return fields


# --- a stream of instances


class Stencil:
    """One CT instance, encoded into PDUs once; only its SOP Instance UID, of fixed length, changes between sends."""

    _PLACE = b"2.25." + b"9" * 39

    def __init__(self, study: str, *, pixel_bytes: int, max_pdu: int, context_id: int = 1) -> None:
        marker = self._PLACE.decode()
        self.data = bytearray(data_set(marker, study, pixels=os.urandom(pixel_bytes)))
        command = p_data(context_id, 3, store_command(1, CT, marker))
        self.stream = bytearray(command + b"".join(data_pdus(context_id, bytes(self.data), max_pdu)))
        self._at = [self.stream.index(self._PLACE)]
        self._at.append(self.stream.index(self._PLACE, self._at[0] + 1))
        self._at_data = self.data.index(self._PLACE)

    def stamp(self) -> str:
        """A new SOP Instance UID in command and data set."""
        uid = f"2.25.{uuid.uuid4().int:039d}".encode()
        for at in self._at:
            self.stream[at : at + len(uid)] = uid
        self.data[self._at_data : self._at_data + len(uid)] = uid
        return uid.decode()


def send_stream(
    port: int,
    *,
    count: int | None,
    pixel_bytes: int,
    calling: str = "SCU",
    called: str = "GUARD",
    on_ack: Callable[[str, str], None] = lambda _uid, _sha: None,
    is_hashed: bool = True,
    per_association: int | None = None,
    acks_at_once: bool = False,
) -> int:
    """Send `count` instances over one association (None: until the peer goes); how many were acknowledged."""
    acked = 0
    with Sender(port, calling=calling, called=called, acks_at_once=acks_at_once) as sender:
        stencil = Stencil(new_uid(), pixel_bytes=pixel_bytes, max_pdu=sender.max_pdu)
        while (count is None or acked < count) and (per_association is None or acked < per_association):
            uid = stencil.stamp()
            sha = hashlib.sha256(stencil.data).hexdigest() if is_hashed else ""
            sender.socket.sendall(stencil.stream)
            if sender.response().status == 0:
                acked += 1
                on_ack(uid, sha)
        sender.release()
    return acked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calling", default="SCU")
    parser.add_argument("--called", default="GUARD")
    parser.add_argument("--acks", type=Path, help="append '<uid> <sha256>' for every 0x0000")
    parser.add_argument("--count", type=int, help="stop after so many; otherwise go on, through every failure")
    parser.add_argument("--pixel-bytes", type=int, default=512 * 1024)
    parser.add_argument("--per-association", type=int, default=50)
    parser.add_argument("--acks-at-once", action="store_true", help="TCP_QUICKACK: what a peer with Nagle on waits for")
    parser.add_argument(
        "--timed", action="store_true", help="print 'ready', wait for a line, send --count, print how many"
    )
    options = parser.parse_args()
    to: dict[str, Any] = {"calling": options.calling, "called": options.called, "pixel_bytes": options.pixel_bytes}
    if options.timed:
        print("ready", flush=True)
        sys.stdin.readline()
        to["acks_at_once"] = options.acks_at_once
        print(send_stream(options.port, count=options.count, is_hashed=False, **to), flush=True)
        return
    left = options.count
    with options.acks.open("a") as acks:

        def note(uid: str, sha: str) -> None:
            acks.write(f"{uid} {sha}\n")
            acks.flush()

        while left is None or left > 0:
            try:
                sent = send_stream(options.port, count=left, on_ack=note, per_association=options.per_association, **to)
                left = left if left is None else left - sent
            except (OSError, Aborted, Rejected):
                time.sleep(0.05)


if __name__ == "__main__":
    main()
