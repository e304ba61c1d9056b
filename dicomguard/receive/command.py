"""DIMSE command sets (PS3.7 section 6.3): Implicit VR Little Endian, group 0000 only. Pure.

Only the two services that this node performs are spoken, C-ECHO and C-STORE (PS3.7 sections 9.3.5 and 9.3.1); any other
request gets "unrecognised operation".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicomguard.receive.pdu import INVALID_PARAMETER, ProtocolError

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101
_MAX_ELEMENTS = 64
_COMMENT_CHARS = 64


@dataclass(frozen=True, slots=True)
class Command:
    """A request as far as it matters here. UIDs as sent, without padding; bytes outside ASCII as escapes."""

    field: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


def decode(data: bytes) -> Command:
    """Read a command set. Raises ProtocolError where it is none, or no request."""
    elements: dict[int, bytes] = {}
    start = 0
    while start < len(data):
        if len(data) - start < 8 or len(elements) >= _MAX_ELEMENTS:
            raise ProtocolError("a command set is malformed", INVALID_PARAMETER)
        group, element, length = struct.unpack_from("<HHI", data, start)
        start += 8
        if group or length > len(data) - start:
            raise ProtocolError("a command set is malformed", INVALID_PARAMETER)
        elements[element] = data[start : start + length]
        start += length
    field = _number(elements.get(0x0100))
    if field is None or field & _RESPONSE:
        raise ProtocolError("a command set is no request", INVALID_PARAMETER)
    message_id = _number(elements.get(0x0110 if field != C_CANCEL_RQ else 0x0120))
    if message_id is None:
        raise ProtocolError("a request has no message ID", INVALID_PARAMETER)
    # A missing Command Data Set Type is read as "none": a data set that comes all the same is then a protocol error.
    kind = _number(elements.get(0x0800))
    return Command(
        field=field,
        message_id=message_id,
        sop_class_uid=_uid(elements.get(0x0002) or elements.get(0x0003, b"")),
        sop_instance_uid=_uid(elements.get(0x1000) or elements.get(0x1001, b"")),
        has_data_set=kind is not None and kind != _NO_DATA_SET,
    )


def _number(value: bytes | None) -> int | None:
    return struct.unpack("<H", value)[0] if value is not None and len(value) == 2 else None


def _uid(value: bytes) -> str:
    # Padding is one trailing NUL (PS3.5 section 9.1); some peers pad with spaces. Anything inside stays, to be refused.
    return value.rstrip(b" \0").decode("ascii", "backslashreplace")


def encode_response(request: Command, status: int, comment: str = "") -> bytes:
    """The response to `request` without a data set. `comment` goes into Error Comment (0000,0902), 64 characters."""
    elements = [_element(0x0100, struct.pack("<H", request.field | _RESPONSE))]
    if request.sop_class_uid:
        elements.insert(0, _element(0x0002, _padded(request.sop_class_uid)))
    elements += [
        _element(0x0120, struct.pack("<H", request.message_id)),
        _element(0x0800, struct.pack("<H", _NO_DATA_SET)),
        _element(0x0900, struct.pack("<H", status)),
    ]
    if comment:
        text = comment[:_COMMENT_CHARS].encode("ascii", "replace")
        elements.append(_element(0x0902, text + b" " * (len(text) % 2)))
    if request.sop_instance_uid and request.field == C_STORE_RQ:
        elements.append(_element(0x1000, _padded(request.sop_instance_uid)))
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<I", len(body))) + body


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _padded(uid: str) -> bytes:
    # A hostile UID is not echoed beyond what the VR allows.
    value = uid.encode("ascii", "replace")[:64]
    return value + b"\0" * (len(value) % 2)
