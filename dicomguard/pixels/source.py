"""A file opened for reading: mapped, hashed, inflated within bounds. Never follows what the data set names.

A DICOMDIR is a data set like any other here; the files that it refers to are never opened.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomguard.pixels.limits import Limits
from dicomguard.pixels.refusal import over_limits, truncated, unparsable
from dicomguard.pixels.structure import Buffer, is_deflated

_META_MAX_BYTES: Final = 65536
_LONG_VRS: Final = frozenset((b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR"))
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """One data set as bytes: `data[start:stop]`, inflated if need be.

    `sha256` and `size` (bytes) are those of the data set as it lies in the file.
    """

    data: Buffer
    start: int
    stop: int
    transfer_syntax_uid: str
    sha256: str
    size: int


def open_mapped(path: Path, limits: Limits) -> Buffer:
    """Map a regular file for reading; an empty one is b"".

    Raises RefusalError for anything else than a file of acceptable size, OSError where it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise unparsable("This is no regular file.")
        if status.st_size > limits.max_file_bytes:
            raise over_limits(f"The file has {status.st_size} bytes; at most {limits.max_file_bytes} are read.")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if status.st_size else b""
    finally:
        os.close(descriptor)


def load(data: Buffer, data_offset: int, transfer_syntax_uid: str, limits: Limits) -> Source:
    """Hash the data set behind `data_offset` and inflate it where the transfer syntax says so.

    Raises RefusalError: TRUNCATED for an offset behind the end or a deflate stream that breaks off, OVER_LIMITS
    for a bomb.
    """
    size = len(data) - data_offset
    if data_offset < 0 or size <= 0:
        raise truncated("There is no data set in this file.")
    digest = hashlib.sha256()
    for position in range(data_offset, len(data), _CHUNK):
        digest.update(data[position : position + _CHUNK])
    if not is_deflated(transfer_syntax_uid):
        return Source(data, data_offset, len(data), transfer_syntax_uid, digest.hexdigest(), size)
    inflated = inflate(bytes(data[data_offset:]), limits.max_inflated_bytes)
    return Source(inflated, 0, len(inflated), transfer_syntax_uid, digest.hexdigest(), size)


def inflate(compressed: bytes, bound: int) -> bytes:
    """The content of a raw deflate stream (RFC 1951). Raises RefusalError over `bound` bytes, or where it is broken."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    size, rest = 0, compressed
    try:
        while not stream.eof and (part := stream.decompress(rest, _CHUNK)):
            size += len(part)
            if size > bound:
                raise over_limits(f"The deflated data inflates to more than {bound} bytes.")
            parts.append(part)
            rest = stream.unconsumed_tail
    except zlib.error as error:
        raise unparsable("The deflated data is damaged.") from error
    if not stream.eof:
        raise truncated("The deflated data breaks off.")
    return b"".join(parts)


def locate(data: Buffer) -> tuple[int, str]:
    """Where the data set begins, and its transfer syntax, in a Part 10 file or a bare data set (PS3.10 section 7.1).

    The file meta information is followed by its elements, not by its group length, and never beyond 64 KiB. Where it is
    missing, or names no transfer syntax, the encoding is read off the first element. Raises RefusalError (UNPARSABLE).
    """
    if not len(data):
        raise unparsable("The file is empty.")
    if bytes(data[128:132]) == b"DICM":
        position = 132
    elif bytes(data[:2]) in {b"\x02\x00", b"\x08\x00", b"\x00\x08"}:
        position = 0
    else:
        raise unparsable("This is no DICOM file: it has neither a DICM prefix nor a data set at its beginning.")
    transfer_syntax_uid = ""
    bound = min(len(data), position + _META_MAX_BYTES)
    while position + 8 <= bound:
        group, number, vr, length = struct.unpack_from("<HH2sH", data, position)
        if group != 0x0002:
            break
        value = position + 8
        if vr in _LONG_VRS:
            if position + 12 > len(data):
                raise truncated("The file meta information breaks off.")
            (length,) = struct.unpack_from("<I", data, position + 8)
            value = position + 12
        elif not (vr.isalpha() and vr.isupper()):
            # Never allowed (PS3.10 7.1), but seen: file meta information in implicit encoding.
            (length,) = struct.unpack_from("<I", data, position + 4)
        if value + length > bound:
            raise unparsable(f"File meta element (0002,{number:04X}) says {length} bytes, more than there can be.")
        if number == 0x0010:
            transfer_syntax_uid = bytes(data[value : value + length]).rstrip(b"\0 ").decode("ascii", "replace")
        position = value + length
    else:
        raise unparsable("There is no data set behind the file meta information.")
    return position, transfer_syntax_uid or guess(bytes(data[position : position + 6]))


def guess(head: bytes) -> str:
    """The transfer syntax of an uncompressed data set by its first six bytes."""
    if head[:2] < b"\x00\x10" and head[:1] == b"\x00" and head[4:6].isalpha() and head[4:6].isupper():
        return str(ExplicitVRBigEndian)
    is_explicit = len(head) == 6 and head[4:6].isalpha() and head[4:6].isupper()
    return str(ExplicitVRLittleEndian if is_explicit else ImplicitVRLittleEndian)
