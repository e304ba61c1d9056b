"""Stored values to presentation values in 0..1: the grayscale and colour pipelines of DICOM.

Modality LUT or rescale (PS3.3 C.11.1), VOI LUT (C.11.2: the first window, or else the first table), MONOCHROME1 and YBR
to RGB (C.7.6.3.1.2), palettes (C.7.6.3.1.5, C.7.9). Where a data set has both a window and a VOI table, the window is
taken: it is what viewers show first, and its way back to stored values is affine. Nothing depends on the picture's own
minimum and maximum, which an attacker moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from dicomguard.pixels.codecs import Colour, Samples
from dicomguard.pixels.description import Description
from dicomguard.pixels.image import Image, StoredMapping
from dicomguard.pixels.miniature import Miniature, averaged
from dicomguard.pixels.refusal import undecodable

Float = NDArray[np.float32]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

# ITU-R BT.601, the luminance of PS3.3 C.7.6.3.1.2 (YBR_FULL).
LUMINANCE: Final = np.array([0.299, 0.587, 0.114])

_FUNCTIONS: Final[dict[str, Function]] = {
    "": "LINEAR",
    "LINEAR": "LINEAR",
    "LINEAR_EXACT": "LINEAR_EXACT",
    "SIGMOID": "SIGMOID",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup table: input `first` and below give entry 0, inputs behind the last entry the last one (C.11.1.1.1)."""

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """Entries for `values`, rounded to whole inputs."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[index], dtype=np.uint16)


@dataclass(frozen=True, slots=True)
class Window:
    """One VOI window: centre and width in modality units, and its function (C.11.2.1.2, C.11.2.1.3)."""

    centre: float
    width: float
    function: Function


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What the header says about one frame: rescale or modality table, then window or VOI table."""

    slope: float = 1.0
    intercept: float = 0.0
    modality_table: Table | None = None
    window: Window | None = None
    voi_table: Table | None = None


def pipeline(header: Dataset, frame_group: Dataset | None, described: Description, *, little: bool) -> Pipeline:
    """The pipeline of one frame. Functional groups (per frame, then shared) come before the top level (C.7.6.16).

    `header` holds the top-level elements of interest, `frame_group` this frame's item of the Per-Frame Functional
    Groups Sequence. Raises RefusalError (UNDECODABLE) for tables and numbers that cannot be used.
    """
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = [group for group in (frame_group, shared) if group is not None]
    rescale = _macro(groups, "PixelValueTransformationSequence") or header
    voi = _macro(groups, "FrameVOILUTSequence") or header
    slope, intercept = _number(rescale, "RescaleSlope", 1.0), _number(rescale, "RescaleIntercept", 0.0)
    if slope == 0.0:
        raise undecodable("Rescale Slope is 0, which makes every picture flat.")
    modality = _first(header, "ModalityLUTSequence")
    modality_table = None if modality is None else _table(modality, described, little=little)
    has_negative = described.is_signed or (modality_table is None and intercept < 0)
    window = _window(voi)
    table = None
    if window is None:
        item = _first(voi, "VOILUTSequence")
        table = None if item is None else _table(item, described, little=little, signed=has_negative)
    return Pipeline(slope, intercept, modality_table, window, table)


def present(
    samples: Samples, colour: Colour, described: Description, applied: Pipeline, *, header: Dataset, frame: int
) -> Image:
    """Samples of shape (rows, columns, samples) to an `Image`.

    `header` carries the palette. Raises RefusalError (UNDECODABLE) where it cannot be used.
    """
    if described.photometric == "PALETTE COLOR":
        # No miniature: a palette may send two neighbouring stored values to black and white, so that no budget on
        # stored values bounds what it shows.
        pixels, voi, mapping, miniature = _palette(samples[..., 0], header), "palette", None, None
    elif described.samples == 3:
        pixels, mapping = _colour(samples, colour, described)
        voi, miniature = "none", _luminance(samples, colour, described)
    else:
        pixels, voi, mapping = _grey(samples[..., 0], described, applied)
        miniature = _miniature(samples[..., 0], described, applied)
    pixels = np.ascontiguousarray(pixels)
    return Image(pixels, frame, described.bits_stored, described.photometric, voi, mapping, miniature)


def _miniature(stored: Samples, described: Description, applied: Pipeline) -> Miniature:
    """Rescaled, not windowed. A modality table has no fixed slope, so behind one the stored values are taken."""
    has_table = applied.modality_table is not None
    slope, intercept = (1.0, 0.0) if has_table else (applied.slope, applied.intercept)
    low, high = sorted(value * slope + intercept for value in stored_range(described))
    values = averaged(stored) * slope + intercept
    if described.photometric == "MONOCHROME1":
        values = low + high - values
    return Miniature(values, low, high, has_table)


def _luminance(samples: Samples, colour: Colour, described: Description) -> Miniature:
    """A weighted mean of the samples as they were decoded: of YBR the Y alone, since its way to RGB has gains over 1.

    Values are a share of what Bits Stored can hold, without clipping.
    """
    top = (1 << described.bits_stored) - 1
    if _is_ybr(colour, described):
        return Miniature(averaged(samples[..., 0]) / top, 0.0, 1.0)
    planes = np.stack([averaged(samples[..., plane]) for plane in range(3)])
    return Miniature(np.tensordot(LUMINANCE, planes, 1) / top, 0.0, 1.0)


def _is_ybr(colour: Colour, described: Description) -> bool:
    """True where the decoded samples still are YBR: what the codestream says comes before the header."""
    return colour == "YBR_FULL" or (not colour and described.photometric in {"YBR_FULL", "YBR_FULL_422"})


def _grey(stored: Samples, described: Description, applied: Pipeline) -> tuple[Float, str, StoredMapping | None]:
    low, high = stored_range(described)
    mapping, voi = _affine(low, high, applied)
    inverts = described.photometric == "MONOCHROME1"
    if mapping is not None:
        if inverts:
            mapping = replace(mapping, scale=-mapping.scale, offset=mapping.offset + 1.0 / mapping.scale)
        pixels: NDArray[Any] = stored.astype(np.float64 if described.bits_stored > 16 else np.float32)
        pixels -= mapping.offset
        pixels *= mapping.scale
        return _unit(pixels), voi, mapping
    values = stored.astype(np.float64)
    if applied.modality_table is not None:
        values = applied.modality_table(stored).astype(np.float64)
        bottom, top = 0.0, float((1 << applied.modality_table.bits) - 1)
    else:
        values = values * applied.slope + applied.intercept
        ends = sorted((low * applied.slope + applied.intercept, high * applied.slope + applied.intercept))
        bottom, top = ends[0], ends[1]
    if applied.voi_table is not None:
        values = applied.voi_table(values).astype(np.float64) / ((1 << applied.voi_table.bits) - 1)
    elif applied.window is not None:
        values = windowed(values, applied.window)
    else:
        values = (values - bottom) / (top - bottom)
    return _unit(1.0 - values if inverts else values), voi, None


def stored_range(described: Description) -> tuple[int, int]:
    """The smallest and the largest value that Bits Stored and Pixel Representation allow."""
    if described.is_signed:
        return -(1 << (described.bits_stored - 1)), (1 << (described.bits_stored - 1)) - 1
    return 0, (1 << described.bits_stored) - 1


def _affine(low: int, high: int, applied: Pipeline) -> tuple[StoredMapping | None, str]:
    """Stored -> presentation as one affine map, where it is one; and what was applied, in words."""
    slope, intercept, window = applied.slope, applied.intercept, applied.window
    if applied.voi_table is not None:
        return None, "VOI LUT"
    if window is not None:
        words = f"{window.function} {window.centre:g}/{window.width:g}"
        is_step = window.function == "SIGMOID" or (window.function == "LINEAR" and window.width <= 1)
        if applied.modality_table is not None or is_step:
            return None, words
        scale, bottom = 1.0 / window.width, window.centre - window.width / 2
        if window.function == "LINEAR":
            scale, bottom = 1.0 / (window.width - 1), window.centre - 0.5 - (window.width - 1) / 2
        return StoredMapping(scale * slope, (bottom - intercept) / slope, low, high), words
    if applied.modality_table is not None:
        return None, "none"
    # The whole range of Bits Stored; a negative slope turns it round.
    scale = 1.0 / (high - low) if high > low else 1.0
    return StoredMapping(scale if slope > 0 else -scale, float(low if slope > 0 else high), low, high), "none"


def windowed(values: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Modality values through a window, 0..1 (PS3.3 C.11.2.1.2.1 LINEAR, C.11.2.1.3.1 SIGMOID, C.11.2.1.3.2 EXACT)."""
    centre, width = window.centre, window.width
    match window.function:
        case "SIGMOID":
            return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0))))
        case "LINEAR_EXACT":
            return np.asarray((values - centre) / width + 0.5)
        case "LINEAR":
            if width <= 1:
                return np.where(values <= centre - 0.5, 0.0, 1.0)
            return np.asarray((values - (centre - 0.5)) / (width - 1) + 0.5)


def _colour(samples: Samples, colour: Colour, described: Description) -> tuple[Float, StoredMapping | None]:
    top = (1 << described.bits_stored) - 1
    precision: type[np.floating[Any]] = np.float64 if described.bits_stored > 16 else np.float32
    planes: NDArray[Any] = np.moveaxis(samples, -1, 0).astype(precision) * (1.0 / top)
    if not _is_ybr(colour, described):
        return _unit(planes), StoredMapping(1.0 / top, 0.0, 0, top) if described.photometric == "RGB" else None
    middle = np.float32((1 << (described.bits_stored - 1)) / top)
    y, blue, red = planes[0], planes[1] - middle, planes[2] - middle
    rgb = np.stack((y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue))
    return _unit(rgb), None


def _palette(stored: Samples, header: Dataset) -> Float:
    try:
        bits = header["RedPaletteColorLookupTableDescriptor"].value[2]
        coloured = apply_color_lut(stored, header)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise undecodable("The palette of a PALETTE COLOR image cannot be used.") from error
    # Tables of 8 bits are often written into 16 (C.7.6.3.1.6): then either byte may carry them.
    top = 255.0 if coloured.dtype == np.uint8 or (bits == 8 and coloured.max(initial=0) <= 255) else 65535.0
    return _unit(np.moveaxis(coloured[..., :3], -1, 0).astype(np.float32) / top)


def _unit(values: NDArray[Any]) -> Float:
    """Clip to 0..1 and shape (C, H, W)."""
    clipped = np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)
    return clipped if clipped.ndim == 3 else clipped[None]


def _first(holder: Dataset, keyword: str) -> Dataset | None:
    sequence = holder.get(keyword)
    return sequence[0] if sequence else None


def _macro(groups: list[Dataset], keyword: str) -> Dataset | None:
    found = (_first(group, keyword) for group in groups)
    return next((item for item in found if item is not None), None)


def _number(holder: Dataset, keyword: str, default: float | None) -> Any:
    """The first value of a decimal string as float; `default` where it is missing or empty."""
    try:
        value = holder.get(keyword)
        if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
            value = value[0] if len(value) else None
        number = default if value is None or value == "" else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise undecodable(f"{keyword} is no number.") from error
    if number is not None and not np.isfinite(number):
        raise undecodable(f"{keyword} is not finite.")
    return number


def _window(holder: Dataset) -> Window | None:
    centre, width = _number(holder, "WindowCenter", None), _number(holder, "WindowWidth", None)
    if centre is None or width is None:
        return None
    name = str(holder.get("VOILUTFunction") or "").strip()
    if name not in _FUNCTIONS:
        raise undecodable("VOI LUT Function is none of LINEAR, LINEAR_EXACT and SIGMOID.")
    function = _FUNCTIONS[name]
    if (function == "LINEAR" and width < 1) or width <= 0:
        raise undecodable(f"Window Width {width:g} is not possible with {function}.")
    return Window(centre, width, function)


def _whole(data: Any) -> NDArray[Any]:
    """LUT Data of VR US as numbers. Raises RefusalError where they are none."""
    try:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64))
    except (TypeError, ValueError, OverflowError) as error:
        raise undecodable("A lookup table has entries that are no numbers.") from error
    if entries.size and (entries.min() < 0 or entries.max() > 65535):
        raise undecodable("A lookup table has entries that are no 16-bit numbers.")
    return entries


def _table(item: Dataset, described: Description, *, little: bool, signed: bool | None = None) -> Table:
    """LUT Descriptor and LUT Data of a sequence item (PS3.3 C.11.1.1). Raises RefusalError where they do not fit."""
    try:
        count, first, bits = (int(n) for n in item["LUTDescriptor"].value)
        data = item["LUTData"].value
    except (KeyError, TypeError, ValueError) as error:
        raise undecodable("A lookup table lacks its descriptor or its data.") from error
    count = count or 65536
    is_signed = described.is_signed if signed is None else signed
    if is_signed and first > 32767:
        first -= 65536
    elif not is_signed and first < 0:
        first += 65536
    if not 8 <= bits <= 16:
        raise undecodable(f"A lookup table has {bits} bits an entry; 8 to 16 are defined.")
    if isinstance(data, bytes):
        code = "u1" if len(data) < count * 2 else ("<u2" if little else ">u2")
        entries = np.frombuffer(data[: len(data) - len(data) % np.dtype(code).itemsize], code)
    else:
        entries = _whole(data)
    if len(entries) < count:
        raise undecodable(f"A lookup table has {len(entries)} entries; its descriptor says {count}.")
    return Table(first, np.minimum(entries[:count].astype(np.uint16), (1 << bits) - 1).astype(np.uint16), bits)
