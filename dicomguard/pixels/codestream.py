"""What a compressed frame says about itself, read before any decoder sees it.

JPEG and JPEG-LS: ISO/IEC 10918-1 Annex B and 14495-1 Annex C. JPEG 2000 and HTJ2K: ISO/IEC 15444-1 Annex A. A decoder
allocates what the codestream asks for; so that must be what the header of the instance announced.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

from dicomguard.pixels.refusal import truncated, undecodable

Family = Literal["jpeg", "jpeg-ls", "jpeg2000"]

_NO_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD8)))
_SOF: Final = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))
_MAX_SEGMENTS: Final = 4096


@dataclass(frozen=True, slots=True)
class Codestream:
    """Size, sample format and colour of one codestream. `process` is the JPEG SOF number, 55 for JPEG-LS, 0 else.

    `colour` is what the codestream itself says about its components: "RGB", "YBR" or "" where it is silent. `is_signed`
    and `has_transform` (a colour transform that the decoder undoes) are known for JPEG 2000 only.
    """

    family: Family
    rows: int
    columns: int
    components: int
    precision: int
    process: int = 0
    colour: str = ""
    is_signed: bool = False
    has_transform: bool = False


def read(frame: bytes) -> Codestream:
    """The header of a codestream. Raises RefusalError (UNDECODABLE, TRUNCATED) where it is none, or has no end."""
    if frame.startswith(b"\xff\xd8"):
        return _jpeg(frame)
    if frame.startswith(b"\xff\x4f\xff\x51"):
        return _jpeg2000(frame, 0)
    if frame.startswith(b"\x00\x00\x00\x0c\x6a\x50\x20\x20"):
        start = frame.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
        if start > 0:
            return _jpeg2000(frame, start)
    raise undecodable("A frame of Pixel Data begins with no codestream that is known.")


def _expect_end(frame: bytes) -> None:
    """Without its end marker a codestream was cut off, which decoders paint over in grey."""
    if b"\xff\xd9" not in frame[-64:] and not frame.rstrip(b"\0").endswith((b"\xff\xd9", b"\xff\xd9\xff")):
        raise truncated("A frame of Pixel Data ends before its codestream does.")


def _jpeg(frame: bytes) -> Codestream:
    position, colour, adobe = 2, "", b""
    is_jfif = False
    for _ in range(_MAX_SEGMENTS):
        while frame[position : position + 2] == b"\xff\xff":
            position += 1
        if position + 4 > len(frame):
            break
        if frame[position] != 0xFF:
            raise undecodable("A JPEG codestream has bytes between its segments.")
        marker = frame[position + 1]
        if marker in _NO_LENGTH:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", frame, position + 2)
        body = frame[position + 4 : position + 2 + length]
        if marker in _SOF:
            return _sof(frame, marker, body, colour, adobe, is_jfif=is_jfif)
        if marker in {0xD9, 0xDA}:
            break
        is_jfif = is_jfif or (marker == 0xE0 and body.startswith(b"JFIF\0"))
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11:12]
        position += 2 + max(length, 2)
    raise undecodable("A JPEG codestream has no frame header.")


def _sof(frame: bytes, marker: int, body: bytes, colour: str, adobe: bytes, *, is_jfif: bool) -> Codestream:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise truncated("The frame header of a JPEG codestream breaks off.")
    precision, rows, columns, components = struct.unpack_from(">BHHB", body)
    identifiers = bytes(body[6 + 3 * n] for n in range(components))
    if components == 3:
        if identifiers in {b"RGB", b"rgb"} or adobe == b"\0":
            colour = "RGB"
        elif adobe == b"\1" or is_jfif:
            colour = "YBR"
    _expect_end(frame)
    family: Family = "jpeg-ls" if marker == 0xF7 else "jpeg"
    process = 55 if marker == 0xF7 else marker - 0xC0
    return Codestream(family, rows, columns, components, precision, process, colour)


def _jpeg2000(frame: bytes, start: int) -> Codestream:
    if len(frame) < start + 45:
        raise truncated("The header of a JPEG 2000 codestream breaks off.")
    size, _, columns, rows, left, top, *_rest, components = struct.unpack_from(">HHIIIIIIIIH", frame, start + 4)
    if size < 38 + 3 * components or left >= columns or top >= rows:
        raise undecodable("The header of a JPEG 2000 codestream contradicts itself.")
    samples = [frame[start + 42 + 3 * n : start + 45 + 3 * n] for n in range(min(components, 4))]
    if len({s[:1] for s in samples}) != 1 or any(s[1:] != b"\1\1" for s in samples):
        raise undecodable("The components of a JPEG 2000 codestream differ in depth or size.")
    has_transform = _coding_style(frame, start + 4 + size)
    _expect_end(frame)
    depth = samples[0][0]
    return Codestream(
        "jpeg2000",
        rows - top,
        columns - left,
        components,
        (depth & 0x7F) + 1,
        is_signed=depth >= 0x80,
        has_transform=has_transform,
    )


def _coding_style(frame: bytes, position: int) -> bool:
    """Whether the main header names a multiple component transform (COD)."""
    for _ in range(_MAX_SEGMENTS):
        if position + 9 > len(frame) or frame[position] != 0xFF or frame[position + 1] in {0x90, 0x93}:
            break
        if frame[position + 1] == 0x52:
            return frame[position + 8] == 1
        position += 2 + max(struct.unpack_from(">H", frame, position + 2)[0], 2)
    raise undecodable("A JPEG 2000 codestream does not say how it is coded.")
