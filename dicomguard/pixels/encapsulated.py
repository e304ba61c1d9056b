"""Which fragments of encapsulated Pixel Data make up which frame (PS3.5 Annex A.4).

Offset tables are checked against the fragments that are there. Where frames cannot be told apart, that is a fault: a
picture put together from the wrong fragments is not the picture that others see.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final

from pydicom.uid import RLELossless

from dicomguard.pixels.refusal import truncated, undecodable
from dicomguard.pixels.source import Source
from dicomguard.pixels.structure import Outline

_EXTENDED_OFFSETS: Final = 0x7FE00001
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0c\x6a\x50")

Span = tuple[int, int]


def frame_spans(source: Source, outline: Outline, frames: int) -> list[tuple[Span, ...]]:
    """For each frame its fragments as (position, length) in the buffer.

    Raises RefusalError: TRUNCATED for fewer fragments than frames, UNDECODABLE for offsets that point nowhere.
    """
    if not outline.fragments:
        raise truncated("Pixel Data has no fragments.")
    table, fragments = outline.fragments[0], outline.fragments[1:]
    if len(fragments) < frames:
        raise truncated(f"Pixel Data has {len(fragments)} fragments for {frames} frames.")
    if source.transfer_syntax_uid == RLELossless and len(fragments) != frames:
        raise undecodable(f"Pixel Data has {len(fragments)} RLE frames; the header says {frames}.")
    offsets = _offsets(source, outline, table)
    if frames == 1:
        # One frame owns all fragments. A second picture among them would be one that another reader may show.
        if any(_starts(source, fragment) for fragment in fragments[1:]):
            raise undecodable("The fragments of Pixel Data begin more than one frame; the header says 1.")
        return [fragments]
    if len(fragments) == frames and not offsets:
        return [(fragment,) for fragment in fragments]
    if offsets:
        by_frame = _by_offsets(fragments, offsets, frames)
        if any(_starts(source, fragment) for group in by_frame for fragment in group[1:]):
            raise undecodable("A frame of Pixel Data begins where the offset table names none.")
        return by_frame
    groups: list[list[Span]] = []
    for position, length in fragments:
        if _starts(source, (position, length)):
            groups.append([])
        if not groups:
            raise undecodable("The first fragment of Pixel Data does not begin a frame.")
        groups[-1].append((position, length))
    if len(groups) != frames:
        raise undecodable(f"The fragments of Pixel Data begin {len(groups)} frames; the header says {frames}.")
    return [tuple(group) for group in groups]


def frame_bytes(source: Source, spans: tuple[Span, ...]) -> bytes:
    """The codestream of one frame: its fragments joined."""
    return b"".join(bytes(source.data[position : position + length]) for position, length in spans)


def _starts(source: Source, fragment: Span) -> bool:
    position, length = fragment
    return bytes(source.data[position : position + min(length, 6)]).startswith(_STARTS)


def _offsets(source: Source, outline: Outline, table: Span) -> list[int]:
    order = "<" if outline.encoding.little else ">"
    extended = outline.elements.get(_EXTENDED_OFFSETS)
    if extended is not None and extended.length > 0:
        position, length, size, code = extended.value, extended.length, 8, "Q"
    else:
        position, length, size, code = *table, 4, "I"
    if length % size:
        raise undecodable("The offset table of Pixel Data breaks off in the middle of an offset.")
    return list(struct.unpack_from(f"{order}{length // size}{code}", source.data, position))


def _by_offsets(fragments: tuple[Span, ...], offsets: list[int], frames: int) -> list[tuple[Span, ...]]:
    if len(offsets) != frames:
        raise undecodable(f"The offset table of Pixel Data names {len(offsets)} frames; the header says {frames}.")
    first = fragments[0][0] - 8
    index = {position - 8 - first: number for number, (position, _) in enumerate(fragments)}
    try:
        starts = [index[offset] for offset in offsets]
    except KeyError as error:
        raise undecodable("The offset table of Pixel Data points between fragments.") from error
    if starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise undecodable("The offset table of Pixel Data is not in the order of the frames.")
    return [fragments[a:b] for a, b in zip(starts, [*starts[1:], len(fragments)], strict=True)]
