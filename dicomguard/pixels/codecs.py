"""One frame's bytes to integer samples, by permissive codecs only: libjpeg-turbo 3, CharLS, OpenJPEG, zlib.

All compressed forms go through imagecodecs, so one library of decoders is to be kept current. What only a GPL codec
decodes is a named fault, unless the site installed that codec. Runs in the decoding process, never in the screener.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, RLELossless

from dicomguard.pixels import codestream
from dicomguard.pixels.codestream import Codestream
from dicomguard.pixels.description import Description
from dicomguard.pixels.refusal import RefusalError, codec_missing, truncated, undecodable
from dicomguard.pixels.source import inflate

# Integers of whatever width the codec returns.
Samples = NDArray[Any]
Colour = Literal["", "RGB", "YBR_FULL"]

_DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"
_JPEG_ROOT: Final = "1.2.840.10008.1.2.4."
# PS3.6 Table A-1: .50 to .66 and .70 JPEG, .80 and .81 JPEG-LS, .90 to .93 and .201 to .203 JPEG 2000.
_FAMILIES: Final[dict[str, codestream.Family]] = {
    **{f"{_JPEG_ROOT}{n}": "jpeg" for n in (*range(50, 67), 70)},
    **{f"{_JPEG_ROOT}{n}": "jpeg-ls" for n in (80, 81)},
    **{f"{_JPEG_ROOT}{n}": "jpeg2000" for n in (90, 91, 92, 93, 201, 202, 203)},
}
_LOSSLESS: Final = frozenset(f"{_JPEG_ROOT}{n}" for n in (57, 70, 80, 90, 92, 201, 202))
# Processes that libjpeg-turbo 3 decodes: baseline, extended, progressive and lossless, Huffman or arithmetic coded.
_TURBO_PROCESSES: Final = frozenset((0, 1, 2, 3, 9, 10))
# Of the range of Bits Stored.
_OVERSHOOT: Final = 0.02
_GPL_ADVICE: Final = "Only the GPL codec decodes it: pip install 'dicomguard[gpl-jpeg]'."


def check_available(transfer_syntax_uid: str) -> None:
    """Raises RefusalError (CODEC_MISSING) for transfer syntaxes that nothing decodes: video, JPIP, unknown ones."""
    if transfer_syntax_uid in _FAMILIES or transfer_syntax_uid in {str(RLELossless), _DEFLATED_FRAMES}:
        return
    uid = UID(transfer_syntax_uid)
    label = uid.name if uid.name != transfer_syntax_uid else "an unknown transfer syntax"
    kind = "Video is not decoded" if any(word in label for word in ("MPEG", "HEVC")) else "No codec decodes this"
    raise codec_missing(f"{kind}: {label} ({transfer_syntax_uid[:64]}).")


def decode(frame: bytes, described: Description, transfer_syntax_uid: str) -> tuple[Samples, Colour]:
    """Samples of shape (rows, columns, samples) as Pixel Representation says, and the colour space they came out in.

    Raises RefusalError where the codestream is damaged, or is not what the data set's header announced.
    """
    if transfer_syntax_uid == RLELossless:
        return _used(_rle(frame, described), described), ""
    if transfer_syntax_uid == _DEFLATED_FRAMES:
        bound = (described.bits_per_frame + 7) // 8
        return native(inflate(frame, bound + 2), 0, described, little=True), ""
    check_available(transfer_syntax_uid)
    stream = codestream.read(frame)
    _expect(stream, described, _FAMILIES[transfer_syntax_uid])
    match stream.family:
        case "jpeg":
            samples, colour = _jpeg(frame, stream, described)
        case "jpeg-ls":
            samples, colour = _with("jpegls_decode", frame), ""
        case "jpeg2000":
            samples = _with("jpeg2k_decode", frame)
            colour = "RGB" if stream.has_transform or described.photometric in {"YBR_ICT", "YBR_RCT"} else ""
    shape = (described.rows, described.columns, described.samples)
    if samples.dtype.kind not in "iu" or samples.size != np.prod(shape):
        raise undecodable("The decoder returned another picture than the codestream's header announced.")
    samples = samples.reshape(shape)
    is_lossless = transfer_syntax_uid in _LOSSLESS
    if stream.is_signed or not (is_lossless or described.is_signed):
        return _within(samples, described, is_lossless=is_lossless), colour
    depth = min(stream.precision, described.bits_stored)
    _check_unused(samples, described, depth - 1, stream.precision)
    return _sign(samples, described, depth), colour


def _expect(stream: Codestream, described: Description, family: codestream.Family) -> None:
    if stream.family != family:
        raise undecodable(f"Pixel Data holds {stream.family}, the transfer syntax says {family}.")
    if (stream.rows, stream.columns) != (described.rows, described.columns):
        raise undecodable(
            f"The codestream is {stream.rows} x {stream.columns}, "
            f"the header says {described.rows} x {described.columns}."
        )
    if stream.components != described.samples:
        raise undecodable(f"The codestream has {stream.components} components, the header {described.samples}.")
    if stream.precision > max(described.bits_allocated, 8):
        raise undecodable(
            f"The codestream has {stream.precision} bits a sample, Bits Allocated is {described.bits_allocated}."
        )
    if stream.is_signed and not described.is_signed:
        raise undecodable("The samples of the codestream are signed; Pixel Representation says that they are not.")


def _with(function: str, frame: bytes, **options: Any) -> Samples:
    import imagecodecs  # noqa: PLC0415 - loads one shared library per codec, on first use

    decoder: Callable[..., Samples] = getattr(imagecodecs, function)
    try:
        return decoder(frame, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise undecodable(f"The decoder gave up: {_safe(error)}") from error


def _safe(error: Exception) -> str:
    """A codec's complaint on one short line; codecs speak of markers and lengths, not of patients."""
    text = " ".join(str(error).split())
    return "".join(c for c in text if c.isascii() and c.isprintable())[:120] or type(error).__name__


def _jpeg(frame: bytes, stream: Codestream, described: Description) -> tuple[Samples, Colour]:
    """In the codestream's own colour space: the transform to RGB is ours, and the same for every codec."""
    colour: Colour = ""
    space = "GRAYSCALE"
    if stream.components == 3:
        is_ybr = stream.colour == "YBR" or (not stream.colour and described.photometric != "RGB")
        colour, space = ("YBR_FULL", "YCBCR") if is_ybr else ("RGB", "RGB")
    is_turbo = stream.process in _TURBO_PROCESSES and (stream.process == 3 or stream.precision in {8, 12})
    if is_turbo:
        return _with("jpeg8_decode", frame, colorspace=space, outcolorspace=space), colour
    if importlib.util.find_spec("libjpeg") is None:
        raise codec_missing(f"JPEG process SOF{stream.process}, {stream.precision} bits. {_GPL_ADVICE}")
    decoder = importlib.import_module("libjpeg").decode
    try:
        decoded: Samples = decoder(frame)
    except (RuntimeError, ValueError, TypeError) as error:
        raise undecodable(f"The decoder gave up: {_safe(error)}") from error
    return decoded, colour


def _rle(frame: bytes, described: Description) -> Samples:
    """RLE Lossless (PS3.5 Annex G): one segment for each byte of each sample, most significant first."""
    sample_bytes = max(described.bits_allocated // 8, 1)
    segments = described.samples * sample_bytes
    if len(frame) < 64:
        raise truncated("An RLE frame ends inside its header.")
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != segments:
        raise undecodable(f"An RLE frame has {count} segments; its description needs {segments}.")
    used = offsets[:segments]
    if used[0] != 64 or any(b <= a for a, b in zip(used, [*used[1:], len(frame)], strict=True)):
        raise undecodable("The segment offsets of an RLE frame are out of order.")
    plane = described.rows * described.columns
    if described.bits_allocated == 1:
        packed = _rle_bytes(frame, 1, (plane + 7) // 8)
        return np.unpackbits(np.frombuffer(packed, np.uint8), count=plane, bitorder="little").reshape(
            described.rows, described.columns, 1
        )
    decoded = _rle_bytes(frame, sample_bytes, plane * described.samples * sample_bytes)
    samples = np.frombuffer(decoded, dtype=f"<u{sample_bytes}")
    return np.moveaxis(samples.reshape(described.samples, described.rows, described.columns), 0, -1)


def _rle_bytes(frame: bytes, sample_bytes: int, expected: int) -> bytes:
    import imagecodecs  # noqa: PLC0415 - as above

    try:
        decoded = bytes(imagecodecs.dicomrle_decode(frame, np.dtype(f"<u{sample_bytes}")))
    except (RuntimeError, ValueError, TypeError) as error:
        raise undecodable(f"The RLE decoder gave up: {_safe(error)}") from error
    if len(decoded) < expected:
        raise truncated(f"An RLE frame holds {len(decoded)} bytes; its description needs {expected}.")
    return decoded[:expected]


def _used(samples: Samples, described: Description) -> Samples:
    """The Bits Stored below High Bit of whole samples, with their sign. Raises RefusalError: see `_check_unused`."""
    if described.bits_stored < described.bits_allocated:
        _check_unused(samples, described, described.high_bit, described.bits_allocated)
    shift = described.high_bit + 1 - described.bits_stored
    return _sign(samples >> shift if shift else samples, described, described.bits_stored)


def _check_unused(samples: Samples, described: Description, high_bit: int, width: int) -> None:
    """Refuse samples of `width` bits whose unused bits say something.

    Above High Bit every sample must have zeros, or every sample its sign; below the bits stored, zeros. An overlay in
    there (retired in PS3.5-2004) or anything else is a picture of its own to a reader that does not mask it: what is
    judged and what the AI computes from would be two.
    """
    below = max(high_bit + 1 - described.bits_stored, 0)
    seen = int(np.bitwise_or.reduce(samples, axis=None))
    is_clear = seen >> (high_bit + 1) == 0
    if not is_clear and described.is_signed:
        ones = (1 << (width - high_bit - 1)) - 1
        above, sign = samples >> (high_bit + 1), (samples >> high_bit) & 1
        is_clear = bool(np.array_equal(above, sign * samples.dtype.type(ones)))
    if not is_clear or seen & ((1 << below) - 1):
        raise undecodable(
            f"Bits outside of the {described.bits_stored} Bits Stored are set, by an overlay or by something else; "
            "a reader that does not mask them sees another picture."
        )


def _sign(samples: Samples, described: Description, depth: int) -> Samples:
    """Drop what is not Bits Stored and give the sign back where the codec knew none."""
    if described.is_signed:
        spare = 32 - depth
        return (samples.astype(np.int32) << spare) >> spare
    if samples.dtype.kind == "u" and samples.dtype.itemsize * 8 == described.bits_stored:
        return samples
    return samples & ((1 << described.bits_stored) - 1)


def _within(samples: Samples, described: Description, *, is_lossless: bool) -> Samples:
    """Samples of a codec that knows their sign, within the range of Bits Stored.

    A lossy codec may overshoot the range by a little; its bits must not wrap around to black. By more, or without
    loss: another reader does not cut the range off there, and sees what we would not.
    """
    lowest = -(1 << (described.bits_stored - 1)) if described.is_signed else 0
    highest = lowest + (1 << described.bits_stored) - 1
    slack = 0 if is_lossless else int(_OVERSHOOT * (highest - lowest))
    least, most = int(samples.min()), int(samples.max())
    if least < lowest - slack or most > highest + slack:
        raise undecodable(
            f"The codestream has samples from {least} to {most}, far outside of the {described.bits_stored} Bits "
            "Stored; a reader that does not cut them off sees another picture."
        )
    # Only where need be: the bounds do not fit every type of samples.
    return samples if lowest <= least and most <= highest else np.clip(samples, lowest, highest)


def native(data: Any, start_bit: int, described: Description, *, little: bool) -> Samples:
    """Samples of one uncompressed frame that begins `start_bit` bits into `data` (PS3.5 section 8.1.1)."""
    rows, columns, samples = described.rows, described.columns, described.samples
    total = rows * columns * samples
    if described.bits_allocated == 1:
        first, last = start_bit // 8, (start_bit + total + 7) // 8
        bits = np.unpackbits(np.frombuffer(bytes(data[first:last]), np.uint8), bitorder="little")
        if len(bits) < start_bit % 8 + total:
            raise truncated("A frame of Pixel Data breaks off.")
        return bits[start_bit % 8 : start_bit % 8 + total].reshape(rows, columns, samples)
    item = described.bits_allocated // 8
    first, last = start_bit // 8, (start_bit + described.bits_per_frame) // 8
    if item == 1 and not little and described.element.vr == "OW":
        # Bytes stored as big endian words stand in pairs the wrong way round, across the borders of frames too.
        odd = (first - described.element.value) % 2
        raw = swap_words(bytes(data[first - odd : last + (last - first + odd) % 2]))[odd : odd + last - first]
    else:
        raw = bytes(data[first:last])
    if len(raw) * 8 < described.bits_per_frame:
        raise truncated("A frame of Pixel Data breaks off.")
    values = np.frombuffer(raw, dtype=f"{'<' if little else '>'}u{item}")
    if described.is_subsampled:
        values = _upsampled(values, rows, columns)
    elif described.is_planar:
        values = np.moveaxis(values.reshape(samples, rows, columns), 0, -1)
    else:
        values = values.reshape(rows, columns, samples)
    return _used(values, described)


def swap_words(raw: bytes) -> bytes:
    """Every two bytes exchanged; an odd byte at the end is kept as it is."""
    even = len(raw) - len(raw) % 2
    return np.frombuffer(raw[:even], np.uint8).reshape(-1, 2)[:, ::-1].tobytes() + raw[even:]


def _upsampled(values: Samples, rows: int, columns: int) -> Samples:
    """Y1 Y2 Cb Cr for each pair of pixels to Y Cb Cr for each pixel (PS3.3 C.7.6.3.1.2, YBR_FULL_422)."""
    if columns % 2:
        raise undecodable("YBR_FULL_422 needs an even number of columns.")
    pairs = values.reshape(rows, columns // 2, 4)
    full = np.empty((rows, columns // 2, 2, 3), dtype=values.dtype)
    full[..., 0] = pairs[..., :2]
    full[..., 1:] = pairs[..., None, 2:]
    return full.reshape(rows, columns, 3)


__all__ = ["Colour", "RefusalError", "Samples", "check_available", "decode", "native", "swap_words"]
