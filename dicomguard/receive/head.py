"""A bounded look at the head of an encoded data set, for the four UIDs that place an instance. Pure.

No library's parser comes near a peer's bytes in the receiver: this walks element headers (PS3.5 section 7.1), skips
values, and never goes beyond group 0020, a number of elements, a depth of open sequences and a number of bytes read.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from dicomguard.encoding import FIRST_GROUP, LONG_VRS, SHORT_VRS, looks_explicit

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
GE_PRIVATE = "1.2.840.113619.5.2"

_MAX_ELEMENTS = 5_000
_MAX_DEPTH = 16
_MAX_READ_BYTES = 1 << 20
_MAX_INFLATED_BYTES = 1 << 18
_WINDOW_BYTES = 4096

_LAST_GROUP = 0x0020
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_WANTED = {(0x0008, 0x0016): 0, (0x0008, 0x0018): 1, (0x0020, 0x000D): 2, (0x0020, 0x000E): 3}
_UID = re.compile(r"[0-9.]{1,64}")

Reader = Callable[[int, int], bytes]
"""`read(n, offset)`: at most n bytes of the data set at an offset; fewer only at its end."""


@dataclass(frozen=True, slots=True)
class Head:
    """The UIDs as sent, without padding, "" where absent. `problem` is "" or why the walk stopped early."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    problem: str = ""


class _MalformedError(Exception):
    """The encoding does not add up; the text says how."""


def is_uid(text: str) -> bool:
    """Digits and dots, 64 at most (PS3.5 section 9.1). Leading zeros occur in the field and do no harm."""
    return _UID.fullmatch(text) is not None


def look(read: Reader, transfer_syntax_uid: str) -> Head:
    """Walk the head. Never raises; what cannot be walked is a `problem`, with the UIDs found until there."""
    walker = _Walker(_inflated(read) if transfer_syntax_uid == DEFLATED else read, transfer_syntax_uid)
    problem = ""
    try:
        walker.walk()
    except _MalformedError as error:
        problem = str(error)
    except zlib.error:
        problem = "the deflated data set cannot be inflated"
    sop_class, sop_instance, study, series = walker.found
    return Head(sop_class, sop_instance, study, series, problem)


def _inflated(read: Reader) -> Reader:
    """A reader of the inflated head: at most `_MAX_INFLATED_BYTES` of it, inflated as asked for (PS3.5 section A.5)."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    head = bytearray()
    position = 0

    def read_inflated(size: int, offset: int) -> bytes:
        nonlocal position
        if offset + size > _MAX_INFLATED_BYTES:
            raise _MalformedError("the head of the deflated data set is too large")
        while len(head) < offset + size and not inflater.eof:
            chunk = inflater.unconsumed_tail or read(_WINDOW_BYTES, position)
            if not inflater.unconsumed_tail:
                position += len(chunk)
            if not chunk:
                break
            head.extend(inflater.decompress(chunk, _MAX_INFLATED_BYTES - len(head)))
        return bytes(head[offset : offset + size])

    return read_inflated


class _Walker:
    def __init__(self, read: Reader, transfer_syntax_uid: str) -> None:
        self.found: list[str] = ["", "", "", ""]
        self._read = read
        self._explicit = transfer_syntax_uid not in {IMPLICIT_LITTLE, GE_PRIVATE}
        self._order = ">" if transfer_syntax_uid == EXPLICIT_BIG else "<"
        self._window = b""
        self._window_at = 0
        self._read_bytes = 0
        self._elements = 0

    def walk(self) -> None:
        """Top-level elements up to the last wanted one."""
        position = 0
        missing = len(_WANTED)
        while missing:
            element = self._header(position, explicit=self._explicit, is_first=position == 0)
            if element is None:
                return
            tag, position, length, nested_explicit = element
            if tag[0] < FIRST_GROUP:
                raise _MalformedError("an element is of a group that no data set may have")
            if tag[0] > _LAST_GROUP:
                if tag[0] == 0xFFFE:
                    raise _MalformedError("a delimiter stands outside any sequence")
                return
            index = _WANTED.get(tag)
            if index is not None and not self.found[index]:
                # One byte more than a UID may have shows that it is too long, and is all we want to see of it.
                value = self._bytes(position, min(length, 66))
                if len(value) < min(length, 66):
                    raise _MalformedError("the data set ends within a UID")
                self.found[index] = value.rstrip(b" \0").decode("ascii", "backslashreplace")
                missing -= 1
            if length == _UNDEFINED:
                position = self._skip_sequence(position, explicit=nested_explicit)
            else:
                position += length

    def _skip_sequence(self, position: int, *, explicit: bool) -> int:
        """From the first byte after a header of undefined length to the first after its delimiter (PS3.5 7.5)."""
        # What is open, innermost last: True a sequence (items follow), False an item (elements follow).
        stack = [(True, explicit)]
        is_first = False
        while stack:
            is_sequence, explicit = stack[-1]
            element = self._header(position, explicit=explicit, is_first=is_first)
            if element is None:
                raise _MalformedError("the data set ends within a sequence")
            tag, position, length, nested_explicit = element
            is_first = tag == _ITEM
            if tag == (_SEQUENCE_END if is_sequence else _ITEM_END):
                if length:
                    raise _MalformedError("a delimiter has a length")
                stack.pop()
                continue
            if is_sequence != (tag == _ITEM) or (tag[0] == 0xFFFE and tag != _ITEM):
                raise _MalformedError("a sequence has something else than items")
            if length == _UNDEFINED:
                if len(stack) >= _MAX_DEPTH:
                    raise _MalformedError("sequences are nested too deep")
                stack.append((not is_sequence, explicit if is_sequence else nested_explicit))
            else:
                position += length
        return position

    def _header(
        self, position: int, *, explicit: bool, is_first: bool
    ) -> tuple[tuple[int, int], int, int, bool] | None:
        """Tag, position of the value, its length, and whether what is nested in it is explicit. None at the end.

        `is_first`: of the data set or of an item.
        """
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise _MalformedError("the head has too many elements")
        raw = self._bytes(position, 12)
        if not raw:
            return None
        if len(raw) < 8:
            raise _MalformedError("the data set ends within an element")
        group, number = struct.unpack_from(self._order + "HH", raw)
        tag = (group, number)
        vr = raw[4:6]
        if not explicit or group == 0xFFFE:
            if is_first and group != 0xFFFE and looks_explicit(vr):
                raise _MalformedError("a length reads as a VR, by which some readers tell explicit encoding")
            (length,) = struct.unpack_from(self._order + "I", raw, 4)
            return tag, position + 8, length, explicit
        if vr in SHORT_VRS:
            (length,) = struct.unpack_from(self._order + "H", raw, 6)
            return tag, position + 8, length, True
        # Those to come would have 32-bit lengths (PS3.5 section 7.1.2), but readers of today do not agree on that.
        if vr not in LONG_VRS:
            raise _MalformedError("an element has no value representation")
        if len(raw) < 12:
            raise _MalformedError("the data set ends within an element")
        (length,) = struct.unpack_from(self._order + "I", raw, 8)
        if length == _UNDEFINED and vr not in ({b"SQ"} if self._order == ">" else {b"SQ", b"UN"}):
            raise _MalformedError("an element that is no sequence has no length")
        # Unknown of undefined length is a sequence in Implicit VR Little Endian (PS3.5 section 6.2.2, note 4).
        return tag, position + 12, length, vr != b"UN"

    def _bytes(self, position: int, size: int) -> bytes:
        start = position - self._window_at
        if start < 0 or start + size > len(self._window):
            self._window = self._read(_WINDOW_BYTES, position)
            self._window_at = position
            self._read_bytes += len(self._window)
            if self._read_bytes > _MAX_READ_BYTES:
                raise _MalformedError("the head is too large")
            start = 0
        return self._window[start : start + size]
