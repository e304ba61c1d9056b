"""PDUs of the DICOM upper layer as bytes and values (PS3.8 section 9.3), as far as an acceptor needs them.

Pure: no sockets. Written for hostile input: one pass, every length checked against what is there, sizes bounded by the
caller. pynetdicom's codec spends 300 ms on a hostile request of 64 KiB and warns about what it finds in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dicomguard import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
RELEASE_RESPONSE = struct.pack(">BxI4x", RELEASE_RP, 4)

# Reasons of an A-ABORT by the service provider (PS3.8 table 9-26).
UNRECOGNISED_PDU, UNEXPECTED_PDU, UNEXPECTED_PARAMETER, INVALID_PARAMETER = 1, 2, 5, 6
# Results of a presentation context (PS3.8 table 9-18).
ACCEPTANCE, NO_SUCH_ABSTRACT_SYNTAX, NO_SUCH_TRANSFER_SYNTAX = 0, 3, 4

_MAX_CONTEXTS = 128
_MAX_SYNTAXES = 128
_FIXED_BYTES = 68


class ProtocolError(Exception):
    """The peer broke the upper layer protocol; `reason` goes into the A-ABORT (PS3.8 table 9-26)."""

    def __init__(self, what: str, reason: int) -> None:
        super().__init__(what)
        self.what = what
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context as proposed (PS3.8 section 9.3.2.2)."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextResult:
    """The answer to one proposed context: `result` of PS3.8 table 9-18; the syntax counts only when accepted."""

    context_id: int
    result: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ. Strings are what the peer claims; bytes outside ASCII are shown as escapes."""

    protocol_version: int
    called_ae: str
    calling_ae: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    max_pdu_bytes: int
    implementation_uid: str
    implementation_version: str
    wants_async: bool
    echo: bytes
    """The 64 bytes of titles and reserved field that an A-ASSOCIATE-AC repeats."""


def decode_associate_request(body: bytes | memoryview) -> AssociateRequest:
    """Read the body (after the six-byte header) of an A-ASSOCIATE-RQ. Raises ProtocolError on anything malformed."""
    data = bytes(body)
    if len(data) < _FIXED_BYTES:
        raise ProtocolError("A-ASSOCIATE-RQ is shorter than its fixed fields", INVALID_PARAMETER)
    (version,) = struct.unpack_from(">H", data)
    application_context = ""
    contexts: list[ProposedContext] = []
    user: tuple[int, str, str, bool] = (0, "", "", False)
    for kind, value in _items(data, _FIXED_BYTES, len(data)):
        if kind == 0x10:
            application_context = _text(value)
        elif kind == 0x20:
            contexts.append(_proposed(value))
            if len(contexts) > _MAX_CONTEXTS:
                raise ProtocolError("A-ASSOCIATE-RQ proposes more than 128 contexts", INVALID_PARAMETER)
        elif kind == 0x50:
            user = _user_information(value)
    if not contexts or len({context.context_id for context in contexts}) < len(contexts):
        raise ProtocolError("A-ASSOCIATE-RQ has no contexts, or one ID twice", INVALID_PARAMETER)
    return AssociateRequest(
        version,
        _text(data[4:20]),
        _text(data[20:36]),
        application_context,
        tuple(contexts),
        *user,
        data[4:_FIXED_BYTES],
    )


def _items(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Items and sub-items: type, reserved byte, 16-bit length, value."""
    while start < end:
        if end - start < 4:
            raise ProtocolError("an item of the A-ASSOCIATE-RQ is cut off", INVALID_PARAMETER)
        kind, length = struct.unpack_from(">BxH", data, start)
        start += 4
        if length > end - start:
            raise ProtocolError("an item of the A-ASSOCIATE-RQ is longer than the PDU", INVALID_PARAMETER)
        yield kind, data[start : start + length]
        start += length


def _proposed(value: bytes) -> ProposedContext:
    if len(value) < 4 or not value[0] % 2:
        raise ProtocolError("a presentation context has no odd ID", INVALID_PARAMETER)
    abstract = ""
    transfers: list[str] = []
    for kind, name in _items(value, 4, len(value)):
        if kind == 0x30:
            abstract = _text(name)
        elif kind == 0x40:
            transfers.append(_text(name))
            if len(transfers) > _MAX_SYNTAXES:
                raise ProtocolError("a presentation context lists too many transfer syntaxes", INVALID_PARAMETER)
    if not abstract or not transfers:
        raise ProtocolError("a presentation context lacks a syntax", INVALID_PARAMETER)
    return ProposedContext(value[0], abstract, tuple(transfers))


def _user_information(value: bytes) -> tuple[int, str, str, bool]:
    max_pdu, uid, version, wants_async = 0, "", "", False
    for count, (kind, item) in enumerate(_items(value, 0, len(value))):
        if count > 1024:
            raise ProtocolError("the user information has too many sub-items", INVALID_PARAMETER)
        if kind == 0x51 and len(item) == 4:
            (max_pdu,) = struct.unpack(">I", item)
        elif kind == 0x52:
            uid = _text(item)
        elif kind == 0x53:
            wants_async = True
        elif kind == 0x55:
            version = _text(item)
    return max_pdu, uid, version, wants_async


def _text(value: bytes) -> str:
    """An AE title or UID without its padding (PS3.8 tables 9-11 and Annex F allow trailing NULs of odd peers)."""
    return value.strip(b" \0").decode("ascii", "backslashreplace")


def encode_accept(request: AssociateRequest, results: Sequence[ContextResult], max_pdu_bytes: int) -> bytes:
    """An A-ASSOCIATE-AC (PS3.8 section 9.3.3): our PDU length, our implementation, one operation at a time."""
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for result in results:
        syntax = _item(0x40, result.transfer_syntax.encode("ascii", "replace"))
        items.append(_item(0x21, struct.pack(">BxBx", result.context_id, result.result) + syntax))
    user = [
        _item(0x51, struct.pack(">I", max_pdu_bytes)),
        _item(0x52, IMPLEMENTATION_CLASS_UID.encode()),
        _item(0x55, IMPLEMENTATION_VERSION_NAME.encode()),
    ]
    if request.wants_async:
        # Asynchronous operations window (PS3.7 D.3.3.3): invoked and performed, one each.
        user.insert(2, _item(0x53, struct.pack(">HH", 1, 1)))
    items.append(_item(0x50, b"".join(user)))
    body = struct.pack(">Hxx", 1) + request.echo + b"".join(items)
    return struct.pack(">BxI", ASSOCIATE_AC, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return struct.pack(">BxIxBBB", ASSOCIATE_RJ, 4, result, source, reason)


def encode_abort(reason: int, *, by_provider: bool = True) -> bytes:
    """An A-ABORT (PS3.8 table 9-26): by the service provider with a reason, or by the service user."""
    return struct.pack(">BxIxxBB", ABORT, 4, 2 if by_provider else 0, reason if by_provider else 0)


def encode_command(context_id: int, command: bytes) -> bytes:
    """A P-DATA-TF with one whole command set in one fragment (PS3.8 section 9.3.5 and Annex E.2)."""
    return struct.pack(">BxIIBB", P_DATA, len(command) + 6, len(command) + 2, context_id, 0x03) + command


def fragments(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Presentation context ID, message control header and fragment of each PDV. Raises ProtocolError."""
    start, end = 0, len(body)
    if not end:
        raise ProtocolError("a P-DATA-TF carries nothing", INVALID_PARAMETER)
    while start < end:
        if end - start < 6:
            raise ProtocolError("a PDV is cut off", INVALID_PARAMETER)
        length, context_id, control = struct.unpack_from(">IBB", body, start)
        if length < 2 or length > end - start - 4:
            raise ProtocolError("a PDV's length does not fit its PDU", INVALID_PARAMETER)
        yield context_id, control, body[start + 6 : start + 4 + length]
        start += 4 + length
