"""The look at the head of a data set, against pydicom's encoder and against anything at all."""

import io
import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dicomguard.receive import head

EXPLICIT = "1.2.840.10008.1.2.1"
SYNTAXES = [EXPLICIT, head.IMPLICIT_LITTLE, head.EXPLICIT_BIG, head.DEFLATED, "1.2.840.10008.1.2.4.50"]
UIDS = ("1.2.840.10008.5.1.4.1.1.2", "2.25.11", "2.25.22", "2.25.33")


def reader(data):
    return lambda size, offset: data[offset : offset + size]


def encode(dataset, syntax):
    buffer = DicomBytesIO()
    buffer.is_little_endian = syntax != head.EXPLICIT_BIG
    buffer.is_implicit_VR = syntax == head.IMPLICIT_LITTLE
    write_dataset(buffer, dataset)
    data = buffer.getvalue()
    if syntax == head.DEFLATED:
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = compressor.compress(data) + compressor.flush()
    return data


def with_uids():
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UIDS
    return dataset


def nested(depth, *, undefined):
    """A referenced-image sequence within itself."""
    dataset = Dataset()
    dataset.ReferencedSOPInstanceUID = "2.25.99"
    if depth:
        item = nested(depth - 1, undefined=undefined)
        item.is_undefined_length_sequence_item = undefined
        element = DataElement("ReferencedImageSequence", "SQ", Sequence([item, Dataset()]))
        element.is_undefined_length = undefined
        dataset.add(element)
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_uids_are_found_behind_sequences_in_every_encoding(syntax, undefined):
    dataset = with_uids()
    dataset.PatientName = "X" * 64
    dataset.add(nested(4, undefined=undefined)["ReferencedImageSequence"])
    dataset.PixelData = bytes(100)
    dataset["PixelData"].VR = "OW"
    assert head.look(reader(encode(dataset, syntax)), syntax) == head.Head(*UIDS)


def test_uids_within_sequences_are_not_mistaken_for_those_of_the_instance():
    dataset = Dataset()
    item = with_uids()
    item.StudyInstanceUID = "2.25.666"
    dataset.ReferencedStudySequence = [item]
    dataset.StudyInstanceUID = "2.25.22"
    assert head.look(reader(encode(dataset, EXPLICIT)), EXPLICIT) == head.Head(study_instance_uid="2.25.22")


def test_an_unknown_element_of_undefined_length_is_walked_as_implicit():
    # Item with one implicit element whose "VR bytes" would be a length (PS3.5 section 6.2.2 note 4).
    unknown = (
        b"\x08\0\x05\x70UN\0\0\xff\xff\xff\xff"
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x08\0\x06\x70\x02\0\0\0ab" + b"\xfe\xff\x0d\xe0\0\0\0\0"
        b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    rest = Dataset()
    rest.StudyInstanceUID = "2.25.22"
    assert head.look(reader(unknown + encode(rest, EXPLICIT)), EXPLICIT).study_instance_uid == "2.25.22"


def test_a_large_value_is_skipped_not_read():
    read_bytes = 0
    dataset = with_uids()
    dataset.add_new(0x00091010, "OB", bytes(50_000_000))
    data = encode(dataset, EXPLICIT)

    def read(size, offset):
        nonlocal read_bytes
        read_bytes += size
        return data[offset : offset + size]

    assert head.look(read, EXPLICIT) == head.Head(*UIDS)
    assert read_bytes < 20_000


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_head_that_ends_too_early_is_no_success(cut):
    data = encode(with_uids(), EXPLICIT)[:-cut]
    seen = head.look(reader(data), EXPLICIT)
    assert seen.problem or not seen.series_instance_uid


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_depth_is_bounded_where_it_has_to_be_walked(undefined):
    data = encode(nested(40, undefined=undefined), EXPLICIT)
    assert bool(head.look(reader(data), EXPLICIT).problem) == undefined


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([*SYNTAXES, head.GE_PRIVATE]))
def test_anything_at_all_is_walked_without_an_exception(data, syntax):
    assert isinstance(head.look(reader(data), syntax), head.Head)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(SYNTAXES))
def test_a_damaged_data_set_never_raises_and_never_takes_long(source, syntax):
    dataset = with_uids()
    dataset.add(nested(3, undefined=True)["ReferencedImageSequence"])
    data = bytearray(encode(dataset, syntax))
    for _ in range(source.draw(st.integers(1, 5))):
        data[source.draw(st.integers(0, len(data) - 1))] = source.draw(st.integers(0, 255))
    began = time.perf_counter()
    head.look(reader(bytes(data)), syntax)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    "unit",
    [b"\x08\0\x40\x11SQ\0\0\0\0\0\0", b"\x08\0\x60\0CS\0\0", b"\x08\0\x05\x70UN\0\0\xff\xff\xff\xff"],
    ids=["empty-sequences", "empty-elements", "open-sequences"],
)
def test_millions_of_elements_cost_milliseconds(unit):
    data = unit * (16_000_000 // len(unit))
    began = time.perf_counter()
    assert head.look(reader(data), EXPLICIT).problem
    assert time.perf_counter() - began < 0.5


def test_a_deflate_bomb_is_inflated_only_as_far_as_we_look():
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = io.BytesIO()
    bomb.write(compressor.compress(b"\x08\0\x01\0UN\0\0\xff\xff\xff\x7f"))
    for _ in range(200):
        bomb.write(compressor.compress(bytes(1 << 20)))
    bomb.write(compressor.flush())
    began = time.perf_counter()
    assert head.look(reader(bomb.getvalue()), head.DEFLATED).problem
    assert time.perf_counter() - began < 0.5


@given(st.text(max_size=80))
def test_a_uid_is_digits_and_dots(text):
    assert head.is_uid(text) == (0 < len(text) <= 64 and set(text) <= set("0123456789."))


UNLIKE = {
    "unknown VR": (EXPLICIT, struct.pack("<HH2sH", 0x0008, 0x0009, b"ZZ", 0)),
    "no VR": (EXPLICIT, struct.pack("<HH2sH", 0x0008, 0x0009, b"??", 0)),
    "head of a file": (EXPLICIT, struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", 0)),
    "delimiter with a length": (
        EXPLICIT,
        struct.pack("<HH2sHI", 0x0008, 0x0009, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 8)
        + bytes(8),
    ),
    "length that reads as a VR": (
        head.IMPLICIT_LITTLE,
        struct.pack("<HH2sH", 0x0008, 0x0009, b"UI", 0) + bytes(0x4955),
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_readers_take_for_different_data_sets_is_a_problem(case):
    syntax, before = UNLIKE[case]
    data = before + encode(with_uids(), syntax)
    assert head.look(reader(encode(with_uids(), syntax)), syntax).problem == ""
    assert head.look(reader(data), syntax).problem
