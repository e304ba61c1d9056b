"""Studies that are judged as a whole by a toy enrolment of 59 clean studies of one image, at alpha .05: up to three."""

import math
from types import SimpleNamespace

import pytest

from dicomguard.decision import Disposition, Policy, Reason, Verdict
from dicomguard.scoring.study_test import StudyCalibration
from dicomguard.screen.outcome import Outcome
from tests.screen.conftest import CLEAN, LOW_MARGIN, NAN, SUSPECT
from tests.screen.test_reproduce import Recorder

UID = "1.2.826.0.1"
# Quantiles of an exponential law of mean 2: of three images the tail flags one from about 8 on, of eight from about
# 10 on. The stand-in's clean images score 1, its suspect ones 9.
SINGLES = [[-2 * math.log((k - 0.5) / 59)] for k in range(1, 60)]


def enrol(site, studies=SINGLES):
    site.scorer.enrolment = SimpleNamespace(
        studies=StudyCalibration.fit(studies, alpha=0.05), calibration=SimpleNamespace(images=(59, 59))
    )


def send(site, *codes):
    for seed, code in enumerate(codes):
        site.send(code, seed=seed, study=UID)
    site.screen()
    return site.decisions()[-1]


@pytest.fixture
def enrolled(site):
    enrol(site)
    return site


def test_the_toy_is_what_it_says(enrolled):
    studies = enrolled.scorer.enrolment.studies
    assert studies.largest_shown == 3
    assert studies.tail.quantile(0.05 / 3) < 9 < studies.tail.quantile(0.05 / 8)


def test_an_image_that_is_flagged_in_a_study_of_known_size_is_not_cleared_by_clean_ones(enrolled):
    decision = send(enrolled, SUSPECT, CLEAN, CLEAN)
    assert (decision.disposition, decision.verdict) == (Disposition.QUARANTINE, Verdict.SUSPECT)
    assert [i.verdict for i in decision.instances].count(Verdict.CLEAN) == 2


@pytest.mark.parametrize("codes", [(SUSPECT, *[CLEAN] * 7), (CLEAN,) * 8], ids=["one-attacked", "all-clean"])
def test_a_study_beyond_what_was_enrolled_is_held_and_keeps_every_score(enrolled, codes):
    decision = send(enrolled, *codes)
    assert (decision.disposition, decision.verdict) == (Disposition.QUARANTINE, Verdict.INCONCLUSIVE)
    assert decision.reasons == (Reason.UNKNOWN_STUDY_SIZE,)
    scores = [i.scores for i in decision.instances]
    assert sorted(s["statistics"][0] for s in scores) == sorted(9.0 if code == SUSPECT else 1.0 for code in codes)
    rulings = [s["study"] for s in scores]
    assert all((r["beyond"], r["has_promise"], r["flagged"], r["images"]) == (True, False, False, 8) for r in rulings)
    assert enrolled.spool.evidence(decision.decision_id) is not None


def test_what_is_flagged_beyond_it_is_suspect_and_the_others_are_not_called_clean(enrolled):
    # A score that is no number counts as infinitely surprising: the study is flagged, and the attacked image is not.
    enrolled.policy = Policy(failed="forward")
    decision = send(enrolled, NAN, SUSPECT, *[CLEAN] * 6)
    assert decision.disposition is Disposition.QUARANTINE
    assert {i.verdict for i in decision.instances} == {Verdict.INCONCLUSIVE}
    assert set(decision.reasons) == {Reason.NOT_A_NUMBER, Reason.UNKNOWN_STUDY_SIZE}


def test_three_images_pass_as_before_and_one_has_its_own_test(enrolled):
    assert send(enrolled, CLEAN, LOW_MARGIN, CLEAN).verdict is Verdict.CLEAN
    enrolled.send(CLEAN, seed=50)
    enrolled.screen()
    alone = enrolled.decisions()[-1]
    assert alone.verdict is Verdict.CLEAN
    assert "study" not in alone.instances[0].scores


def test_images_that_came_alone_are_no_study_however_many(enrolled):
    for seed in range(8):
        enrolled.send(CLEAN, seed=seed)
    enrolled.screen()
    assert {d.verdict for d in enrolled.decisions()} == {Verdict.CLEAN}


def test_enough_clean_studies_of_that_size_make_it_known(site):
    enrol(site, [*SINGLES, *[[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4 + 0.01 * n] for n in range(19)]])
    assert send(site, *[CLEAN] * 8).verdict is Verdict.CLEAN
    site.send(SUSPECT, seed=70, study=f"{UID}.1")
    for seed in range(71, 78):
        site.send(CLEAN, seed=seed, study=f"{UID}.1")
    site.screen()
    decision = site.decisions()[-1]
    assert (decision.disposition, decision.reasons) == (Disposition.QUARANTINE, (Reason.STUDY_OVER_THRESHOLD,))


def test_the_policy_forwards_it_and_says_so(enrolled):
    enrolled.policy = Policy(unknown_size="forward")
    decision = send(enrolled, SUSPECT, *[CLEAN] * 7)
    assert (decision.disposition, decision.verdict) == (Disposition.FORWARD, Verdict.INCONCLUSIVE)
    assert decision.reasons == (Reason.UNKNOWN_STUDY_SIZE,)


def test_shadow_records_it_and_forwards(enrolled):
    enrolled.mode = "shadow"
    decision = send(enrolled, SUSPECT, *[CLEAN] * 7)
    assert (decision.disposition, decision.verdict) == (Disposition.FORWARD, Verdict.INCONCLUSIVE)
    assert {i.action for i in decision.instances} == {"quarantine"}


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("action", ["quarantine", "forward"])
def test_it_comes_out_again(enrolled, mode, action):
    enrolled.mode = mode
    enrolled.policy = Policy(unknown_size=action)
    decision = send(enrolled, SUSPECT, *[CLEAN] * 7)
    again = Recorder(enrolled).again(decision)
    assert (again.outcome, again.recomputed, again.notes) == (Outcome.AGREES, 8, ()), again
    enrolled.policy = Policy(unknown_size="forward" if action == "quarantine" else "quarantine")
    today = Recorder(enrolled).again(decision)
    assert today.outcome is Outcome.AGREES, today
    assert {note.partition(":")[0] for note in today.notes} == {"policy"}


def test_the_pictures_are_of_the_images_with_the_highest_scores(enrolled):
    decision = send(enrolled, *[CLEAN] * 14, SUSPECT)
    (highest,) = [i.file_name for i in decision.instances if i.scores["worst"]["statistic"] == 9.0]
    pictures = {
        path.name.split(".")[0] for path in enrolled.spool.evidence(decision.decision_id).glob("*.saliency.png")
    }
    assert len(pictures) == 12
    assert highest.removesuffix(".dcm") in pictures
