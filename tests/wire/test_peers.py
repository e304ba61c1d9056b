"""Other people's software sends: DCMTK's tools and pynetdicom's requestor, with real files where there are some."""

import hashlib
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE
from senders import CT, EXPLICIT, Rejected, Sender, data_set, element, new_uid, until

from dicomguard.receive.offer import VERIFICATION

DCMTK = Path("/usr/bin")


@pytest.fixture
def dcmtk(node):
    """Runs a tool of DCMTK against the node."""
    if not (DCMTK / "storescu").is_file():
        pytest.skip("DCMTK is not installed: apt-get install dcmtk")

    def run(tool, *arguments, calling="SCU", called="GUARD"):
        command = [
            str(DCMTK / tool),
            "-aet",
            calling,
            "-aec",
            called,
            "127.0.0.1",
            str(node.port),
            *map(str, arguments),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


def write_part_10(path, syntax, sop_class, data):
    """A Part 10 file around an encoded data set."""
    meta = b"".join(
        (
            element(2, 1, "OB", b"\0\1"),
            element(2, 2, "UI", sop_class.encode()),
            element(2, 3, "UI", b"2.25.1"),
            element(2, 0x10, "UI", syntax.encode()),
            element(2, 0x12, "UI", b"2.25.1"),
        )
    )
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, "UL", len(meta).to_bytes(4, "little")) + meta + data)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("SCU", "GUARD", ""),
        ("WHO", "GUARD", "Calling AE Title Not Recognized"),
        ("SCU", "OTHER", "Called AE Title Not Recognized"),
    ],
    ids=["permitted", "calling", "called"],
)
def test_dcmtk_shows_why_an_echo_is_refused(dcmtk, calling, called, reason):
    shown = dcmtk("echoscu", calling=calling, called=called)
    assert (shown.returncode == 0) == (not reason)
    assert reason in shown.stderr


@pytest.mark.peer
def test_dcmtk_sends_a_folder(dcmtk, node, tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(20):
        data = data_set(f"2.25.{number + 1}", "2.25.5", pixels=bytes([number]) * 100_000)
        write_part_10(folder / f"{number}.dcm", EXPLICIT, CT, data)
    shown = dcmtk("storescu", "+sd", folder)
    assert shown.returncode == 0, shown.stderr
    assert {instance.sop_instance_uid for instance in node.instances} == {f"2.25.{number + 1}" for number in range(20)}
    assert not [instance for instance in node.instances if instance.receipt.fault]


@pytest.mark.peer
def test_dcmtk_shows_a_status_that_is_no_success(dcmtk, node, tmp_path):
    # The data set's study is no UID: kept, but no success.
    write_part_10(tmp_path / "x.dcm", EXPLICIT, CT, data_set("2.25.1", "not a uid"))
    shown = dcmtk("storescu", "-v", tmp_path / "x.dcm")
    assert "Error: CannotUnderstand" in shown.stdout + shown.stderr
    assert [instance.receipt.fault for instance in node.instances] == ["invalid_uid"]


def test_pynetdicom_echoes_and_sends(node, tmp_path):
    uid, study = new_uid(), new_uid()
    write_part_10(tmp_path / "x.dcm", EXPLICIT, CT, data_set(uid, study, pixels=bytes(70_000)))
    ae = AE("SCU")
    ae.add_requested_context(VERIFICATION)
    ae.add_requested_context(CT, EXPLICIT)
    association = ae.associate("127.0.0.1", node.port, ae_title="GUARD")
    assert association.is_established
    assert association.send_c_echo().Status == 0x0000
    assert association.send_c_store(dcmread(tmp_path / "x.dcm")).Status == 0x0000
    association.release()
    (instance,) = node.instances
    assert (instance.sop_instance_uid, instance.study_instance_uid) == (uid, study)


def real_files(folder):
    """Part 10 files with the UIDs that C-STORE needs: path, class, instance, syntax and the data set's bytes."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.read(132)
            if head[128:] != b"DICM":
                continue
            try:
                dataset = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
                offset = _data_offset(path.read_bytes())
                uids = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.file_meta.TransferSyntaxUID))
            except Exception:  # noqa: BLE001 - a file that pydicom cannot open is not one a modality could send
                continue
        if all(uids):
            yield path, *uids, path.read_bytes()[offset:]


def _data_offset(raw):
    """Where group 0002 ends."""
    position = 132
    while raw[position : position + 2] == b"\2\0":
        if raw[position + 4 : position + 6] in {b"OB", b"UN"}:
            position += 12 + int.from_bytes(raw[position + 8 : position + 12], "little")
        else:
            position += 8 + int.from_bytes(raw[position + 6 : position + 8], "little")
    return position


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pydicom's, about the very files this test is for
def test_every_real_file_is_received_in_its_own_syntax_and_unaltered(node, data_dir):
    statuses, faults = Counter(), Counter()
    sent = set()
    for path, sop_class, sop_instance, syntax, data in real_files(data_dir / "dicom"):
        with Sender(node.port, contexts=[(1, sop_class, (syntax,))]) as sender:
            assert sender.accepted == {1: (0, syntax)}, path.name
            response = sender.store(sop_instance, data, sop_class=sop_class)
            statuses[hex(response.status)] += 1
            sent.add(hashlib.sha256(data).hexdigest())
            sender.release()
    for instance in node.instances:
        receipt = instance.receipt
        faults[receipt.fault] += 1
        kept = instance.path.read_bytes()[instance.data_offset :]
        assert hashlib.sha256(kept).hexdigest() == receipt.sha256
        sent.discard(receipt.sha256)
    print(dict(statuses), dict(faults))
    assert sum(statuses.values()) > 100
    assert not sent, "received but not in the spool"
    assert set(statuses) <= {"0x0", "0xa900", "0xc101", "0xc104", "0xc105"}


def test_an_unknown_caller_of_pynetdicom_is_rejected(node):
    ae = AE("WHO")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", node.port, ae_title="GUARD")
    # pynetdicom returns a moment before it has noted why.
    assert until(lambda: association.is_rejected)
    with pytest.raises(Rejected):
        Sender(node.port, calling="WHO")
