"""What an honest peer sends is kept, byte for byte, and answered."""

import hashlib
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import senders
from senders import CT, DEFLATED, EXPLICIT, IMPLICIT, Rejected, Sender, data_set, new_uid


def test_an_instance_is_kept_as_sent_with_its_receipt(node):
    uid, study = new_uid(), new_uid()
    data = data_set(uid, study, pixels=os.urandom(300_001))
    with Sender(node.port) as sender:
        assert sender.store(uid, data).status == 0x0000
        sender.release()
    (instance,) = node.instances
    receipt = instance.receipt
    assert instance.path.read_bytes()[instance.data_offset :] == data
    assert (receipt.sha256, receipt.size_bytes, receipt.fault) == (hashlib.sha256(data).hexdigest(), len(data), "")
    assert (receipt.calling_ae, receipt.called_ae, receipt.address) == ("SCU", "GUARD", "127.0.0.1")
    assert (receipt.sop_class_uid, receipt.sop_instance_uid, receipt.transfer_syntax_uid) == (CT, uid, EXPLICIT)
    assert (receipt.study_instance_uid, receipt.series_instance_uid) == (study, "2.25.7")
    assert not node.parts


@pytest.mark.parametrize("max_pdu", [7, 64, 1000, 16_382, 131_072], ids=str)
def test_pdus_of_any_size_carry_the_same_bytes(node, max_pdu):
    uid = new_uid()
    data = data_set(uid, new_uid(), pixels=os.urandom(3_000 if max_pdu < 100 else 400_000))
    with Sender(node.port, max_pdu=max_pdu) as sender:
        assert sender.store(uid, data).status == 0x0000
    assert node.instances[0].path.read_bytes().endswith(data)


def test_a_stream_cut_into_single_bytes_is_understood(node):
    uid = new_uid()
    data = data_set(uid, new_uid(), pixels=os.urandom(1_000))
    with Sender(node.port) as sender:
        stream = senders.p_data(1, 3, senders.store_command(1, CT, uid)) + senders.p_data(1, 2, data)
        for byte in stream:
            sender.socket.sendall(bytes([byte]))
        assert sender.response().status == 0x0000


def test_command_and_data_in_one_pdu_and_in_many_fragments(node):
    uid = new_uid()
    data = data_set(uid, new_uid(), pixels=b"ab")
    command = senders.store_command(5, CT, uid)

    def pdv(control, fragment):
        return struct.pack(">IBB", len(fragment) + 2, 1, control) + fragment

    body = pdv(1, command[:30]) + pdv(3, command[30:]) + pdv(0, data[:50]) + pdv(0, b"") + pdv(2, data[50:])
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.pdu(4, body))
        assert sender.response() == senders.Response(0x0000, "", 5)
    assert node.instances[0].receipt.size_bytes == len(data)


def test_the_requestors_first_choice_that_is_known_is_taken(node):
    jpeg = "1.2.840.10008.1.2.4.50"
    contexts = [
        (1, CT, ("1.2.3.4", jpeg, EXPLICIT)),
        (3, CT, (EXPLICIT, jpeg)),
        (5, CT, ("1.2.840.10008.1.2.4.94",)),
        (7, "1.2.3", (EXPLICIT,)),
        (9, senders.VERIFICATION, (IMPLICIT,)),
    ]
    with Sender(node.port, contexts=contexts) as sender:
        assert sender.accepted == {1: (0, jpeg), 3: (0, EXPLICIT), 5: (4, ""), 7: (3, ""), 9: (0, IMPLICIT)}


def test_128_contexts_on_one_association(node):
    contexts = [(2 * index + 1, CT, (EXPLICIT,)) for index in range(128)]
    with Sender(node.port, contexts=contexts) as sender:
        assert {result for result, _ in sender.accepted.values()} == {0}
        uid = new_uid()
        assert sender.store(uid, data_set(uid, new_uid()), context_id=255).status == 0x0000


def test_private_sop_classes_are_accepted_when_configured(start):
    private = "1.3.12.2.1107.5.9.1"
    node = start(private_sop_classes=(private,))
    with Sender(node.port, contexts=[(1, private, (EXPLICIT,))]) as sender:
        uid = new_uid()
        assert sender.store(uid, data_set(uid, new_uid(), sop_class=private), sop_class=private).status == 0x0000


def test_an_object_of_no_study_needs_none(node):
    palette = "1.2.840.10008.5.1.4.39.1"
    uid = new_uid()
    data = data_set(uid, "", sop_class=palette)
    with Sender(node.port, contexts=[(1, palette, (EXPLICIT,))]) as sender:
        assert sender.store(uid, data, sop_class=palette).status == 0x0000
    assert node.instances[0].receipt.fault == ""


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (EXPLICIT, data_set),
        (senders.BIG_ENDIAN, lambda uid, study: data_set(uid, study, order=">")),
        (DEFLATED, lambda uid, study: _deflated(data_set(uid, study, pixels=bytes(100_000)))),
        (
            IMPLICIT,
            lambda uid, study: b"".join(
                senders.implicit_element(group, number, value.encode())
                for group, number, value in ((8, 0x16, CT), (8, 0x18, uid), (0x20, 0xD, study))
            ),
        ),
    ],
    ids=["explicit", "big-endian", "deflated", "implicit"],
)
def test_the_head_is_read_in_every_encoding(node, syntax, encode):
    uid, study = new_uid(), new_uid()
    data = encode(uid, study)
    with Sender(node.port, contexts=[(1, CT, (syntax,))]) as sender:
        assert sender.store(uid, data).status == 0x0000
    (instance,) = node.instances
    assert instance.study_instance_uid == study
    assert instance.receipt.transfer_syntax_uid == syntax
    assert instance.path.read_bytes().endswith(data)


def _deflated(data):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def test_the_same_bytes_a_hundred_times_in_parallel_leave_one_file(node):
    uid = new_uid()
    data = data_set(uid, new_uid(), pixels=os.urandom(10_000))

    def send(_):
        for _ in range(50):
            try:
                with Sender(node.port) as sender:
                    status = sender.store(uid, data).status
                    sender.release()
                    return status
            except Rejected:  # as many as permitted at once: come back
                continue
        return None

    with ThreadPoolExecutor(25) as pool:
        assert list(pool.map(send, range(100))) == [0x0000] * 100
    assert len(node.instances) == 1


def test_other_bytes_under_the_same_uid_are_kept_beside_the_first(node):
    uid, study = new_uid(), new_uid()
    with Sender(node.port) as sender:
        assert sender.store(uid, data_set(uid, study, pixels=b"ab")).status == 0x0000
        assert sender.store(uid, data_set(uid, study, pixels=b"cd")).status == 0x0000
    assert len(node.instances) == 2
    assert {instance.receipt.sop_instance_uid for instance in node.instances} == {uid}


def test_asynchronous_operations_are_answered_with_one(node):
    window = struct.pack(">BxHHH", 0x53, 4, 0, 0)
    with Sender(node.port, user_items=window) as sender:
        assert struct.pack(">BxHHH", 0x53, 4, 1, 1) in sender.accept


def test_pipelined_requests_are_answered_in_order(node):
    uids = [new_uid() for _ in range(30)]
    study = new_uid()
    with Sender(node.port) as sender:
        for uid in uids:
            sender.send_store(uid, data_set(uid, study, pixels=bytes(20_000)))
        responses = [sender.response() for _ in uids]
        sender.release()
    assert [(response.status, response.message_id) for response in responses] == [(0, n + 1) for n in range(30)]
    assert len(node.instances) == 30


def test_the_journal_tells_who_came_and_what_they_brought(node):
    with Sender(node.port) as sender:
        uid = new_uid()
        sender.store(uid, data_set(uid, new_uid()))
        sender.release()
    with pytest.raises(Rejected):
        Sender(node.port, calling="WHO")
    accepted, released, rejected = node.stop()
    assert (accepted["kind"], released["kind"], rejected["kind"]) == ("accepted", "released", "rejected")
    assert accepted["association_id"] == released["association_id"] != ""
    assert (accepted["implementation_uid"], accepted["implementation_version"]) == ("2.25.1", "TEST")
    assert (accepted["contexts_proposed"], accepted["contexts_accepted"]) == (2, 2)
    assert released["instances"] == 1
    assert rejected["calling_ae"] == "WHO"
    assert rejected["detail"].startswith("1/1/3")
