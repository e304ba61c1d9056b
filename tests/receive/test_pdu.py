"""The codec of association PDUs, against pynetdicom's and against anything at all."""

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ, A_RELEASE_RP
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)

from dicomguard.receive import command as dimse
from dicomguard.receive import pdu
from dicomguard.receive.catalogue import standard_offer, storage_classes, transfer_syntaxes
from dicomguard.receive.offer import Offer

CT = "1.2.840.10008.5.1.4.1.1.2"


def request_by_pynetdicom(contexts):
    primitive = A_ASSOCIATE()
    primitive.application_context_name = pdu.APPLICATION_CONTEXT
    primitive.calling_ae_title, primitive.called_ae_title = "STORESCU", "GUARD"
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, uid, version = MaximumLengthNotification(), ImplementationClassUIDNotification(), None
    length.maximum_length_received = 16382
    uid.implementation_class_uid = UID("1.2.826.0.1.3680043.9.3811.3.0.4")
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = "PYNETDICOM_304"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = 5
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = UID(CT), True, True
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    primitive.user_information = [length, uid, version, window, role, identity]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return request.encode()


def test_a_request_of_pynetdicom_is_read_whole():
    contexts = [build_context(uid, sorted(transfer_syntaxes())[:20]) for uid in sorted(storage_classes())[:128]]
    request = pdu.decode_associate_request(request_by_pynetdicom(contexts)[6:])
    assert (request.calling_ae, request.called_ae, request.application_context) == (
        "STORESCU", "GUARD", pdu.APPLICATION_CONTEXT,
    )  # fmt: skip
    assert (request.max_pdu_bytes, request.implementation_version, request.wants_async) == (
        16382,
        "PYNETDICOM_304",
        True,
    )
    assert [
        (context.context_id, context.abstract_syntax, list(context.transfer_syntaxes)) for context in request.contexts
    ] == [(context.context_id, context.abstract_syntax, context.transfer_syntax) for context in contexts]


def test_an_acceptance_is_read_by_pynetdicom():
    contexts = [build_context(CT), build_context("1.2.3"), build_context(CT, ["1.2.840.10008.1.2.4.94"])]
    request = pdu.decode_associate_request(request_by_pynetdicom(contexts)[6:])
    results = standard_offer().answer(request.contexts)
    accept = A_ASSOCIATE_AC()
    accept.decode(pdu.encode_accept(request, results, 131072))
    read = accept.to_primitive()
    assert [(context.context_id, context.result) for context in read.presentation_context_definition_results_list] == [
        (1, 0), (3, 3), (5, 4),
    ]  # fmt: skip
    assert read.maximum_length_received == 131072
    assert accept.called_ae_title.strip() == "GUARD"
    window = next(item for item in read.user_information if isinstance(item, AsynchronousOperationsWindowNegotiation))
    assert (window.maximum_number_operations_invoked, window.maximum_number_operations_performed) == (1, 1)


def test_last_words_are_read_by_pynetdicom():
    reject, abort, release = A_ASSOCIATE_RJ(), A_ABORT_RQ(), A_RELEASE_RP()
    reject.decode(pdu.encode_reject(2, 3, 2))
    assert (reject.result, reject.source, reject.reason_diagnostic) == (2, 3, 2)
    abort.decode(pdu.encode_abort(6))
    assert (abort.source, abort.reason_diagnostic) == (2, 6)
    release.decode(pdu.RELEASE_RESPONSE)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=600))
def test_any_body_is_a_request_or_a_protocol_error(body):
    try:
        pdu.decode_associate_request(body)
    except pdu.ProtocolError:
        return


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_request_is_a_request_or_a_protocol_error(source):
    body = bytearray(request_by_pynetdicom([build_context(CT), build_context("1.2.840.10008.1.1")])[6:])
    for _ in range(source.draw(st.integers(1, 4))):
        body[source.draw(st.integers(0, len(body) - 1))] = source.draw(st.integers(0, 255))
    try:
        request = pdu.decode_associate_request(bytes(body))
    except pdu.ProtocolError:
        return
    pdu.encode_accept(request, standard_offer().answer(request.contexts), 131072)


@pytest.mark.parametrize("kind", [0x10, 0x20, 0x50, 0x99], ids=hex)
def test_the_most_hostile_request_costs_milliseconds(kind):
    inner = b"\x52\0\0\1\x41" * 13_000
    body = struct.pack(">H66x", 1) + struct.pack(">BxH", kind, len(inner)) + inner + b"\x99\0\0\0" * 15_000
    began = time.perf_counter()
    with pytest.raises(pdu.ProtocolError):
        pdu.decode_associate_request(body)
    assert time.perf_counter() - began < 0.2


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_p_data_is_fragments_or_a_protocol_error(body):
    try:
        found = list(pdu.fragments(memoryview(body)))
    except pdu.ProtocolError:
        return
    assert sum(len(fragment) + 6 for _, _, fragment in found) == len(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_command_set_is_a_request_or_a_protocol_error(data):
    try:
        request = dimse.decode(data)
    except pdu.ProtocolError:
        return
    dimse.encode_response(request, 0xC1FF, "x" * 100)


@given(st.text(max_size=200))
def test_a_comment_is_at_most_64_characters(comment):
    request = dimse.Command(1, 1, CT, "2.25.1", has_data_set=True)
    assert len(dimse.encode_response(request, 0, comment)) <= len(dimse.encode_response(request, 0)) + 8 + 64


def test_every_standard_storage_class_and_syntax_is_offered():
    from pynetdicom.sop_class import _STORAGE_CLASSES

    offer = standard_offer(["1.2.3"])
    assert set(_STORAGE_CLASSES.values()) | {"1.2.3"} <= offer.storage_classes
    assert len(offer.storage_classes) > 170
    assert {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.2"} <= offer.transfer_syntaxes
    assert not {"1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.7.1"} & offer.transfer_syntaxes


@given(
    st.lists(
        st.tuples(st.sampled_from([CT, "1.2.3", "1.2.840.10008.1.1"]), st.lists(st.sampled_from("abcd"), min_size=1))
    )
)
def test_every_context_is_answered_once_and_only_with_what_was_proposed(proposals):
    contexts = [
        pdu.ProposedContext(2 * i + 1, abstract, tuple(syntaxes)) for i, (abstract, syntaxes) in enumerate(proposals)
    ]
    answers = Offer(frozenset({CT}), frozenset(), frozenset("bc")).answer(contexts)
    assert [answer.context_id for answer in answers] == [context.context_id for context in contexts]
    for context, answer in zip(contexts, answers, strict=True):
        if answer.result == pdu.ACCEPTANCE:
            assert context.abstract_syntax == CT
            assert answer.transfer_syntax == next(uid for uid in context.transfer_syntaxes if uid in "bc")
        else:
            assert context.abstract_syntax != CT or not set(context.transfer_syntaxes) & set("bc")
