"""One file per received instance: a DICOM Part 10 file whose file meta information carries the receipt.

The data set follows the header byte for byte as it came over the wire. The receipt (who, when, digest) stands in
Private Information (0002,0102) under our own Private Information Creator UID (PS3.10 section 7.1), in a slot of fixed
length that is filled in when the last byte has come. So one rename makes instance and receipt visible together, and
neither can be lost or mixed up without the other. The reader trusts nothing that it did not check.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

from dicomguard import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomguard.errors import EnvelopeError
from dicomguard.study import Instance, Receipt

RECEIPT_CREATOR_UID = "2.25.98214303519872563403928712209412083841"
_SLOT_BYTES = 4096
_PREAMBLE = bytes(128) + b"DICM"
_HEADER_MAX_BYTES = 8192
_READ_BYTES = 2**20


def _short(element: int, vr: bytes, value: bytes) -> bytes:
    """An Explicit VR Little Endian element of group 0002 with a 16-bit length (PS3.5 section 7.1.2)."""
    if len(value) % 2:
        value += b"\0" if vr in {b"UI", b"OB"} else b" "
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


def _long(element: int, vr: bytes, value: bytes) -> bytes:
    """The same with a 32-bit length."""
    return struct.pack("<HH2sHI", 0x0002, element, vr, 0, len(value)) + value


def header(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str) -> tuple[bytes, int]:
    """Preamble, prefix and file meta information with an empty receipt slot; and the offset of the slot in it."""
    meta = b"".join(
        (
            _long(0x0001, b"OB", b"\0\1"),
            _short(0x0002, b"UI", sop_class_uid.encode("ascii", "replace")),
            _short(0x0003, b"UI", sop_instance_uid.encode("ascii", "replace")),
            _short(0x0010, b"UI", transfer_syntax_uid.encode("ascii")),
            _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
            _short(0x0016, b"AE", calling_ae.encode("ascii", "replace")),
            _short(0x0100, b"UI", RECEIPT_CREATOR_UID.encode()),
            _long(0x0102, b"OB", b" " * _SLOT_BYTES),
        )
    )
    head = _PREAMBLE + _short(0x0000, b"UL", struct.pack("<I", len(meta))) + meta
    return head, len(head) - _SLOT_BYTES


def slot(receipt: Receipt) -> bytes:
    """The receipt as it fills the slot. Raises EnvelopeError if it does not fit."""
    text = json.dumps(receipt.to_json(), separators=(",", ":")).encode("ascii")
    if len(text) > _SLOT_BYTES:
        raise EnvelopeError("A receipt is longer than its slot; the peer's names or UIDs exceed what DICOM allows.")
    return text.ljust(_SLOT_BYTES)


def read(path: Path) -> Instance:
    """The instance in a file of the spool. Reads the header only; never follows a link.

    Raises EnvelopeError where the file is not one that this node wrote. Whoever reads the data checks the digest.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            head = file.read(_HEADER_MAX_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise EnvelopeError(f"{path.name} in the spool cannot be read: {error.strerror}.") from error
    offset, receipt = _parse(head, path.name)
    if size - offset != receipt.size_bytes:
        raise EnvelopeError(
            f"{path.name} in the spool holds {size - offset} bytes of data set, its receipt says {receipt.size_bytes}."
        )
    return Instance(path, offset, receipt)


def data_sha256(instance: Instance) -> str:
    """The digest of the data set as it lies in the spool now. Never follows a link. Raises OSError."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(instance.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        file.seek(instance.data_offset)
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _parse(head: bytes, name: str) -> tuple[int, Receipt]:
    if not head.startswith(_PREAMBLE):
        raise EnvelopeError(f"{name} in the spool is no file of this node.", advice="Move it out of the spool.")
    position = len(_PREAMBLE)
    creator = b""
    try:
        while True:
            group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
            position += 8
            if group != 0x0002:
                break
            if vr == b"OB":
                (length,) = struct.unpack_from("<I", head, position)
                position += 4
            value = head[position : position + length]
            position += length
            if element == 0x0100:
                creator = value.rstrip(b"\0")
            if element == 0x0102 and creator == RECEIPT_CREATOR_UID.encode():
                return position, Receipt.from_json(json.loads(value))
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise EnvelopeError(f"{name} in the spool has a damaged receipt.") from error
    raise EnvelopeError(f"{name} in the spool carries no receipt.")
