import errno
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.errors import EnvelopeError, OutOfSpaceError, SpoolError
from dicomguard.spool import envelope
from dicomguard.spool.incoming import Incoming
from dicomguard.study import study_key
from tests.spool.conftest import digest, receipt


def test_what_was_received_stands_in_one_file_with_its_receipt(spool, put):
    instance = put(data=b"abc" * 1000)
    assert instance.path.parent.name == study_key("1.2.3")
    again = envelope.read(instance.path)
    assert again == instance
    assert again.receipt.sha256 == digest(b"abc" * 1000)
    assert again.path.read_bytes()[again.data_offset :] == b"abc" * 1000
    assert list((spool.root / "receiving").iterdir()) == []


def test_the_file_is_a_part_10_file_that_others_can_read(put):
    data = BytesIO()
    dataset = pydicom.Dataset()
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Modality = "CT"
    pydicom.dcmwrite(data, dataset, implicit_vr=False, little_endian=True)
    instance = put(data=data.getvalue())
    read = pydicom.dcmread(instance.path)
    assert read.Modality == "CT"
    assert read.file_meta.SourceApplicationEntityTitle == "CT1"
    assert read.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4"


def test_nothing_has_a_final_name_before_it_is_committed(spool):
    part = spool.incoming(reserve_bytes=0).begin(
        sop_class_uid="1.2", sop_instance_uid="1.3", transfer_syntax_uid="1.2.840.10008.1.2", calling_ae="A"
    )
    part.write(b"half")
    assert spool.arrivals() == {}
    part.discard()
    assert list((spool.root / "receiving").iterdir()) == []
    part.discard()


def test_the_same_bytes_again_are_one_file_and_other_bytes_are_two(put, spool):
    assert put(data=b"one").path == put(data=b"one").path
    assert put(data=b"two").path != put(data=b"one").path
    assert {len(names) for names in spool.arrivals().values()} == {2}


@pytest.mark.parametrize(
    "other",
    [
        {"fault": "uid_mismatch"},
        {"transfer_syntax_uid": "1.2.840.10008.1.2.4.50"},
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_same_bytes_said_to_be_something_else_do_not_touch_what_is_acknowledged(put, other):
    first = put()
    second = put(**other)
    assert second.path != first.path
    assert envelope.read(first.path) == first


def test_a_repeated_transfer_leaves_the_receipt_of_the_first(put):
    first = put()
    put(calling_ae="SOMEBODY_ELSE")
    assert envelope.read(first.path).receipt.calling_ae == "CT1"


def test_a_hundred_at_once_of_the_same_are_one_file(put, spool):
    with ThreadPoolExecutor(16) as pool:
        paths = set(pool.map(lambda _: put().path, range(100)))
    assert len(paths) == 1
    assert len(spool.claim(study_key("1.2.3")).instances) == 1


@pytest.mark.parametrize("uid", ["../../etc/passwd", "/etc/x", "a\0b", "9" * 200, "CON", "\u202e", ""])
def test_no_uid_from_outside_becomes_a_name(spool, put, uid):
    put(sop=uid, study=uid)
    files = [path for path in spool.root.parent.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert files[0].parent.parent == spool.root / "incoming"


def test_a_full_volume_is_refused_before_anything_is_written(spool):
    incoming = Incoming(spool.root, reserve_bytes=100, free_bytes=lambda _: 99)
    with pytest.raises(OutOfSpaceError, match="MiB left"):
        incoming.check_space()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "pwrite"])
def test_a_volume_that_fills_up_meanwhile_leaves_nothing(spool, put, monkeypatch, code, call):
    part = spool.incoming(reserve_bytes=0).begin(
        sop_class_uid="1.2", sop_instance_uid="1.3", transfer_syntax_uid="1.2.840.10008.1.2", calling_ae="A"
    )

    def full(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(OutOfSpaceError):
        patch.setattr(os, call, full)
        part.write(b"data")
        part.commit(receipt())
    part.discard()
    assert spool.arrivals() == {} or all(not names for names in spool.arrivals().values())
    assert list((spool.root / "receiving").iterdir()) == []
    put()  # and there is life afterwards


def test_a_volume_that_takes_a_part_of_a_write_gets_the_rest_too(spool, put, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, memoryview(data)[:1000]))
    instance = put(data=b"abc" * 1000)
    assert envelope.read(instance.path).receipt.sha256 == digest(b"abc" * 1000)
    assert instance.path.read_bytes()[instance.data_offset :] == b"abc" * 1000


def test_a_receipt_that_is_not_written_whole_is_never_acknowledged(spool, put, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:200], offset))
    with pytest.raises(SpoolError, match="not written whole"):
        put()
    assert spool.arrivals() == {}


def test_what_is_not_as_long_as_what_came_is_never_acknowledged(spool):
    part = spool.incoming(reserve_bytes=0).begin(
        sop_class_uid="1.2", sop_instance_uid="1.3", transfer_syntax_uid="1.2.840.10008.1.2", calling_ae="A"
    )
    part.write(b"data")
    os.truncate(part.path, part.data_offset + 3)
    with pytest.raises(SpoolError, match="not as long"):
        part.commit(receipt())
    assert spool.arrivals() == {}


@given(st.binary(max_size=400), st.integers(min_value=0, max_value=4500))
def test_a_damaged_file_is_never_taken_for_an_instance(tmp_path_factory, junk, keep):
    folder = tmp_path_factory.mktemp("damaged")
    head, slot = envelope.header("1.2", "1.3", "1.2.840.10008.1.2", "A")
    whole = head[:slot] + envelope.slot(receipt()) + b"data"
    path = folder / "x.dcm"
    path.write_bytes(whole[:keep] + junk)
    with pytest.raises(EnvelopeError):
        envelope.read(path)


def test_a_link_is_not_followed(put, tmp_path):
    instance = put()
    link = tmp_path / "link.dcm"
    link.symlink_to(instance.path)
    with pytest.raises(EnvelopeError):
        envelope.read(link)
