import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

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
