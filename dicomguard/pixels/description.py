"""What a data set says about its pixels, believed only as far as it agrees with itself (PS3.3 C.7.6.3).

Nothing is allocated and nothing decoded here: a picture of 65535 x 65535 pixels in a file of a kilobyte ends here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomguard.pixels.limits import Limits
from dicomguard.pixels.refusal import RefusalError, over_limits, truncated, undecodable
from dicomguard.pixels.source import Source
from dicomguard.pixels.structure import PIXEL_DATA, Element, Outline, name

NATIVE: Final = frozenset(
    map(str, (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian))
)
_COLOUR: Final = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"))
_GREY: Final = frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"))

_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103


@dataclass(frozen=True, slots=True)
class Description:
    """The Image Pixel module, checked. `element` holds the pixels; `is_native` says that they are uncompressed."""

    element: Element
    is_native: bool
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    is_planar: bool
    frames: int

    @property
    def samples_per_frame(self) -> int:
        """Rows x Columns x Samples per Pixel."""
        return self.rows * self.columns * self.samples

    @property
    def is_subsampled(self) -> bool:
        """True for uncompressed YBR_FULL_422, which stores two chroma samples for two pixels (PS3.3 C.7.6.3.1.2)."""
        return self.is_native and self.photometric == "YBR_FULL_422"

    @property
    def bits_per_frame(self) -> int:
        """Bits of one uncompressed frame; frames of single bits follow each other without padding (PS3.5 8.1.1)."""
        bits = self.samples_per_frame * self.bits_allocated
        return bits * 2 // 3 if self.is_subsampled else bits


def describe(source: Source, outline: Outline, limits: Limits) -> Description | None:
    """The pixels' description, or None where the data set has none.

    Raises RefusalError where it contradicts itself, the length of the pixel data, or the limits.
    """
    element = outline.pixel_element
    if element is None:
        return None
    number = _Numbers(source, outline)
    rows, columns = number.us(_ROWS), number.us(_COLUMNS)
    samples = number.us(_SAMPLES)
    allocated = number.us(_ALLOCATED)
    frames = number.frames()
    photometric = number.text(_PHOTOMETRIC)
    if not rows or not columns:
        raise undecodable(f"The image has {rows} rows and {columns} columns.")
    if not 1 <= frames <= limits.max_frames:
        raise over_limits(f"Number of Frames is {frames}; 1 to {limits.max_frames} are read.")
    if samples not in {1, 3}:
        raise undecodable(f"Samples per Pixel is {samples}; 1 and 3 are defined.")
    if rows * columns * samples > limits.max_samples_per_frame:
        raise over_limits(f"A frame of {rows} x {columns} x {samples} samples is over the limit.")
    if element.tag != PIXEL_DATA:
        return _floating(element, rows, columns, frames, allocated)
    if allocated not in {1, 8, 16, 32}:
        raise undecodable(f"Bits Allocated is {allocated}; 1, 8, 16 and 32 are read.")
    if rows * columns * samples * frames * allocated // 8 > limits.max_pixel_bytes:
        raise over_limits(f"{frames} frames of {rows} x {columns} pixels are over the limit.")
    stored = number.us(_STORED)
    high_bit = number.us(_HIGH_BIT, stored - 1)
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise undecodable(
            f"Bits Allocated {allocated}, Bits Stored {stored} and High Bit {high_bit} contradict each other."
        )
    signed = number.us(_SIGNED)
    if signed not in {0, 1}:
        raise undecodable(f"Pixel Representation is {signed}; 0 and 1 are defined.")
    if (samples == 3) != (photometric in _COLOUR) or photometric not in _COLOUR | _GREY:
        raise undecodable(f"Photometric Interpretation and {samples} samples per pixel do not make an image we read.")
    planar = number.us(_PLANAR, 0) if samples == 3 else 0
    if planar not in {0, 1}:
        raise undecodable(f"Planar Configuration is {planar}; 0 and 1 are defined.")
    is_native = element.length >= 0
    if is_native != (source.transfer_syntax_uid in NATIVE):
        raise undecodable(
            "The transfer syntax and the form of Pixel Data contradict each other: one is compressed, the other is not."
        )
    described = Description(
        element,
        is_native,
        rows,
        columns,
        samples,
        photometric,
        allocated,
        stored,
        high_bit,
        signed == 1,
        planar == 1,
        frames,
    )
    return _check_length(described, source) if is_native else described


def _floating(element: Element, rows: int, columns: int, frames: int, allocated: int) -> Description:
    return Description(element, True, rows, columns, 1, "FLOAT", allocated, allocated, 0, True, False, frames)


def _check_length(described: Description, source: Source) -> Description:
    """Uncompressed pixels must fill Pixel Data, but for padding (PS3.5 section 8.1.1).

    Anything but zeros behind the last frame could be a picture that we do not look at and another reader does.
    """
    expected = (described.bits_per_frame * described.frames + 7) // 8
    element = described.element
    full = described.samples_per_frame * described.frames
    if described.is_subsampled and element.length in {full, full + full % 2}:
        # Declared subsampled and written in full: seen from several vendors.
        return replace(described, photometric="YBR_FULL")
    if element.length < expected:
        raise truncated(
            f"Pixel Data has {element.length} bytes; {described.frames} frames of this size take {expected}."
        )
    spare = element.length - expected
    start = element.value + expected
    if spare > 1 and (spare * 8 >= described.bits_per_frame or any(source.data[start : start + spare])):
        raise undecodable(f"Pixel Data has {spare} bytes more than {described.frames} frames of this size take.")
    return described


class _Numbers:
    """Numbers of group 0028, read from the bytes and not through a parser that guesses."""

    def __init__(self, source: Source, outline: Outline) -> None:
        self._data = source.data
        self._order = "<" if outline.encoding.little else ">"
        self._elements = outline.elements

    def us(self, tag: int, default: int | None = None) -> int:
        """One unsigned short. A VR of four bytes where two belong has been used to overflow readers: refused."""
        element = self._elements.get(tag)
        if element is None:
            if default is None:
                raise undecodable(f"{name(tag)} is missing.")
            return default
        if element.vr not in {"", "US"} or element.length != 2:
            raise undecodable(
                f"{name(tag)} should be one unsigned short, but has VR {element.vr!r}, {element.length} bytes."
            )
        return int(struct.unpack_from(self._order + "H", self._data, element.value)[0])

    def text(self, tag: int) -> str:
        """A short string of ASCII characters."""
        element = self._elements.get(tag)
        if element is None:
            raise undecodable(f"{name(tag)} is missing.")
        if not 0 <= element.length <= 64:
            raise undecodable(f"{name(tag)} has {element.length} bytes.")
        raw = bytes(self._data[element.value : element.value + element.length])
        return raw.strip(b" \0").decode("ascii", "replace")

    def frames(self) -> int:
        """Number of Frames, 1 where it is missing or empty."""
        if _FRAMES not in self._elements:
            return 1
        text = self.text(_FRAMES)
        try:
            return int(text) if text else 1
        except ValueError as error:
            raise _not_a_number() from error


def _not_a_number() -> RefusalError:
    return undecodable("Number of Frames is no whole number.")
