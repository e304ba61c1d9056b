"""PDUs and commands as bytes, as far as a requestor needs them (PS3.8 section 9.3, PS3.7 section 6.3, annex E). Pure.

Reading checks every length against what is there and raises `LinkError`: the peer's answers are input from outside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dicomguard import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomguard.scu.errors import LinkError

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
RELEASE_REQUEST = struct.pack(">BxI4x", RELEASE_RQ, 4)
RELEASE_RESPONSE = struct.pack(">BxI4x", RELEASE_RP, 4)
# Source 0: the service user, that is us (PS3.8 table 9-26).
ABORT_REQUEST = struct.pack(">BxIxxBB", ABORT, 4, 0, 0)

C_STORE_RQ, C_STORE_RSP, C_ECHO_RQ, C_ECHO_RSP = 0x0001, 0x8001, 0x0030, 0x8030
# Bits of a PDV's message control header (PS3.8 annex E.2).
COMMAND, LAST = 0x01, 0x02
PDV_OVERHEAD_BYTES = 6

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_NO_DATA_SET = 0x0101
_FIXED_BYTES = 68

_RESULTS = {1: "permanently", 2: "for now"}
_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}

Syntaxes = tuple[str, str]
"""SOP Class UID and Transfer Syntax UID: what one presentation context is about."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An A-ASSOCIATE-AC. `contexts`: context id -> result (PS3.8 table 9-18) and transfer syntax."""

    contexts: Mapping[int, tuple[int, str]]
    max_pdu_bytes: int


def associate_request(calling_ae: str, called_ae: str, contexts: Sequence[Syntaxes], max_pdu_bytes: int) -> bytes:
    """An A-ASSOCIATE-RQ with context ids 1, 3, 5 ... in the order of `contexts` (at most 128; PS3.8 section 9.3.2)."""
    items = [_item(0x10, _APPLICATION_CONTEXT.encode())]
    for index, (sop_class_uid, transfer_syntax_uid) in enumerate(contexts):
        syntaxes = _item(0x30, _uid(sop_class_uid)) + _item(0x40, _uid(transfer_syntax_uid))
        items.append(_item(0x20, struct.pack(">B3x", 2 * index + 1) + syntaxes))
    user = (
        _item(0x51, struct.pack(">I", max_pdu_bytes))
        + _item(0x52, IMPLEMENTATION_CLASS_UID.encode())
        + _item(0x55, IMPLEMENTATION_VERSION_NAME.encode())
    )
    items.append(_item(0x50, user))
    body = struct.pack(">H2x16s16s32x", 1, _title(called_ae), _title(calling_ae)) + b"".join(items)
    return struct.pack(">BxI", ASSOCIATE_RQ, len(body)) + body


def read_accept(body: bytes) -> Accepted:
    """The body (after the six-byte header) of an A-ASSOCIATE-AC (PS3.8 section 9.3.3)."""
    contexts: dict[int, tuple[int, str]] = {}
    max_pdu_bytes = 0
    for kind, value in _items(body, _FIXED_BYTES):
        if kind == 0x21 and len(value) >= 4:
            # Where a context is refused its transfer syntax means nothing and may even be missing.
            syntaxes = dict(_items(value, 4)) if value[2] == 0 else {}
            contexts[value[0]] = (value[2], syntaxes.get(0x40, b"").rstrip(b"\0 ").decode("ascii", "replace"))
        elif kind == 0x50:
            for sub_kind, sub_value in _items(value, 0):
                if sub_kind == 0x51 and len(sub_value) == 4:
                    (max_pdu_bytes,) = struct.unpack(">I", sub_value)
    return Accepted(contexts, max_pdu_bytes)


def read_reject(body: bytes) -> tuple[str, int, int, int]:
    """In words, result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    if len(body) < 4:
        raise LinkError("The peer sent a rejection that is cut off.")
    result, source, reason = body[1:4]
    why = _REASONS.get((source, reason), "unknown reason")
    how = _RESULTS.get(result, "in an unknown way")
    return f"The association was rejected {how}: {why} ({result}/{source}/{reason}).", result, source, reason


def store_request(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """The command set of a C-STORE-RQ, implicit VR little endian (PS3.7 section 9.3.1.1)."""
    return _command(
        (0x0002, _uid(sop_class_uid)),
        (0x0100, struct.pack("<H", C_STORE_RQ)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),  # priority: medium
        (0x0800, struct.pack("<H", 1)),  # a data set follows
        (0x1000, _uid(sop_instance_uid)),
    )


def echo_request(message_id: int) -> bytes:
    """The command set of a C-ECHO-RQ (PS3.7 section 9.3.5.1)."""
    return _command(
        (0x0002, _uid("1.2.840.10008.1.1")),
        (0x0100, struct.pack("<H", C_ECHO_RQ)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0800, struct.pack("<H", _NO_DATA_SET)),
    )


def read_response(command: bytes) -> tuple[int, int, int, str]:
    """Command field, message id responded to, status, and error comment of a response's command set (PS3.7 annex E)."""
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(command):
        if len(command) - position < 8:
            raise LinkError("The peer's response is cut off.")
        group, element, length = struct.unpack_from("<HHI", command, position)
        position += 8
        if group != 0x0000 or length > len(command) - position:
            raise LinkError("The peer's response is no command set.")
        elements[element] = command[position : position + length]
        position += length
    try:
        field, responded_to, data_set, status = (
            struct.unpack("<H", elements[name])[0] for name in (0x0100, 0x0120, 0x0800, 0x0900)
        )
    except (KeyError, struct.error):
        raise LinkError("The peer's response lacks a status or what it responds to.") from None
    if data_set != _NO_DATA_SET:
        raise LinkError("The peer's response announces a data set, which none has here.")
    comment = elements.get(0x0902, b"").decode("latin-1").strip("\0 ")[:64]
    return field, responded_to, status, comment


def data_pdus(context_id: int, flags: int, fragments: Iterator[tuple[bytes, bool]]) -> Iterator[bytes]:
    """One P-DATA-TF PDU with one PDV for each (fragment, is it the last one) (PS3.8 section 9.3.5)."""
    for data, is_last in fragments:
        control = flags | (LAST if is_last else 0)
        head = struct.pack(">BxIIBB", P_DATA, len(data) + PDV_OVERHEAD_BYTES, len(data) + 2, context_id, control)
        yield head + data


def read_pdvs(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Context id, message control header and fragment of each PDV in a P-DATA-TF."""
    position = 0
    while position < len(body):
        if len(body) - position < PDV_OVERHEAD_BYTES:
            raise LinkError("The peer sent a PDV that is cut off.")
        length, context_id, control = struct.unpack_from(">IBB", body, position)
        if length < 2 or length > len(body) - position - 4:
            raise LinkError("The peer sent a PDV that is longer than its PDU.")
        yield context_id, control, body[position + 6 : position + 4 + length]
        position += 4 + length


def _items(data: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    while position < len(data):
        if len(data) - position < 4:
            raise LinkError("The peer's acceptance is cut off.")
        kind, length = struct.unpack_from(">BxH", data, position)
        position += 4
        if length > len(data) - position:
            raise LinkError("The peer's acceptance has an item that is longer than the PDU.")
        yield kind, data[position : position + length]
        position += length


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _title(ae_title: str) -> bytes:
    return ae_title.encode("ascii", "replace")[:16].ljust(16)


def _uid(uid: str) -> bytes:
    return uid.encode("ascii", "replace")


def _command(*elements: tuple[int, bytes]) -> bytes:
    encoded = b"".join(
        struct.pack("<HHI", 0x0000, element, len(value) + len(value) % 2) + value + b"\0" * (len(value) % 2)
        for element, value in elements
    )
    return struct.pack("<HHII", 0x0000, 0x0000, 4, len(encoded)) + encoded
