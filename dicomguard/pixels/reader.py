"""From an encoded data set to its `Header` and its `Image`s. Pure: bytes in, values out, no files and no processes.

The structure is walked and checked first, then pydicom parses the few top-level elements that matter, cut out of the
data set, and nothing else. Run on untrusted input only inside the sandbox.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydicom import config, dcmwrite
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from dicomguard.pixels import codecs, encapsulated, presentation, source
from dicomguard.pixels.description import Description, describe
from dicomguard.pixels.header import Header
from dicomguard.pixels.image import Image
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.refusal import RefusalError, undecodable, unparsable
from dicomguard.pixels.source import Source
from dicomguard.pixels.structure import PER_FRAME, PIXEL_DATA, Buffer, Encoding, Outline, is_sequence, scan
from dicomguard.study import Uid

_DEFAULT_LIMITS: Final = Limits()
_CHARACTER_SET: Final = 0x00080005
_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES, _PATIENT_ID = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00100020
_SHARED: Final = 0x52009229
_PALETTES: Final = frozenset((0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222, 0x00281223))
# What the pipeline of presentation.py looks at, besides the palettes.
_PIPELINE: Final = frozenset((0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056, 0x00283000, 0x00283010))
_DESCRIPTORS: Final = frozenset((0x00281101, 0x00281102, 0x00281103))
_IMAGE_CLASSES: Final = frozenset(
    uid for uid, entry in UID_dictionary.items() if entry[1] == "SOP Class" and "ImageStorage" in entry[4]
)
_PROVIDER_URL: Final = 0x00287FE0


@dataclass(frozen=True, slots=True)
class Opened:
    """A data set whose structure was walked and whose pixel description holds. `described` is None for non-images."""

    source: Source
    outline: Outline
    described: Description | None


def open_data_set(data: Buffer, data_offset: int, transfer_syntax_uid: str, limits: Limits) -> Opened:
    """Hash, inflate, walk and check. Raises RefusalError; an image SOP class without pixels is UNDECODABLE."""
    loaded = source.load(data, data_offset, transfer_syntax_uid, limits)
    outline = scan(loaded.data, loaded.start, loaded.stop, Encoding.of(transfer_syntax_uid), limits)
    if not outline.elements:
        raise unparsable("The data set holds no element.")
    opened = Opened(loaded, outline, describe(loaded, outline, limits))
    if opened.described is None:
        if _uid(opened, _SOP_CLASS) in _IMAGE_CLASSES:
            raise undecodable("The SOP class is an image's, but there is no Pixel Data.")
        if _PROVIDER_URL in outline.elements:
            raise undecodable("The pixels lie elsewhere (Pixel Data Provider URL); nothing is fetched.")
    elif not opened.described.is_native:
        encapsulated.frame_spans(loaded, outline, opened.described.frames)
    return opened


def header(opened: Opened, keywords: Sequence[str], limits: Limits) -> Header:
    """Identity and the attributes asked for. What cannot be read as text is left out of `attributes`."""
    tags = {keyword: tag_for_keyword(keyword) for keyword in keywords}
    # Sequences have no text, and parsing a large one is what a bomb would like us to do.
    flat = frozenset(tag for tag in tags.values() if tag is not None and not is_sequence(opened.outline, tag))
    parsed = _parse(opened, flat | {_PATIENT_ID}, limits)
    attributes = {}
    for keyword, tag in tags.items():
        value = None if tag is None else _text(parsed, tag)
        if value is not None:
            attributes[keyword] = value
    patient_id = _text(parsed, _PATIENT_ID)
    described = opened.described
    return Header(
        sop_class_uid=_uid(opened, _SOP_CLASS),
        sop_instance_uid=_uid(opened, _SOP_INSTANCE),
        study_instance_uid=_uid(opened, _STUDY),
        series_instance_uid=_uid(opened, _SERIES),
        transfer_syntax_uid=Uid(opened.source.transfer_syntax_uid),
        patient_id=patient_id if isinstance(patient_id, str) else "",
        attributes=attributes,
        is_image=described is not None,
        frames=0 if described is None else described.frames,
        rows=0 if described is None else described.rows,
        columns=0 if described is None else described.columns,
        samples=0 if described is None else described.samples,
        bits_stored=0 if described is None else described.bits_stored,
        photometric_interpretation="" if described is None else described.photometric,
        sha256=opened.source.sha256,
        size_bytes=opened.source.size,
    )


def frames(opened: Opened, start: int, count: int, limits: Limits) -> Iterator[Image]:
    """Images of frames `start` (from 0) to `start + count`, as far as there are any, decoded one at a time.

    Raises RefusalError (before the first frame where it can be known then).
    """
    described = opened.described
    if described is None:
        raise undecodable("There is no Pixel Data.")
    if described.element.tag != PIXEL_DATA:
        raise undecodable("The pixels are floating point numbers (7FE0,0008 or 0009), which no bundle is made for.")
    uid = opened.source.transfer_syntax_uid
    spans = []
    if not described.is_native:
        codecs.check_available(uid)
        spans = encapsulated.frame_spans(opened.source, opened.outline, described.frames)
    parsed = _parse(opened, _PIPELINE | _DESCRIPTORS | _PALETTES | {_SHARED}, limits)
    for frame in range(start, min(start + count, described.frames)):
        applied = _pipeline(opened, parsed, frame)
        if described.is_native:
            start_bit = described.element.value * 8 + frame * described.bits_per_frame
            samples = codecs.native(opened.source.data, start_bit, described, little=opened.outline.encoding.little)
            colour: codecs.Colour = ""
        else:
            samples, colour = codecs.decode(encapsulated.frame_bytes(opened.source, spans[frame]), described, uid)
        yield presentation.present(samples, colour, described, applied, header=parsed, frame=frame)


def _pipeline(opened: Opened, parsed: Dataset, frame: int) -> presentation.Pipeline:
    assert opened.described is not None
    try:
        group = _frame_group(opened, frame)
        return presentation.pipeline(parsed, group, opened.described, little=opened.outline.encoding.little)
    except (ValueError, TypeError, AttributeError, NotImplementedError, OverflowError, KeyError) as error:
        # pydicom converts a value when it is looked at, and knows many ways to fail.
        raise undecodable("The header's rescale, window or lookup tables cannot be read.") from error


def images(dataset: Dataset, limits: Limits = _DEFAULT_LIMITS) -> list[Image]:
    """All frames of a data set in memory, through the very path that a received file takes.

    For data sets of our own making (phantoms, forged images, tests): no sandbox. `dataset.file_meta` must name the
    transfer syntax. Raises RefusalError.
    """
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    data = buffer.getvalue()
    opened = open_data_set(data, *source.locate(data), limits)
    return list(frames(opened, 0, limits.max_frames, limits))


def _uid(opened: Opened, tag: int) -> Uid:
    """A UID straight from the bytes; "" where it is missing, longer than 128 bytes or no ASCII."""
    element = opened.outline.elements.get(tag)
    if element is None or not 0 < element.length <= 128:
        return Uid("")
    raw = bytes(opened.source.data[element.value : element.value + element.length])
    text = raw.rstrip(b"\0 ").decode("ascii", "replace")
    return Uid(text if text.isascii() and text.isprintable() else "")


def _parse(opened: Opened, wanted: frozenset[int], limits: Limits) -> Dataset:
    """Let pydicom parse the wanted top-level elements, and the character set that they are written in."""
    elements = opened.outline.elements
    chosen = sorted((wanted | {_CHARACTER_SET}) & elements.keys())
    data = opened.source.data
    spans = [(elements[tag].start, elements[tag].end) for tag in chosen]
    kept = [bytes(data[start:end]) for start, end in spans if end - start <= limits.max_value_bytes]
    encoding = opened.outline.encoding
    parsed = _read(b"".join(kept), encoding)
    if not encoding.little:
        _swap_tables(parsed)
    parsed.set_original_encoding(encoding.implicit, True, None)
    return parsed


def _read(raw: bytes, encoding: Encoding) -> Dataset:
    if not raw:
        return Dataset()
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_dataset(io.BytesIO(raw), encoding.implicit, encoding.little, bytelength=len(raw))
    except RecursionError as error:
        raise unparsable("Sequences are nested too deep.") from error
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, NotImplementedError) as error:
        raise unparsable("Elements of the header cannot be parsed.") from error


def _swap_tables(parsed: Dataset) -> None:
    """Words of a big endian palette, turned round: pydicom hands them over as they are stored."""
    for tag in _PALETTES & {int(t) for t in parsed.keys()}:  # noqa: SIM118 - iterating a Dataset parses its elements
        value = parsed[tag].value
        if isinstance(value, bytes):
            parsed[tag].value = codecs.swap_words(value)


def _frame_group(opened: Opened, frame: int) -> Dataset | None:
    """The item of one frame in the Per-Frame Functional Groups Sequence (PS3.3 C.7.6.16)."""
    if PER_FRAME not in opened.outline.elements:
        return None
    items = opened.outline.frame_items
    if frame >= len(items):
        raise undecodable(f"There are functional groups for {len(items)} frames, and frame {frame + 1} has none.")
    start, end = items[frame]
    return _read(bytes(opened.source.data[start:end]), opened.outline.encoding)


def _text(parsed: Dataset, tag: int) -> str | list[str] | None:
    """A value as text; None where it is missing, empty, a sequence, binary, or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value: Any = parsed[tag].value if tag in parsed else None
            if value is None or isinstance(value, bytes) or (isinstance(value, Sequence) and not _is_texts(value)):
                return None
            if isinstance(value, (MultiValue, list, tuple)):
                return [str(one).strip() for one in value]
            return str(value).strip()
    except Exception:  # noqa: BLE001 - pydicom raises anything here; one odd value must not hide all the others
        return None


def _is_texts(value: Sequence[Any]) -> bool:
    return isinstance(value, (str, UID)) or not any(isinstance(one, Dataset) for one in value)


__all__ = ["Opened", "RefusalError", "frames", "header", "images", "open_data_set"]
