"""Peers on loopback: a real pynetdicom SCP that keeps the very bytes, and a scripted one that misbehaves."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

CR = "1.2.840.10008.5.1.4.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.70"


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    if vr in {b"OB", b"OW"}:
        return struct.pack("<HH2sxxI", group, number, vr, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(sop_instance_uid: str, *, sop_class_uid: str = CR, pixels: bytes = b"\1\2" * 300) -> bytes:
    return (
        element(0x0008, 0x0016, b"UI", sop_class_uid.encode())
        + element(0x0008, 0x0018, b"UI", sop_instance_uid.encode())
        + element(0x7FE0, 0x0010, b"OW", pixels)
    )


@dataclass
class Scp:
    """What a real SCP received, and the status that it answers with."""

    port: int = 0
    received: list[tuple[str, str, bytes]] = field(default_factory=list)
    status: int | Callable[[str], int] = 0
    associations: int = 0

    @property
    def digests(self) -> dict[str, str]:
        return {uid: hashlib.sha256(data).hexdigest() for uid, _, data in self.received}


@pytest.fixture
def make_scp() -> Iterator[Callable[..., Scp]]:
    servers = []

    def make(contexts: list[tuple[str, str]], *, ae_title: str = "AI", max_pdu: int = 16382, port: int = 0) -> Scp:
        scp = Scp()

        def on_store(event) -> int:
            uid = str(event.request.AffectedSOPInstanceUID)
            data = event.request.DataSet.getvalue()
            scp.received.append((uid, str(event.context.transfer_syntax), data))
            return scp.status(uid) if callable(scp.status) else scp.status

        def on_association(event) -> None:
            scp.associations += 1

        ae = AE(ae_title)
        ae.maximum_pdu_size = max_pdu
        ae.require_called_aet = True
        ae.add_supported_context("1.2.840.10008.1.1")
        for sop_class, syntax in contexts:
            ae.add_supported_context(sop_class, syntax)
        server = ae.make_server(
            ("127.0.0.1", port),
            evt_handlers=[(evt.EVT_C_STORE, on_store), (evt.EVT_ACCEPTED, on_association)],
            server_class=ThreadedAssociationServer,
        )
        ae._servers.append(server)  # make_server leaves that out, and shutdown() expects it
        # start_server() would look for the shutdown twice a second: half a second for every test.
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        servers.append(server)
        scp.port = server.server_address[1]
        scp.server = server
        return scp

    yield make
    for server in servers:
        server.shutdown()


class Scripted:
    """A listener that runs `script(connection)` for each connection; what the script reads, the test can see."""

    def __init__(self, script: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.released = threading.Event()
        self._script = script
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.settimeout(10)
                try:
                    self._script(connection)
                except OSError:
                    continue

    def close(self) -> None:
        self.released.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(15)
        assert not self._thread.is_alive()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    peers: list[Scripted] = []

    def make(script: Callable[[socket.socket], None]) -> Scripted:
        peers.append(Scripted(script))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = exactly(connection, 6)
    kind, length = struct.unpack(">BxI", head)
    return kind, exactly(connection, length)


def exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise ConnectionError("closed")
        data += chunk
    return data


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def accept(request: bytes, *, result: int = 0, max_pdu: int = 16384) -> bytes:
    """An A-ASSOCIATE-AC that gives every proposed context the same result."""
    items, position = item(0x10, b"1.2.840.10008.3.1.1.1"), 68
    while position < len(request):
        kind, length = struct.unpack_from(">BxH", request, position)
        value = request[position + 4 : position + 4 + length]
        position += 4 + length
        if kind == 0x20:
            syntax = value[value.index(b"\x40\x00", 4) :]
            items += item(0x21, bytes([value[0], 0, result, 0]) + syntax)
    body = request[:68] + items + item(0x50, item(0x51, struct.pack(">I", max_pdu)))
    return struct.pack(">BxI", 2, len(body)) + body


def response(message_id: int, status: int, *, field: int = 0x8001, data_set: int = 0x0101, extra: bytes = b"") -> bytes:
    def short(number: int, value: int) -> bytes:
        return struct.pack("<HHIH", 0, number, 2, value)

    command = short(0x0100, field) + short(0x0120, message_id) + short(0x0800, data_set) + short(0x0900, status) + extra
    return pdata(struct.pack("<HHII", 0, 0, 4, len(command)) + command)


def pdata(fragment: bytes, *, context_id: int = 1, control: int = 3) -> bytes:
    return struct.pack(">BxIIBB", 4, len(fragment) + 6, len(fragment) + 2, context_id, control) + fragment


def read_message(connection: socket.socket) -> bytes:
    """Command and data set PDUs up to the data set's last fragment."""
    data = b""
    while True:
        kind, body = read_pdu(connection)
        if kind != 4:
            raise ConnectionError("no message")
        control = body[5]
        if not control & 1:
            data += body[6:]
            if control & 2:
                return data


@pytest.fixture
def part10(tmp_path: Path) -> Callable[..., tuple[Path, int]]:
    """A file with some header and a data set; returns its path and where the data set starts."""

    def make(data: bytes, name: str = "x.dcm") -> tuple[Path, int]:
        path = tmp_path / name
        path.write_bytes(b"H" * 100 + data)
        return path, 100

    return make
