import io
import random
import struct
import time
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomguard.decision import Reason
from dicomguard.pixels import source
from dicomguard.pixels.limits import Limits
from dicomguard.pixels.refusal import RefusalError
from dicomguard.pixels.structure import Encoding, scan

EXPLICIT = Encoding(implicit=False, little=True)
LIMITS = Limits()
UNDEFINED = 0xFFFFFFFF


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    if vr in {b"OB", b"OW", b"SQ", b"UN", b"UT"}:
        return struct.pack("<HH2sHI", group, number, vr, 0, size) + value
    return struct.pack("<HH2sH", group, number, vr, size) + value


def item(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content) if length is None else length) + content


END_ITEM = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
NAME = element(0x0010, 0x0010, b"PN", b"A^B ")


def reason_of(data: bytes, limits: Limits = LIMITS, encoding: Encoding = EXPLICIT) -> Reason | None:
    try:
        scan(data, 0, len(data), encoding, limits)
    except RefusalError as refusal:
        return refusal.reason
    return None


def test_elements_are_found_where_they_are() -> None:
    data = element(0x0008, 0x0060, b"CS", b"CT") + NAME
    outline = scan(data, 0, len(data), EXPLICIT, LIMITS)
    assert list(outline.elements) == [0x00080060, 0x00100010]
    found = outline.elements[0x00100010]
    assert (found.vr, found.start, found.value, found.length, found.end) == ("PN", 10, 18, 4, 22)


@pytest.mark.parametrize("outer", [None, UNDEFINED], ids=["length", "delimiter"])
@pytest.mark.parametrize("inner", [None, UNDEFINED], ids=["item length", "item delimiter"])
def test_sequences_are_stepped_over(outer: int | None, inner: int | None) -> None:
    content = item(NAME + (END_ITEM if inner else b""), inner) + (END if outer else b"")
    data = element(0x0008, 0x1140, b"SQ", content, outer) + NAME
    outline = scan(data, 0, len(data), EXPLICIT, LIMITS)
    assert list(outline.elements) == [0x00081140, 0x00100010]
    assert outline.elements[0x00081140].end == len(data) - len(NAME)


def test_unknown_vr_of_undefined_length_is_an_implicit_sequence() -> None:
    implicit_name = struct.pack("<HHI", 0x0010, 0x0010, 4) + b"A^B "
    data = element(0x0009, 0x1001, b"UN", item(implicit_name) + END, UNDEFINED) + NAME
    assert list(scan(data, 0, len(data), EXPLICIT, LIMITS).elements) == [0x00091001, 0x00100010]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (element(0x0010, 0x0010, b"PN", b"A^B ", 400), Reason.TRUNCATED),
        (NAME + b"\x10\x00\x20", Reason.TRUNCATED),
        (NAME[:6], Reason.TRUNCATED),
        (element(0x7FE0, 0x0010, b"OW", bytes(8), 0xFFFFFFF0), Reason.TRUNCATED),
        (element(0x7FE0, 0x0010, b"OB", item(b"") + item(bytes(8)), UNDEFINED), Reason.TRUNCATED),
        (element(0x7FE0, 0x0010, b"OB", item(b"") + item(bytes(8), 800), UNDEFINED), Reason.TRUNCATED),
        (element(0x0008, 0x1140, b"SQ", item(NAME), UNDEFINED), Reason.TRUNCATED),
        (element(0x0008, 0x1140, b"SQ", item(element(0x0010, 0x0010, b"PN", b"", 8)) + bytes(16)), Reason.UNPARSABLE),
        (element(0x0008, 0x1140, b"SQ", NAME), Reason.UNPARSABLE),
        (element(0x0010, 0x0010, b"PN", b"", 0xFFFF) + bytes(4), Reason.TRUNCATED),
        (element(0x0010, 0x0010, b"UT", b"", UNDEFINED), Reason.UNPARSABLE),
        (NAME + END_ITEM, Reason.UNPARSABLE),
        (NAME + NAME, Reason.UNPARSABLE),
        (NAME + bytes(200), None),
        (NAME + bytes(3), None),
    ],
    ids=lambda value: str(value) if isinstance(value, Reason) else "",
)
def test_contradictions_are_named(data: bytes, reason: Reason | None) -> None:
    assert reason_of(data) is reason


def nested(depth: int) -> bytes:
    data = NAME
    for _ in range(depth):
        data = element(0x0008, 0x1140, b"SQ", item(data))
    return data


def test_depth_is_bounded() -> None:
    assert reason_of(nested(32)) is None
    assert reason_of(nested(33)) is Reason.OVER_LIMITS


@pytest.mark.parametrize("length", [UNDEFINED, 0x7FFFFFF0], ids=["undefined", "defined"])
def test_a_hundred_thousand_levels_are_no_recursion(length: int) -> None:
    level = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, UNDEFINED) + struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
    assert reason_of(level * 100_000) is Reason.OVER_LIMITS


def test_two_million_empty_items_cost_little() -> None:
    data = element(0x0008, 0x1140, b"SQ", item(b"") * 2_000_000 + END, UNDEFINED)
    before = time.process_time()
    assert reason_of(data) is Reason.OVER_LIMITS
    assert time.process_time() - before < 5  # seconds; a parser that builds the items takes fifty


def test_deflated_data_is_inflated_within_bounds() -> None:
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(bytes(4_000_000)) + packer.flush()
    assert len(source.inflate(packed, 4_000_000)) == 4_000_000
    for bound, data, reason in (
        (3_999_999, packed, Reason.OVER_LIMITS),
        (4_000_000, packed[:-5], Reason.TRUNCATED),
        (4_000_000, b"\xff" * 50, Reason.UNPARSABLE),
    ):
        with pytest.raises(RefusalError) as caught:
            source.inflate(data, bound)
        assert caught.value.reason is reason


def test_locate_finds_the_data_set_with_and_without_preamble(build: Any) -> None:
    import io

    from pydicom import dcmwrite

    buffer = io.BytesIO()
    dcmwrite(buffer, build(np.zeros((2, 2))), enforce_file_format=True)
    whole = buffer.getvalue()
    offset, syntax = source.locate(whole)
    assert syntax == ExplicitVRLittleEndian
    assert source.locate(whole[132:]) == (offset - 132, ExplicitVRLittleEndian)
    assert source.locate(whole[offset:]) == (0, ExplicitVRLittleEndian)


def test_locate_guesses_the_encoding_of_a_bare_data_set() -> None:
    assert source.locate(struct.pack("<HHI", 0x0008, 0x0060, 2) + b"CT" + bytes(200)) == (0, ImplicitVRLittleEndian)
    assert source.locate(struct.pack(">HH2sH", 0x0008, 0x0060, b"CS", 2) + b"CT")[1] == "1.2.840.10008.1.2.2"


@pytest.mark.parametrize("data", [b"", b"MZ" + bytes(400), bytes(128) + b"DICM", bytes(128) + b"DICM\2\0\0\0UL\4\0"])
def test_locate_refuses_what_is_no_dicom(data: bytes) -> None:
    with pytest.raises(RefusalError) as caught:
        source.locate(data)
    assert caught.value.reason is Reason.UNPARSABLE


@given(st.binary(max_size=400), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_an_outline_or_a_named_fault(data: bytes, implicit: bool, little: bool) -> None:
    encoding = Encoding(implicit=implicit, little=little)
    assert reason_of(data, encoding=encoding) in {None, Reason.TRUNCATED, Reason.UNPARSABLE, Reason.OVER_LIMITS}
    if reason_of(data, encoding=encoding) is not None:
        return
    outline = scan(data, 0, len(data), encoding, LIMITS)
    for found in outline.elements.values():
        assert 0 <= found.start < found.value <= found.end <= len(data)


def test_a_deflated_transfer_syntax_is_hashed_as_it_lies_in_the_file() -> None:
    import hashlib

    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(NAME) + packer.flush()
    loaded = source.load(b"head" + packed, 4, DeflatedExplicitVRLittleEndian, LIMITS)
    assert loaded.sha256 == hashlib.sha256(packed).hexdigest()
    assert loaded.size == len(packed)
    assert bytes(loaded.data[loaded.start : loaded.stop]) == NAME


CT = element(0x0008, 0x0060, b"CS", b"CT")
IMPLICIT = Encoding(implicit=True, little=True)


def implicit(group: int, number: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", group, number, len(value) if length is None else length) + value


def unequal(
    data: bytes, syntax: str = ExplicitVRLittleEndian, tag: int = 0x00080060, value: bytes | None = b"MR"
) -> None:
    """Refused by us, while pydicom reads this value of an element, or, where it is None, fails."""
    assert reason_of(data, encoding=Encoding.of(syntax)) in {Reason.UNPARSABLE, Reason.TRUNCATED}
    buffer = io.BytesIO()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    dcmwrite(buffer, FileDataset(None, {}, file_meta=meta, preamble=bytes(128)), enforce_file_format=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = dcmread(io.BytesIO(buffer.getvalue() + data), force=True)
    assert bytes(read[tag].value, "ascii") == value


HIDDEN = element(0x0008, 0x0060, b"CS", b"MR")


def test_nothing_hides_behind_padding() -> None:
    assert reason_of(CT + bytes(200_000)) is None
    unequal(CT + bytes(200_000) + HIDDEN)


def test_nothing_hides_in_groups_that_no_data_set_has() -> None:
    # The head of a file, once more: pydicom reads on there, and takes the last transfer syntax.
    big = element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.2\0")
    hidden = struct.pack(">HH2sH", 0x0008, 0x0060, b"CS", 2) + b"MR"
    unequal(big + hidden)
    # A command set, which is implicit whatever the data set is.
    assert reason_of(implicit(0x0000, 0x0100, HIDDEN) + CT) is Reason.UNPARSABLE


@pytest.mark.parametrize("vr", [b"ZZ", b"??", b"\0\0", b"cs", b"A["])
def test_a_vr_that_is_none_is_refused(vr: bytes) -> None:
    data = struct.pack("<HH2sH", 0x0009, 0x1001, vr, 0) + CT
    assert reason_of(data) is Reason.UNPARSABLE
    inside = struct.pack("<HH2sH", 0x0009, 0x1001, vr, 0) + END_ITEM
    assert reason_of(element(0x0008, 0x1140, b"SQ", item(inside, UNDEFINED) + END, UNDEFINED)) is Reason.UNPARSABLE


def test_nothing_hides_in_an_encoding_that_others_guess() -> None:
    # As implicit, one value of 0x4955 bytes; as explicit, a UI of no length, then what is hidden, then one long value.
    length = struct.unpack("<H", b"UI")[0]
    rest = length - len(HIDDEN) - 12
    value = HIDDEN + struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, rest + len(implicit(0x0008, 0x0060, b"CT")))
    data = implicit(0x0008, 0x0001, value + bytes(rest)) + implicit(0x0008, 0x0060, b"CT")
    assert len(value) + rest == length
    unequal(data, ImplicitVRLittleEndian)
    assert reason_of(implicit(0x0008, 0x0005, b"") + data, encoding=IMPLICIT) is None
    # The same in an item of an unknown element, which is implicit (PS3.5 section 6.2.2, note 4).
    inside = item(implicit(0x0009, 0x1001, bytes(length)) + END_ITEM, UNDEFINED) + END
    assert reason_of(element(0x0009, 0x1002, b"UN", inside, UNDEFINED) + CT) is Reason.UNPARSABLE


def test_nothing_hides_where_others_search_for_the_end_of_a_value() -> None:
    # No sequence by the dictionary: pydicom steps over its items by their lengths, and searches where it cannot.
    nested = implicit(0x0009, 0x1001, END + implicit(0x0008, 0x0060, b"MR"))
    data = implicit(0x0008, 0x0050, item(nested + END_ITEM, UNDEFINED) + END, UNDEFINED)
    assert reason_of(data, encoding=IMPLICIT) is Reason.UNPARSABLE
    assert reason_of(implicit(0x0009, 0x1002, item(END_ITEM, UNDEFINED) + END, UNDEFINED), encoding=IMPLICIT) is None
    pixels = element(0x7FE0, 0x0010, b"UN", item(b"") + item(bytes(8)) + END, UNDEFINED)
    assert reason_of(pixels) is Reason.UNPARSABLE


def test_nothing_is_unknown_in_big_endian() -> None:
    data = struct.pack(">HH2sHI", 0x0009, 0x1001, b"UN", 0, UNDEFINED) + struct.pack(">HHI", 0xFFFE, 0xE0DD, 0)
    big = Encoding(implicit=False, little=False)
    assert reason_of(data, encoding=big) is Reason.UNPARSABLE
    assert reason_of(data.replace(b"UN", b"SQ"), encoding=big) is None


@pytest.mark.parametrize("which", ["item", "sequence", "fragments"])
def test_a_delimiter_with_a_length_is_refused(which: str) -> None:
    def end(number: int, kind: str) -> bytes:
        return struct.pack("<HHI", 0xFFFE, number, 8 if which == kind else 0)

    data = element(
        0x0008, 0x1140, b"SQ", item(NAME + end(0xE00D, "item"), UNDEFINED) + end(0xE0DD, "sequence"), UNDEFINED
    )
    data += element(0x7FE0, 0x0010, b"OB", item(b"") + item(bytes(8)) + end(0xE0DD, "fragments"), UNDEFINED)
    assert reason_of(data + element(0x7FE1, 0x0010, b"OB", b"")) is Reason.UNPARSABLE


def test_whatever_is_walked_has_the_elements_that_pydicom_finds() -> None:
    """Bytes turned at random in real structures: what we do not refuse, both read alike."""
    inner = item(NAME + element(0x0009, 0x1001, b"OB", bytes(6)) + END_ITEM, UNDEFINED)
    unknown = element(0x0009, 0x1003, b"UN", item(implicit(0x0010, 0x0010, b"A^B ")) + END, UNDEFINED)
    seed = (
        CT + element(0x0008, 0x1140, b"SQ", inner + END, UNDEFINED) + element(0x0008, 0x1115, b"SQ", item(CT)) + unknown
    )
    seed += element(0x0028, 0x0010, b"US", b"\2\0") + element(
        0x7FE0, 0x0010, b"OB", item(b"") + item(bytes(8)) + END, UNDEFINED
    )
    words = [b"SQ", b"UN", b"OB", b"CS", END, END_ITEM, item(b""), b"\xff\xff\xff\xff", bytes(4), b"\x08\0\x60\0"]
    randomness = random.Random(7)
    walked = 0
    for _ in range(6000):
        data = bytearray(seed)
        for _ in range(randomness.choice((1, 1, 2, 3))):
            at = randomness.randrange(len(data))
            word = randomness.choice([*words, bytes([randomness.randrange(256)])])
            data[at : at + (len(word) if randomness.random() < 0.7 else 0)] = word
        try:
            outline = scan(bytes(data), 0, len(data), EXPLICIT, LIMITS)
        except RefusalError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = read_dataset(io.BytesIO(bytes(data)), is_implicit_VR=False, is_little_endian=True)
        assert list(theirs.keys()) == list(outline.elements)
        for tag, found in outline.elements.items():
            raw = theirs.get_item(tag)
            if isinstance(raw, RawDataElement) and found.length >= 0:
                assert raw.value_tell == found.value
                assert raw.length == found.length
        walked += 1
    assert walked > 300
