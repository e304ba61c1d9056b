import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from dicomguard import phantom
from dicomguard.decision import REFUSED, Disposition, Policy, Reason, Verdict
from dicomguard.errors import EnvelopeError, HostError, LedgerError
from dicomguard.quarantine import Quarantine
from dicomguard.receive import head
from dicomguard.spool import journal, store
from dicomguard.study import study_key
from tests.screen.conftest import CLEAN, EXPLICIT, LOW_MARGIN, NAN, RAISES, SUSPECT, encode
from tests.spool.conftest import everything

FORWARD, HELD = Disposition.FORWARD, Disposition.QUARANTINE


def outbound(site):
    return [item.instance.sop_instance_uid for item in site.spool.outgoing("ai")]


def test_a_clean_study_is_recorded_and_queued(site):
    instance = site.send()
    site.screen()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.verdict, decision.reasons) == (FORWARD, Verdict.CLEAN, ())
    assert decision.peer == "CR1@127.0.0.1"
    assert (decision.bundle, decision.fingerprint, decision.version) == ("stand-in", "f" * 64, 1)
    assert decision.instances[0].sha256 == instance.receipt.sha256
    assert outbound(site) == [instance.sop_instance_uid]
    assert site.spool.claims() == []


def test_nothing_is_claimed_before_it_is_quiet(site):
    site.send()
    screener = site.screener()
    screener.step()
    site.now_s += 9
    assert not screener.step()
    assert site.decisions() == []


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        pytest.param(SUSPECT, Verdict.SUSPECT, Reason.SCORE_OVER_THRESHOLD, id="suspect"),
        pytest.param(LOW_MARGIN, Verdict.INCONCLUSIVE, Reason.LOW_MARGIN, id="low-margin"),
        pytest.param(NAN, Verdict.INCONCLUSIVE, Reason.NOT_A_NUMBER, id="nan"),
        pytest.param(RAISES, Verdict.INCONCLUSIVE, Reason.MODEL_FAULT, id="model-fault"),
    ],
)
def test_what_is_not_clean_is_held_with_its_evidence(site, code, verdict, reason):
    site.send(CLEAN, 1, study="1.2.3")
    site.send(code, 2, study="1.2.3")
    site.screen()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.verdict) == (HELD, verdict)
    assert reason in decision.reasons
    assert [i.verdict for i in decision.instances].count(Verdict.CLEAN) == 1
    assert outbound(site) == []
    assert len(site.spool.quarantined(decision.decision_id)) == 2
    evidence = site.spool.evidence(decision.decision_id)
    told = json.loads((evidence / "evidence.json").read_text())
    assert told["decision"]["decision_id"] == decision.decision_id
    assert len(told["receipts"]) == 2
    pictures = sorted(path.suffixes[0] for path in evidence.glob("*.png"))
    assert pictures == {RAISES: [], NAN: [".saliency"]}.get(code, [".noise", ".saliency"])


def test_one_corrupt_instance_neither_stops_the_study_nor_slips_through(site):
    site.send(CLEAN, 1, study="1.2.3")
    whole = site.send(CLEAN, 2, study="1.2.3")
    data = whole.path.read_bytes()[whole.data_offset : -1000]
    whole.path.unlink()
    site.put(data, "1.2.3.9", "1.2.3")
    site.screen()
    (decision,) = site.decisions()
    assert decision.disposition is HELD
    assert {i.verdict for i in decision.instances} == {Verdict.CLEAN, Verdict.INCONCLUSIVE}
    assert decision.reasons == (Reason.TRUNCATED,)


def test_an_image_that_no_bundle_is_for_follows_its_policy(site):
    site.match = {"Modality": ["CT"]}
    site.send(SUSPECT)
    site.screen()
    site.policy = Policy(unmatched="quarantine")
    site.send(SUSPECT, 2)
    site.screen()
    assert [(d.disposition, d.reasons) for d in site.decisions()] == [
        (FORWARD, (Reason.UNMATCHED,)),
        (HELD, (Reason.UNMATCHED,)),
    ]


def test_a_report_is_no_image(site):
    import pydicom
    from pydicom.uid import generate_uid

    report = pydicom.Dataset()
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SOPInstanceUID = generate_uid()
    report.StudyInstanceUID = "1.2.3"
    report.SeriesInstanceUID = "1.2.3.1"
    report.Modality = "SR"
    site.put(encode(report), str(report.SOPInstanceUID), "1.2.3", sop_class=str(report.SOPClassUID))
    site.screen()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.verdict, decision.reasons) == (
        FORWARD,
        Verdict.UNSCORABLE,
        (Reason.NON_IMAGE,),
    )


def test_shadow_records_and_always_forwards(site):
    site.mode = "shadow"
    site.send(SUSPECT)
    site.screen()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.verdict, decision.mode) == (FORWARD, Verdict.SUSPECT, "shadow")
    assert len(outbound(site)) == 1


def test_a_quarantined_study_stays_so_for_late_images_until_it_is_released(site):
    site.send(SUSPECT, 1, study="1.2.3")
    screener = site.screen()
    site.send(CLEAN, 2, study="1.2.3")
    site.screen(screener)
    first, second = site.decisions()
    assert (second.version, second.disposition, second.verdict) == (2, HELD, Verdict.CLEAN)
    assert second.reasons == (Reason.STUDY_QUARANTINED,)
    quarantine = Quarantine(site.spool, site.ledger, ["ai"])
    quarantine.release("1.2.3", actor="dr", reason="artefact", all_versions=True)
    assert len(outbound(site)) == 2
    site.send(CLEAN, 3, study="1.2.3")
    site.send(SUSPECT, 4, study="1.2.3")
    site.screen(screener)
    third = site.decisions()[-1]
    assert (third.version, third.disposition) == (3, HELD)
    (event,) = site.ledger.events("doubt_after_forward")
    assert event.detail["forwarded_before"] == [first.decision_id, second.decision_id]


def test_a_suspect_image_after_a_forwarded_version_raises_an_alarm(site):
    site.send(CLEAN, 1, study="1.2.3")
    screener = site.screen()
    site.send(SUSPECT, 2, study="1.2.3")
    site.screen(screener)
    assert [d.disposition for d in site.decisions()] == [FORWARD, HELD]
    (event,) = site.ledger.events("doubt_after_forward")
    assert event.detail["forwarded_before"] == [site.decisions()[0].decision_id]


def test_the_same_again_is_one_copy_one_decision_one_forward(site):
    site.send()
    screener = site.screen()
    site.send()
    site.screen(screener)
    assert len(site.decisions()) == 1
    assert len(outbound(site)) == 1
    assert site.spool.claims() == []


@pytest.mark.parametrize("together", [True, False], ids=["in-one-claim", "later"])
def test_other_bytes_under_a_known_uid_are_held_as_a_conflict(site, together):
    first = site.send(CLEAN)
    screener = None if together else site.screen()
    second = site.send(CLEAN, PatientID="somebody-else")
    assert first.sop_instance_uid == second.sop_instance_uid
    site.screen(screener)
    one, two = site.decisions()
    assert (one.disposition, one.verdict) == (FORWARD, Verdict.CLEAN)
    assert (two.disposition, two.reasons, two.version) == (HELD, (Reason.UID_CONFLICT,), 2)
    assert two.instances[0].sha256 == second.receipt.sha256
    assert site.ledger.is_held(first.study_instance_uid)
    assert len(site.ledger.events("uid_conflict")) == 1
    assert len(outbound(site)) == 1


def test_every_fault_that_the_receiver_knows_has_its_reason():
    from dicomguard.receive.storing import _FAULTS

    assert set(_FAULTS) == {reason.value for reason in REFUSED}


@pytest.mark.parametrize("fault", sorted(REFUSED))
@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_what_the_sender_was_told_is_refused_is_kept_and_held(site, fault, mode):
    site.mode = mode
    site.put(b"anything", "1.2.3.4", "", fault=fault.value)
    site.screen()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.reasons) == (HELD, (fault,))
    assert len(site.spool.quarantined(decision.decision_id)) == 1


def kept(site):
    return sorted(place for place, _ in everything(site.spool))


@pytest.mark.parametrize("code", [CLEAN, SUSPECT], ids=["forwarded", "held"])
@pytest.mark.parametrize("damage", ["bytes", "receipt", "link"])
def test_what_comes_again_replaces_a_copy_that_was_damaged(site, code, damage):
    whole = site.send(code).path.read_bytes()
    screener = site.screen()
    place = "store" if code == CLEAN else "quarantine"
    (path,) = (site.spool.root / place).glob("*/*.dcm")
    if damage == "link":
        path.unlink()
        path.symlink_to(site.folder / "nowhere")
    else:  # in place: what waits in a queue is another name of the same file
        with path.open("r+b") as file:
            file.seek(-1 if damage == "bytes" else 128, 2 if damage == "bytes" else 0)
            file.write(b"\xff")
    site.send(code)
    site.screen(screener)
    assert [decision.version for decision in site.decisions()] == [1, 2]
    copies = [file.read_bytes() for file in (site.spool.root / place).glob("*/*.dcm") if not file.is_symlink()]
    receipt_ends = len(whole) - site.decisions()[0].instances[0].size_bytes
    assert whole[receipt_ends:] in [copy[receipt_ends:] for copy in copies]
    site.send(code)
    site.screen(screener)
    assert len(site.decisions()) == 2  # and now there is a whole one


def test_what_comes_again_before_the_first_copy_is_routed_is_sent_once(site, monkeypatch):
    site.send()
    screener = site.screener()
    with monkeypatch.context() as patch:
        patch.setattr(site.spool, "forward", no_space)
        site.screen(screener)
        assert len(site.decisions()) == 1
        site.send()
        for _ in range(4):
            screener.step()
            site.now_s += 11
        assert site.spool.arrivals() == {}
    site.now_s += 400
    while screener.step():
        pass
    assert len(site.decisions()) == 1
    assert len(outbound(site)) == 1
    assert site.spool.claims() == []


def test_what_was_refused_and_comes_again_is_kept_once(site):
    screener = site.screener()
    for n in range(5):
        site.put(b"anything", "", "", fault="missing_uid")
        site.screen(screener)
        if n == 2:
            (decision,) = site.decisions()
            Quarantine(site.spool, site.ledger, ["ai"]).reject(decision.decision_id, actor="dr", reason="of no use")
    assert len(site.decisions()) == 1
    assert kept(site) == ["rejected"]
    site.spool.purge_rejected(decision.decision_id)
    site.put(b"anything", "", "", fault="missing_uid")
    site.screen(screener)
    assert len(site.decisions()) == 2
    assert kept(site) == ["quarantine"]
    assert site.spool.claims() == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"fault": "unparsable"}, id="fault"),
        pytest.param({"data": b"another"}, id="bytes"),
        pytest.param({"sop": "1.2.3.5"}, id="instance"),
        pytest.param({"sop_class": "1.2.840.10008.5.1.4.1.1.7"}, id="class"),
        pytest.param({"syntax": "1.2.840.10008.1.2"}, id="transfer-syntax"),
    ],
)
def test_another_transfer_that_is_refused_is_kept_beside_the_first(site, other):
    first = {"data": b"anything", "sop": "1.2.3.4", "study": "1.2.3", "fault": "missing_uid"}
    for said in (first, first | other):
        site.put(**said)
        site.screen()
    assert [d.disposition for d in site.decisions()] == [HELD, HELD]
    assert kept(site) == ["quarantine", "quarantine"]


def test_a_refused_transfer_that_a_person_released_waits_again_when_it_comes_again(site):
    for n in (1, 2):
        site.put(b"anything", "1.2.3.4", "1.2.3", fault="uid_mismatch")
        site.screen()
        decision = site.decisions()[-1]
        if n == 1:
            Quarantine(site.spool, site.ledger, ["ai"]).release(decision.decision_id, actor="dr", reason="is right")
    assert len(site.spool.quarantined(decision.decision_id)) == 1
    assert kept(site) == ["outbound", "quarantine", "store"]


def test_the_last_copy_of_a_refused_transfer_is_never_dropped(site):
    """Recorded, and killed before its file has moved: the repetition is no copy of what may yet be lost."""
    site.put(b"anything", "1.2.3.4", "1.2.3", fault="uid_mismatch")
    site.screen()
    (first,) = site.decisions()
    (path,) = (site.spool.root / "quarantine" / first.decision_id).glob("*.dcm")
    path.unlink()
    site.put(b"anything", "1.2.3.4", "1.2.3", fault="uid_mismatch")
    site.screen()
    assert len(site.decisions()) == 2
    assert kept(site) == ["quarantine"]


def test_a_file_that_changed_after_it_was_received_is_held(site):
    instance = site.send()
    data = bytearray(instance.path.read_bytes())
    data[-1] ^= 1
    instance.path.write_bytes(data)
    site.screen()
    assert site.decisions()[0].reasons == (Reason.ALTERED_IN_SPOOL,)


NAMES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def named(site, dataset, **others):
    """Receive a data set whose receipt says `others`, as that of a receiver does which reads the head otherwise."""
    said = {name: str(dataset.get(name, "")) for name in NAMES} | others
    uids = {"series": said["SeriesInstanceUID"], "sop_class": said["SOPClassUID"]}
    return site.put(encode(dataset), said["SOPInstanceUID"], said["StudyInstanceUID"], **uids)


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("other", ["1.2.3.9", ""])
@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_that_is_another_instance_than_its_receipt_says_is_always_held(site, name, other, mode):
    site.mode = mode
    site.policy = Policy(*["forward"] * 6)
    dataset = phantom.make(1, opacity=False, rows=64, columns=64)
    if other:
        setattr(dataset, name, "1.2.3.7")
        named(site, dataset, **{name: other})
    else:  # its head, as far as the receiver looks, has none
        was = str(dataset[name].value)
        del dataset[name]
        named(site, dataset, **{name: was})
    site.screen()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.reasons) == (HELD, (Reason.IDENTITY_MISMATCH,))
    assert decision.verdict is Verdict.INCONCLUSIVE
    words = {"SOPClassUID": "SOP Class", "SOPInstanceUID": "SOP Inst", "StudyInstanceUID": "Study Inst"}
    assert words.get(name, "Series Inst") in decision.instances[0].detail
    assert outbound(site) == []


@pytest.mark.parametrize("length", [9, 10, 62, 63, 64])
@pytest.mark.parametrize("padding", [b"\0", b" ", b"\0\0\0\0", b"  ", b" \0"])
def test_uids_are_the_same_however_they_are_padded(site, length, padding):
    dataset = phantom.make(1, opacity=False, rows=64, columns=64)
    uid = "1.2.840." + "1" * (length - 8)
    dataset.StudyInstanceUID = uid
    data = encode(dataset)
    said = uid.encode() + b"\0" * (length % 2)
    written = uid.encode() + (padding if (len(padding) + length) % 2 == 0 else padding * 2 + b" " * (length % 2))
    before = b"\x20\0\x0d\0UI" + len(said).to_bytes(2, "little") + said
    assert data.count(before) == 1
    data = data.replace(before, b"\x20\0\x0d\0UI" + len(written).to_bytes(2, "little") + written)
    seen = head.look(lambda size, offset: data[offset : offset + size], EXPLICIT)
    assert seen.study_instance_uid == uid
    site.put(data, seen.sop_instance_uid, seen.study_instance_uid, series=seen.series_instance_uid)
    site.screen()
    assert site.decisions()[0].disposition is FORWARD


def test_an_unreadable_file_in_the_spool_is_set_aside_and_reported(site):
    instance = site.send()
    (instance.path.parent / "core").write_bytes(b"junk")
    site.screen()
    assert len(site.decisions()) == 1
    assert len(site.ledger.events("stranger_in_spool")) == 1
    assert [p.name for claim in site.spool.failed() for p in claim.strangers] == ["core"]


def test_a_ledger_that_goes_away_during_recovery_costs_nobody_anything(site, monkeypatch):
    for seed in (1, 2):
        site.send(CLEAN, seed)
        site.spool.claim(next(iter(site.spool.arrivals())))
    screener = site.screener()
    asked = iter([[], None])

    def sometimes(_claim_id):
        if (answer := next(asked)) is None:
            raise LedgerError("database is locked")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "decisions_of_claim", sometimes)
        with pytest.raises(LedgerError):
            screener.recover()
    assert screener.recover() == 2
    while screener.step():
        pass
    assert [d.verdict for d in site.decisions()] == [Verdict.CLEAN, Verdict.CLEAN]
    assert len(outbound(site)) == 2


def test_a_refused_transfer_does_not_hold_the_correct_one(site):
    whole = site.send(CLEAN, 1, study="1.2.3")
    site.put(b"anything", str(whole.sop_instance_uid), "1.2.3", fault="uid_mismatch")
    screener = site.screen()
    site.send(CLEAN, 2, study="1.2.3")
    site.screen(screener)
    assert [(d.disposition, d.verdict) for d in site.decisions()] == [
        (FORWARD, Verdict.CLEAN),
        (HELD, Verdict.INCONCLUSIVE),
        (FORWARD, Verdict.CLEAN),
    ]


def test_shadow_lets_late_images_pass_what_enforce_has_held(site):
    site.send(SUSPECT, 1, study="1.2.3")
    site.screen()
    site.mode = "shadow"
    site.send(CLEAN, 2, study="1.2.3")
    site.screen()
    assert [d.disposition for d in site.decisions()] == [HELD, FORWARD]


def test_a_release_that_was_quicker_than_the_move_is_carried_out_later(site, monkeypatch):
    site.send(SUSPECT)
    hold = site.spool.hold

    def release_first(claim, decision_id, names):
        Quarantine(site.spool, site.ledger, ["ai"]).release(decision_id, actor="dr", reason="artefact")
        hold(claim, decision_id, names)

    monkeypatch.setattr(site.spool, "hold", release_first)
    screener = site.screen()
    assert outbound(site) == []
    site.now_s += 60
    screener.step()
    assert len(outbound(site)) == 1


def test_a_rejection_in_the_middle_of_the_move_is_finished_after_a_restart(site, monkeypatch):
    for seed in range(1, 5):
        site.send(SUSPECT, seed, study="1.2.3")
    hold = site.spool.hold

    def half(claim, decision_id, names):
        hold(claim, decision_id, names[:2])
        crash()

    with monkeypatch.context() as patch:
        patch.setattr(site.spool, "hold", half)
        with pytest.raises(SystemExit):
            site.screen()
    Quarantine(site.spool, site.ledger, ["ai"]).reject("1.2.3", actor="dr", reason="manipulated")
    screener = site.screener()
    assert screener.recover() == 1
    screener.step()
    assert site.screener().recover() == 0
    assert [place for place, _ in everything(site.spool)] == ["rejected"] * 4
    assert site.ledger.events("review_unfinished") == []


def test_a_ruling_that_cannot_be_carried_out_stops_neither_the_others_nor_screening(site, monkeypatch):
    for n in (1, 2):
        site.send(SUSPECT, n, study=f"1.2.{n}")
        site.screen()
    first, second = site.decisions()
    reject = site.spool.reject

    def stuck(decision_id):
        if decision_id == first.decision_id:
            raise OSError(39, "Directory not empty")
        return reject(decision_id)

    for decision in (first, second):
        site.ledger.record_review(decision.decision_id, "reject", "dr", "manipulated")
    site.send(CLEAN, 3, study="1.2.9")
    with monkeypatch.context() as patch:
        patch.setattr(site.spool, "reject", stuck)
        screener = site.screener()
        assert screener.recover() == 0
        for _ in range(5):
            site.screen(screener)
            site.now_s += 31
    assert len(outbound(site)) == 1
    assert site.spool.quarantined(second.decision_id) == []
    (event,) = site.ledger.events("review_unfinished")
    assert (event.is_alarm, event.subject_uid, event.detail["decision_id"]) == (True, "1.2.1", first.decision_id)
    assert len(site.spool.quarantined(first.decision_id)) == 1
    screener.step()
    assert site.spool.quarantined(first.decision_id) == []


def test_a_study_that_waited_for_a_busy_screener_is_screened_like_any_other(site):
    screener = site.screener()
    site.send()
    screener.step()
    site.now_s += 500
    screener.step()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.reasons) == (FORWARD, ())
    assert site.ledger.events("overdue")[0].detail["cause"] == "the screener was behind"


def test_after_a_crash_a_recorded_decision_is_carried_out_and_not_made_again(site, monkeypatch):
    site.send()
    screener = site.screener()
    with monkeypatch.context() as patch:
        patch.setattr(site.spool, "forward", crash)
        with pytest.raises(SystemExit):
            site.screen(screener)
    assert len(site.decisions()) == 1
    assert outbound(site) == []
    again = site.screener()
    assert again.recover() == 1
    again.step()
    assert len(site.decisions()) == 1
    assert len(outbound(site)) == 1
    assert site.spool.claims() == []


def test_a_claim_that_dies_three_times_goes_to_failed_and_is_never_forwarded(site, monkeypatch):
    site.send()
    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "record_decisions", crash)
        with pytest.raises(SystemExit):
            site.screen()
        for _ in range(2):
            screener = site.screener()
            assert screener.recover() == 1
            with pytest.raises(SystemExit):
                screener.step()
        assert site.screener().recover() == 1
    assert site.decisions() == []
    assert outbound(site) == []
    assert len(site.spool.failed()) == 1
    assert len(site.ledger.events("screening_failed")) == 1
    site.spool.requeue(site.spool.failed()[0])
    site.screen()
    assert len(outbound(site)) == 1


def test_an_error_that_stays_counts_three_strikes_within_one_run(site, monkeypatch):
    site.send()
    monkeypatch.setattr("dicomguard.screen.screener.decide_claim", fail)
    screener = site.screener()
    screener.step()
    site.now_s += 11
    for pause_s in (1, 30, None):
        assert site.spool.failed() == []
        assert screener.step()
        assert not screener.step()
        if pause_s is not None:
            site.now_s += pause_s - 0.1
            assert not screener.step()
            site.now_s += 0.1
    assert len(site.spool.failed()) == 1
    assert outbound(site) == []


def test_a_claim_that_waits_for_its_next_attempt_does_not_keep_others_waiting(site, monkeypatch):
    site.send(seed=1)
    screener = site.screener()
    with monkeypatch.context() as patch:
        patch.setattr("dicomguard.screen.screener.decide_claim", fail)
        site.screen(screener)
    site.send(seed=2)
    screener.step()
    site.now_s += 0.5
    screener._settling._quiet_s = 0.1
    assert screener.step()
    assert len(outbound(site)) == 1
    site.now_s += 1
    screener.step()
    assert len(outbound(site)) == 2


def no_process(*_args, **_kwargs):
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_descriptor(*_args, **_kwargs):
    raise OSError(errno.EMFILE, "Too many open files")


def no_decoder(*_args, **_kwargs):
    raise HostError("The decoding process does not start.")


@pytest.mark.parametrize(
    ("what", "trouble"),
    [
        pytest.param("dicomguard.pixels.sandbox.subprocess.Popen", no_process, id="no-process"),
        pytest.param("dicomguard.pixels.sandbox.DecodeWorker._started", no_decoder, id="decoder-does-not-start"),
        pytest.param("dicomguard.spool.store.os.link", no_space, id="no-space-after-the-decision"),
        pytest.param("dicomguard.spool.store.Spool.begin", no_space, id="no-space-before-it"),
        pytest.param("dicomguard.spool.envelope.os.open", no_descriptor, id="no-descriptor"),
    ],
)
def test_a_trouble_of_the_host_costs_no_claim_anything_however_long_it_lasts(site, monkeypatch, what, trouble):
    for n in range(5):
        site.send(CLEAN, n, study=f"1.2.{n}")
    site.worker._stop()
    with monkeypatch.context() as patch:
        patch.setattr(what, trouble)
        for _ in range(4):  # restarts do not help, and do no harm
            screener = site.screener()
            for _ in range(8):
                for act in (screener.recover, screener.step):
                    with suppress(OSError, EnvelopeError):  # the loop around us goes on
                        act()
                site.now_s += 400
        assert site.spool.failed() == []
        alarms = site.ledger.events("host_failing")
        assert alarms
        assert len(alarms) <= 4 * 8
    screener = site.screener()
    screener.recover()
    assert {claim.attempt for claim in site.spool.claims()} <= {1}
    site.screen(screener)
    assert len(outbound(site)) == 5
    assert site.spool.claims() == site.spool.failed() == []
    assert site.ledger.events("stranger_in_spool") == []
    assert site.spool.begun() == set()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_file_that_the_disk_does_not_give_keeps_its_study_waiting_and_no_other(site, monkeypatch, code):
    site.send(CLEAN, 1, study="1.2.1")
    site.send(CLEAN, 2, study="1.2.1")
    site.send(CLEAN, 3, study="1.2.3")
    bad = site.spool.waiting(study_key("1.2.1"))[0].name
    opened = os.open

    def open_others(path, *rest, **more):
        if Path(path).name == bad:
            raise OSError(code, os.strerror(code))
        return opened(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr("dicomguard.spool.envelope.os.open", open_others)
        for _ in range(2):  # a restart does not help, and does no harm
            screener = site.screener()
            screener.recover()
            site.screen(screener)
            for _ in range(8):
                screener.step()
                site.now_s += 400
        assert len(outbound(site)) == 1
        assert site.spool.failed() == []
        (claim,) = site.spool.claims()
        assert [path.name for path in claim.unreadable] == [bad]
        assert bad in site.ledger.events("host_failing")[0].detail["detail"]
    screener.step()
    assert len(outbound(site)) == 3
    assert site.spool.claims() == []
    assert site.ledger.events("stranger_in_spool") == []


def test_the_host_is_blamed_once_an_hour(site, monkeypatch):
    monkeypatch.setattr(site.worker, "header", no_process)
    site.send(seed=1)
    site.send(seed=2)
    screener = site.screen()
    for _ in range(12):
        site.now_s += 300
        screener.step()
        screener.step()
    assert len(site.ledger.events("host_failing")) == 2
    assert site.ledger.events("host_failing")[0].is_alarm


def test_a_claim_with_a_recorded_decision_is_never_given_up(site, monkeypatch):
    site.send()
    with monkeypatch.context() as patch:
        patch.setattr(site.spool, "forward", fail)
        screener = site.screen()
        for _ in range(9):
            site.now_s += 300
            screener.step()
        screener = site.screener()
        screener.recover()
        screener.step()
    assert site.spool.failed() == site.ledger.events("screening_failed") == []
    (event,) = site.ledger.events("routing_failed")
    assert event.is_alarm
    site.now_s += 300
    screener.step()
    assert len(outbound(site)) == 1


def test_a_claim_that_cannot_be_moved_to_failed_is_kept_for_another_try(site, monkeypatch):
    site.send(seed=1, study="1.2.3")
    site.send(seed=2, study="1.2.3")
    give_up = site.spool.fail

    def half(claim):
        first = claim.instances[0]
        target = site.spool.root / "failed" / f"{claim.study_key}.{claim.claim_id}"
        target.mkdir()
        first.path.rename(target / first.name)
        no_space()

    monkeypatch.setattr("dicomguard.screen.screener.decide_claim", fail)
    monkeypatch.setattr(site.spool, "fail", half)
    screener = site.screen()
    for _ in range(2):
        site.now_s += 30
        screener.step()
    assert [claim.attempt for claim in site.spool.claims()] == [3]
    monkeypatch.setattr(site.spool, "fail", give_up)
    assert not screener.step()
    site.now_s += 300
    assert screener.step()
    assert site.spool.claims() == []
    assert [len(claim.instances) for claim in site.spool.failed()] == [2]
    assert len(site.ledger.events("screening_failed")) == 1


def test_a_restart_strikes_only_what_was_being_worked_on(site, monkeypatch):
    site.send(seed=1, study="1.2.1")
    screener = site.screener()
    screener.step()
    site.now_s += 1
    for seed in range(16):  # too many to be looked at together with others
        site.send(seed=seed, study="1.2.2", SOPInstanceUID=f"1.2.2.{seed}")
    screener.step()
    site.now_s += 11
    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "record_decisions", crash)
        with pytest.raises(SystemExit):
            screener.step()
    screener = site.screener()
    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "decisions_of_claim", away)
        with pytest.raises(LedgerError):
            screener.recover()
    for _ in range(3):  # counted once
        assert screener.recover() == 2
    attempts = {claim.instances[0].study_instance_uid: claim.attempt for claim in site.spool.claims()}
    assert attempts == {"1.2.1": 2, "1.2.2": 1}
    site.screen(screener)
    assert len(outbound(site)) == 17


def test_what_a_claim_moved_before_it_failed_is_taken_up_by_the_next_step(site, monkeypatch):
    for n in (1, 2):
        site.send(seed=n, study=f"1.2.{n}")
    screener = site.screener()
    screener.step()
    site.now_s += 11
    sync, seen = store.fsync_folder, []

    def once(folder):
        if folder.parent.name == "claimed" and not seen:
            seen.append(folder)
            raise OSError(errno.EIO, "Input/output error")
        sync(folder)

    monkeypatch.setattr(store, "fsync_folder", once)
    while screener.step():
        pass
    assert seen
    assert len(outbound(site)) == 2
    assert site.spool.claims() == []


def test_a_ledger_that_is_away_costs_no_strike(site, monkeypatch):
    site.send()
    screener = site.screener()
    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "record_decisions", away)
        with pytest.raises(LedgerError):
            site.screen(screener)
        for _ in range(5):
            with pytest.raises(LedgerError):
                screener.step()
    assert site.spool.failed() == []
    screener.step()
    assert len(outbound(site)) == 1


@pytest.mark.parametrize(
    ("action", "disposition", "verdict"),
    [
        pytest.param("quarantine", HELD, Verdict.CLEAN, id="quarantine-but-screened"),
        pytest.param("forward", FORWARD, Verdict.INCONCLUSIVE, id="forward-unscreened"),
    ],
)
def test_a_study_that_waits_too_long_raises_an_alarm_and_follows_its_policy(site, action, disposition, verdict):
    site.policy = Policy(overdue=action)
    screener = site.screener()
    for n in range(13):  # something new every nine seconds: never quiet
        site.send(seed=n, study="1.2.3")
        screener.step()
        site.now_s += 9
    (decision,) = site.decisions()
    assert (decision.disposition, decision.verdict) == (disposition, verdict)
    assert Reason.OVERDUE in decision.reasons
    (event,) = site.ledger.events("overdue")
    assert event.subject_uid == "1.2.3"


def test_what_was_refused_is_held_in_a_study_that_waits_too_long_and_holds_nothing_else(site):
    site.policy = Policy(overdue="forward")
    screener = site.screener()
    for n in range(13):
        site.send(seed=n, study="1.2.3")
        if n == 1:
            refused = site.put(b"anything", "6.6.6", "1.2.3", fault="uid_mismatch")
        screener.step()
        site.now_s += 9
    forwarded, held = site.decisions()
    assert (forwarded.disposition, forwarded.reasons) == (FORWARD, (Reason.OVERDUE,))
    assert (held.disposition, held.reasons) == (HELD, (Reason.UID_MISMATCH,))
    assert [i.sha256 for i in held.instances] == [refused.receipt.sha256]
    assert "6.6.6" not in outbound(site)
    assert not site.ledger.hold_reasons("1.2.3")


def test_what_came_while_nobody_looked_is_no_study_without_end(site):
    screener = site.screener()
    site.send(seed=1, study="1.2.3")
    screener.step()
    site.now_s += 3
    site.send(seed=2, study="1.2.3")
    site.now_s += 200  # a large study was scored, or the ledger was away
    screener.step()
    site.now_s += 11
    screener.step()
    (decision,) = site.decisions()
    assert (decision.disposition, decision.reasons, len(decision.instances)) == (FORWARD, (), 2)
    assert site.ledger.events("overdue")[0].detail["cause"] == "the screener was behind"


def test_what_comes_right_after_a_claim_is_timed_by_itself(site, monkeypatch):
    screener = site.screener()
    site.send(seed=1, study="1.2.3")
    screener.step()
    site.now_s += 11
    claim = site.spool.claim

    def claim_and_receive(key):
        claimed = claim(key)
        monkeypatch.undo()
        site.send(seed=2, study="1.2.3")
        site.now_s += 150  # as long as the first part is looked at
        return claimed

    monkeypatch.setattr(site.spool, "claim", claim_and_receive)
    screener.step()
    screener.step()
    assert [len(decision.instances) for decision in site.decisions()] == [1]
    site.now_s += 11
    screener.step()
    assert [(d.disposition, len(d.instances)) for d in site.decisions()] == [(FORWARD, 1), (FORWARD, 1)]
    assert site.ledger.events("overdue") == []


def test_a_release_that_leaves_a_damaged_file_behind_is_told_of(site):
    site.send(SUSPECT, 1, study="1.2.3")
    site.send(SUSPECT, 2, study="1.2.3")
    screener = site.screen()
    (decision,) = site.decisions()
    damaged = next((site.spool.root / "quarantine" / decision.decision_id).glob("*.dcm"))
    damaged.write_bytes(b"anything")
    quarantine = Quarantine(site.spool, site.ledger, ["ai"])
    (held,) = quarantine.release(decision.decision_id, actor="dr", reason="artefact")
    assert held.state_in_words == "released, files not moved yet"
    assert [one.decision.decision_id for one in quarantine.held()] == [decision.decision_id]
    assert len(outbound(site)) == 1
    for _ in range(3):
        site.now_s += 100
        screener.step()
    (event,) = site.ledger.events("stranger_in_spool")
    assert (event.subject_uid, event.detail["n"]) == ("1.2.3", 1)
    (failed,) = site.spool.failed()
    assert [path.name for path in failed.strangers] == [damaged.name]
    assert quarantine.held() == []
    assert site.ledger.events("review_unfinished") == []


def test_a_recorded_decision_is_carried_out_whatever_can_be_read(site, monkeypatch):
    site.send(seed=1, study="1.2.3")
    site.send(seed=2, study="1.2.3")
    screener = site.screener()
    with monkeypatch.context() as patch:
        patch.setattr(site.spool, "forward", no_space)
        site.screen(screener)
    read = store.envelope.read

    def fail_once_more(path):
        if path.parent.parent.name == "claimed":
            raise EnvelopeError("it cannot be read") from OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(store.envelope, "read", fail_once_more)
    site.now_s += 400
    while screener.step():
        pass
    assert len(outbound(site)) == 2
    assert site.spool.claims() == []


def test_the_evidence_of_a_number_that_is_none_is_json_for_every_reader(site):
    site.send(NAN)
    site.screen()
    (text,) = [path.read_text() for path in (site.spool.root / "quarantine").rglob("evidence.json")]

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    assert '"nan"' in text
    json.loads(text, parse_constant=refuse)


def test_association_events_reach_the_ledger_once(site):
    writer = journal.JournalWriter(site.spool.root)
    writer.append({"at": "2026-01-01T00:00:00+00:00", "kind": "rejected", "address": "10.0.0.9", "detail": "1/1/3"})
    writer.append({"nonsense": True})
    writer.rotate()
    screener = site.screener()
    assert screener.step()
    assert not screener.step()
    (event,) = site.ledger.associations()
    assert (event.kind, event.address) == ("rejected", "10.0.0.9")


def test_a_journal_file_that_cannot_be_taken_in_stops_neither_the_next_nor_screening(site, monkeypatch):
    (site.spool.root / "journal" / "bad.jsonl").mkdir()
    for address in ("10.0.0.8", "10.0.0.9"):
        writer = journal.JournalWriter(site.spool.root)
        writer.append({"at": "2026-01-01T00:00:00+00:00", "kind": "rejected", "address": address})
        writer.rotate()
    record = site.ledger.record_associations

    def odd(name, events):
        if events[0].address == "10.0.0.8":
            raise AttributeError("a defect of ours")
        record(name, events)

    monkeypatch.setattr(site.ledger, "record_associations", odd)
    site.send()
    screener = site.screen()
    assert not screener.step()
    assert len(outbound(site)) == 1
    assert [event.address for event in site.ledger.associations()] == ["10.0.0.9"]
    alarms = site.ledger.events("journal_unreadable")
    assert [event.is_alarm for event in alarms] == [True, True]
    assert "bad.jsonl" in {event.detail["journal"] for event in alarms}


def test_no_patient_name_or_id_is_written_anywhere_but_in_the_instances(site, caplog):
    site.send(SUSPECT, PatientName="SECRET^NAME", PatientID="SECRET-ID")
    site.screen()
    assert site.decisions()[0].patient_key == "hash-of-9"
    site.ledger.close()
    for path in site.folder.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            assert b"SECRET" not in path.read_bytes(), path
    assert "SECRET" not in caplog.text


def crash(*_args, **_kwargs):
    raise SystemExit(137)


def fail(*_args, **_kwargs):
    raise RuntimeError("a defect of ours")


def away(*_args, **_kwargs):
    raise LedgerError("database is locked")
