"""Where everything lies in an encoded data set, found without building any of it (PS3.5 section 7).

The walk touches headers of elements only, keeps its own stack, counts what it sees and stops at the limits: two million
empty items cost a general parser a minute and a gigabyte, here they cost a comparison. It is deliberately strict where
parsers disagree with each other (an element twice, lengths that overrun, a VR that is none, bytes that some take for
another encoding), for there an attacker can show one picture to us and another to the model behind us.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from typing import Final

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from dicomguard.encoding import FIRST_GROUP, LONG_VRS, SHORT_VRS, looks_explicit
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.refusal import RefusalError, over_limits, truncated, unparsable

Buffer = bytes | memoryview | mmap.mmap

PIXEL_DATA: Final = 0x7FE00010
FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_PIXEL_DATA: Final = 0x7FE00009
PER_FRAME: Final = 0x52009230

_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF
_OPAQUE_VRS: Final = frozenset((b"OB", b"OW"))
_SEQUENCE_TAGS: Final = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
_PADDING_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are written under a transfer syntax (PS3.5 section 10 and Annex A)."""

    implicit: bool
    little: bool

    @classmethod
    def of(cls, transfer_syntax_uid: str) -> Encoding:
        """Everything but the two named ones is Explicit VR Little Endian."""
        return cls(
            implicit=transfer_syntax_uid == ImplicitVRLittleEndian,
            little=transfer_syntax_uid != ExplicitVRBigEndian,
        )


def is_deflated(transfer_syntax_uid: str) -> bool:
    """True where the data set as a whole is a deflate stream (PS3.5 A.5)."""
    return transfer_syntax_uid == DeflatedExplicitVRLittleEndian


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the top level: VR as written ("" in implicit encoding), positions in the buffer.

    `length` is -1 where it is undefined; `end` is behind the element, its delimiter included.
    """

    tag: int
    vr: str
    start: int
    value: int
    length: int
    end: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What a walk over a data set found."""

    encoding: Encoding
    elements: dict[int, Element]
    fragments: tuple[tuple[int, int], ...]
    frame_items: tuple[tuple[int, int], ...]
    count: int

    @property
    def pixel_element(self) -> Element | None:
        """Pixel Data in one of its three forms."""
        found = (self.elements.get(tag) for tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA))
        return next((element for element in found if element is not None), None)


def is_sequence(outline: Outline, tag: int) -> bool:
    """True where the data set or the dictionary says that a top-level element is a sequence."""
    element = outline.elements.get(tag)
    return tag in _SEQUENCE_TAGS or (element is not None and element.vr == "SQ")


def name(tag: int) -> str:
    """(gggg,eeee) as people write it."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


@dataclass(slots=True)
class _Level:
    """One open sequence, open item, or the data set itself. `end` is None where a delimiter will close it.

    `is_fresh`: no element of it was seen yet.
    """

    is_sequence: bool
    end: int | None
    limit: int
    encoding: Encoding
    tag: int = 0
    is_fresh: bool = True


class _Walk:
    """The state of one walk. The data set is level 0; sequences and items alternate above it."""

    def __init__(self, data: Buffer, stop: int, encoding: Encoding, limits: Limits) -> None:
        self.data, self.stop, self.limits = data, stop, limits
        self.stack = [_Level(is_sequence=False, end=stop, limit=stop, encoding=encoding)]
        self.elements: dict[int, Element] = {}
        self.fragments: tuple[tuple[int, int], ...] = ()
        self.frame_items: list[tuple[int, int]] = []
        self.count = 0

    def run(self, start: int) -> None:
        """From `start` to the end of the data set."""
        position = start
        while True:
            level = self.stack[-1]
            if level.end is not None and position >= level.end:
                if len(self.stack) == 1:
                    return
                self._close(position, position)
                continue
            if self.stop - position < 8:
                if len(self.stack) == 1:
                    self._expect_padding(position)
                    return
                raise truncated("The data set ends inside a sequence.")
            self.count += 1
            if self.count > self.limits.max_elements:
                raise over_limits(f"The data set has more than {self.limits.max_elements} elements and items.")
            order = "<" if level.encoding.little else ">"
            group, number = struct.unpack_from(order + "HH", self.data, position)
            tag = group << 16 | number
            if level.is_sequence:
                position = self._item(level, tag, position, order)
            elif group == 0xFFFE:
                if tag != _ITEM_END or level.end is not None:
                    raise unparsable(f"A delimiter {name(tag)} stands where an element should.")
                _expect_empty(tag, *struct.unpack_from(order + "I", self.data, position + 4))
                self._close(position, position + 8)
                position += 8
            elif tag == 0 and len(self.stack) == 1:
                self._expect_padding(position)
                return
            elif group < FIRST_GROUP and len(self.stack) == 1:
                raise unparsable(f"Element {name(tag)} is of a group that no data set may have.")
            else:
                position = self._element(level, tag, position, order)
                level.is_fresh = False

    def _item(self, level: _Level, tag: int, position: int, order: str) -> int:
        (length,) = struct.unpack_from(order + "I", self.data, position + 4)
        if tag == _SEQUENCE_END and level.end is None:
            _expect_empty(tag, length)
            self._close(position, position + 8)
            return position + 8
        if tag != _ITEM:
            raise unparsable(f"Sequence {name(level.tag)} holds {name(tag)} where an item should begin.")
        start = position + 8
        if length != _UNDEFINED and start + length > level.limit:
            raise self._overrun(tag, start + length, level)
        if length == 0:
            # Nothing to enter; bombs are made of these.
            if level.tag == PER_FRAME and len(self.stack) == 2:
                self.frame_items.append((start, start))
            return start
        end = None if length == _UNDEFINED else start + length
        limit = level.limit if end is None else end
        self.stack.append(_Level(is_sequence=False, end=end, limit=limit, encoding=level.encoding, tag=start))
        return start

    def _element(self, level: _Level, tag: int, position: int, order: str) -> int:
        data = self.data
        vr = b""
        if level.encoding.implicit:
            if level.is_fresh and looks_explicit(bytes(data[position + 4 : position + 6])):
                raise unparsable(f"The length of {name(tag)} reads as a VR, by which some tell explicit encoding.")
            (length,) = struct.unpack_from(order + "I", data, position + 4)
            value = position + 8
        else:
            vr = bytes(data[position + 4 : position + 6])
            if vr in LONG_VRS:
                if self.stop - position < 12:
                    raise truncated("The data set ends inside the header of an element.")
                (length,) = struct.unpack_from(order + "I", data, position + 8)
                value = position + 12
            elif vr in SHORT_VRS:
                (length,) = struct.unpack_from(order + "H", data, position + 6)
                value = position + 8
            else:
                # Readers take 16 or 32 bits of length, or fall back to implicit encoding: three other data sets.
                raise unparsable(f"Element {name(tag)} has no value representation of PS3.5 section 6.2.")
        if length != _UNDEFINED:
            end: int = value + length
            if end > level.limit:
                raise self._overrun(tag, end, level)
            if length and (vr == b"SQ" or (not vr and tag in _SEQUENCE_TAGS)):
                return self._open(level, Element(tag, vr.decode(), position, value, length, end), level.encoding)
            self._keep(Element(tag, vr.decode(), position, value, length, end))
            return end
        if vr in _OPAQUE_VRS or (not vr and tag == PIXEL_DATA):
            fragments, end = _fragments(data, value, level, self.limits, tag)
            if len(self.stack) == 1 and tag == PIXEL_DATA:
                self.fragments = fragments
            self._keep(Element(tag, vr.decode(), position, value, -1, end))
            return end
        is_value = tag == PIXEL_DATA or (not vr and _vr(tag) not in {"", "SQ", "UN"})
        if vr not in {b"", b"SQ", b"UN"} or is_value:
            raise unparsable(f"Element {name(tag)} has an undefined length, which its VR does not allow.")
        # UN of undefined length holds a sequence in Implicit VR Little Endian (PS3.5 section 6.2.2, note 4).
        if vr == b"UN" and not level.encoding.little:
            raise unparsable(f"Element {name(tag)} is unknown and big endian; readers disagree on what is in it.")
        inner = Encoding(implicit=True, little=True) if vr == b"UN" else level.encoding
        return self._open(level, Element(tag, vr.decode(), position, value, -1, 0), inner)

    def _open(self, level: _Level, element: Element, encoding: Encoding) -> int:
        if len(self.stack) // 2 >= self.limits.max_depth:
            raise over_limits(f"Sequences are nested deeper than {self.limits.max_depth}.")
        self._keep(element)
        end = None if element.length < 0 else element.end
        limit = level.limit if end is None else end
        self.stack.append(_Level(is_sequence=True, end=end, limit=limit, encoding=encoding, tag=element.tag))
        return element.value

    def _close(self, content_end: int, end: int) -> None:
        closed = self.stack.pop()
        if len(self.stack) == 1 and closed.is_sequence:
            self.elements[closed.tag] = replace(self.elements[closed.tag], end=end)
        elif len(self.stack) == 2 and not closed.is_sequence and self.stack[1].tag == PER_FRAME:
            self.frame_items.append((closed.tag, content_end))

    def _keep(self, element: Element) -> None:
        if len(self.stack) > 1:
            return
        if element.tag in self.elements:
            raise unparsable(f"Element {name(element.tag)} occurs twice; which one is meant cannot be known.")
        self.elements[element.tag] = element

    def _overrun(self, tag: int, end: int, level: _Level) -> RefusalError:
        if end > self.stop:
            return truncated(
                f"Element {name(tag)} is {end - self.stop} bytes longer than what is left of the data set."
            )
        return unparsable(f"Element {name(tag)} is {end - level.limit} bytes longer than the item that it stands in.")

    def _expect_padding(self, position: int) -> None:
        """Zeros to the very end: what stood behind them would be elements to other readers."""
        for start in range(position, self.stop, _PADDING_CHUNK):
            if any(bytes(self.data[start : min(self.stop, start + _PADDING_CHUNK)])):
                raise truncated("The data set ends in the middle of an element, or with bytes that belong to none.")


def _vr(tag: int) -> str:
    """As the dictionary has it (PS3.6), "" for what is not in there."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def _expect_empty(tag: int, length: int) -> None:
    if length:
        raise unparsable(f"A delimiter {name(tag)} has a length; some skip so much, others do not.")


def scan(data: Buffer, start: int, stop: int, encoding: Encoding, limits: Limits) -> Outline:
    """Walk the data set in `data[start:stop]`.

    Raises RefusalError: TRUNCATED where an element runs past the end, UNPARSABLE where the structure contradicts
    itself, OVER_LIMITS past the depth or the number of elements.
    """
    walk = _Walk(data, stop, encoding, limits)
    walk.run(start)
    return Outline(encoding, walk.elements, walk.fragments, tuple(walk.frame_items), walk.count)


def _fragments(
    data: Buffer, position: int, level: _Level, limits: Limits, tag: int
) -> tuple[tuple[tuple[int, int], ...], int]:
    """The items of an encapsulated value, the offset table first (PS3.5 A.4), and the position behind it."""
    order = "<" if level.encoding.little else ">"
    found: list[tuple[int, int]] = []
    while True:
        if position + 8 > level.limit:
            raise truncated(f"The fragments of {name(tag)} end without a delimiter.")
        group, number, length = struct.unpack_from(order + "HHI", data, position)
        item = group << 16 | number
        position += 8
        if item == _SEQUENCE_END:
            if length:
                raise unparsable(f"The fragments of {name(tag)} end with a delimiter that has a length.")
            return tuple(found), position
        if item != _ITEM or length == _UNDEFINED:
            raise unparsable(f"The fragments of {name(tag)} are interrupted by {name(item)}.")
        if position + length > level.limit:
            raise truncated(f"A fragment of {name(tag)} is {position + length - level.limit} bytes short.")
        if len(found) >= limits.max_fragments:
            raise over_limits(f"{name(tag)} has more than {limits.max_fragments} fragments.")
        found.append((position, length))
        position += length
