import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.decision import (
    ALWAYS_HELD,
    Disposition,
    Fault,
    GuardVote,
    InstanceDecision,
    Policy,
    Reason,
    Score,
    Scored,
    StudyRuling,
    Thresholds,
    Verdict,
    decide_study,
    judge,
    judge_score,
)
from dicomguard.study import Uid, group_by_study
from tests.spool.conftest import receipt

THRESHOLDS = Thresholds(statistic=3.0, alpha=0.05, margin_floor=0.5, paper_theta=(0.1, 0.2), paper_level=0)
POLICY = Policy()
CLEAN = Score("normal", 0.97, 3.5, (0.01, 0.03), (0.0, 0.01), (0.1, 0.2), 3.0, 1.0)


def score(**changes):
    return replace(CLEAN, **changes)


def instance(*, action="forward", mode="enforce", verdict=Verdict.CLEAN, reasons=()):
    uid = Uid("1.2")
    return InstanceDecision(uid, uid, uid, uid, "a" * 64, 1, "x.dcm", verdict, tuple(reasons), action, mode)


@pytest.mark.parametrize(
    ("given_score", "verdict", "reasons", "action"),
    [
        pytest.param(CLEAN, Verdict.CLEAN, (), "forward", id="clean"),
        pytest.param(
            score(statistic=3.01), Verdict.SUSPECT, (Reason.SCORE_OVER_THRESHOLD,), "quarantine", id="over-threshold"
        ),
        pytest.param(score(statistic=3.0), Verdict.CLEAN, (), "forward", id="at-threshold"),
        pytest.param(score(margin=0.4), Verdict.INCONCLUSIVE, (Reason.LOW_MARGIN,), "quarantine", id="low-margin"),
        pytest.param(
            score(margin=0.4, statistic=9.0),
            Verdict.SUSPECT,
            (Reason.SCORE_OVER_THRESHOLD,),
            "quarantine",
            id="suspect-before-low-margin",
        ),
    ],
)
def test_a_frame_is_judged_by_its_score_and_margin(given_score, verdict, reasons, action):
    judgement = judge_score(given_score, THRESHOLDS, POLICY)
    assert (judgement.verdict, judgement.reasons, judgement.action) == (verdict, reasons, action)


@pytest.mark.parametrize("field", ["probability", "margin", "min_noisy_margin", "statistic", "p_value"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_never_passes_as_clean(field, value):
    judgement = judge(Scored((CLEAN, score(**{field: value}))), THRESHOLDS, POLICY)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.action == "quarantine"


@pytest.mark.parametrize("drops", ["probability_drops", "logit_drops"])
def test_nan_in_a_drop_never_passes_as_clean(drops):
    assert judge_score(score(**{drops: (0.0, math.nan)}), THRESHOLDS, POLICY).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("reason", [r for r in Reason if r not in ALWAYS_HELD])
def test_every_fault_follows_the_policy_that_is_for_it(reason):
    assert Policy().unknown_size == "quarantine"
    lines = {Reason.NON_IMAGE: "unscorable", Reason.UNMATCHED: "unmatched", Reason.OVERDUE: "overdue"}
    line = lines.get(reason, "failed")
    for action in ("forward", "quarantine"):
        others = "quarantine" if action == "forward" else "forward"
        policy = replace(Policy(*[others] * 6), **{line: action})
        assert judge(Fault(reason), THRESHOLDS, policy).action == action
        assert judge(Fault(reason), THRESHOLDS, policy).verdict is not Verdict.CLEAN


@pytest.mark.parametrize("reason", sorted(ALWAYS_HELD))
def test_faults_of_the_transfer_are_held_whatever_policy_and_mode_say(reason):
    anything = Policy(*["forward"] * 6)
    judgement = judge(Fault(reason), THRESHOLDS, anything)
    assert judgement.action == "quarantine"
    assert instance(action="quarantine", mode="shadow", reasons=[reason]).holds


def test_scores_of_a_model_that_was_never_enrolled_are_not_clean():
    assert judge(Scored((CLEAN,)), None, POLICY).reasons == (Reason.MODEL_FAULT,)
    assert judge(Scored(()), THRESHOLDS, POLICY).reasons == (Reason.MODEL_FAULT,)


def test_an_instance_takes_its_worst_frame():
    judgement = judge(Scored((CLEAN, score(margin=0.1), score(statistic=5), CLEAN)), THRESHOLDS, POLICY)
    assert judgement.verdict is Verdict.SUSPECT
    assert set(judgement.reasons) == {Reason.LOW_MARGIN, Reason.SCORE_OVER_THRESHOLD}


# Of a study as a whole ------------------------------------------------------------------------------------------------


def ruling(*suspects, is_flagged=None, is_beyond=False, images=4):
    flagged = bool(suspects) if is_flagged is None else is_flagged
    p_value = 0.01 if flagged else 0.5
    return StudyRuling(images, 5.0, 4.0, p_value, not is_beyond, is_beyond, flagged, frozenset(suspects))


def test_only_the_suspects_of_a_flagged_study_hold():
    frames = Scored((score(statistic=9.0), CLEAN))
    suspect = judge(frames, THRESHOLDS, POLICY, ruling=ruling(2), first=2)
    assert (suspect.verdict, suspect.reasons) == (Verdict.SUSPECT, (Reason.STUDY_OVER_THRESHOLD,))
    assert suspect.action == "quarantine"
    other = judge(frames, THRESHOLDS, POLICY, ruling=ruling(2), first=0)
    assert (other.verdict, other.reasons, other.action) == (Verdict.CLEAN, (), "forward")


@pytest.mark.parametrize("changes", [{"statistic": 3.5}, {"statistic": 90.0}, {"margin": 0.1}])
def test_a_frame_over_its_own_threshold_does_not_hold_a_study_that_is_not_flagged(changes):
    frame = score(**changes)
    assert judge_score(frame, THRESHOLDS, POLICY).action == "quarantine"
    for index in range(4):
        found = judge_score(frame, THRESHOLDS, POLICY, ruling=ruling(), index=index)
        assert (found.verdict, found.reasons, found.action) == (Verdict.CLEAN, (), "forward")


def test_a_study_that_is_not_flagged_has_no_suspects_even_if_some_are_named():
    assert judge_score(CLEAN, THRESHOLDS, POLICY, ruling=ruling(0, is_flagged=False)).verdict is Verdict.CLEAN


@pytest.mark.parametrize("action", ["forward", "quarantine"])
@pytest.mark.parametrize("suspects", [(), (3,)], ids=["not-flagged", "others-flagged"])
def test_nothing_in_a_study_of_unknown_size_is_clean(suspects, action):
    policy = replace(POLICY, unknown_size=action)
    found = judge(Scored((CLEAN, CLEAN)), THRESHOLDS, policy, ruling=ruling(*suspects, is_beyond=True))
    assert (found.verdict, found.reasons) == (Verdict.INCONCLUSIVE, (Reason.UNKNOWN_STUDY_SIZE,))
    assert found.action == action


def test_a_suspect_is_one_whatever_the_size():
    lenient = Policy(*["forward"] * 6)
    found = judge_score(CLEAN, THRESHOLDS, lenient, ruling=ruling(1, is_beyond=True), index=1)
    assert (found.verdict, found.reasons) == (Verdict.SUSPECT, (Reason.STUDY_OVER_THRESHOLD,))
    assert found.action == "quarantine"


def test_a_study_of_unknown_size_is_forwarded_in_shadow_and_recorded_all_the_same():
    found = judge_score(CLEAN, THRESHOLDS, POLICY, ruling=ruling(is_beyond=True))
    one = instance(mode="shadow", verdict=found.verdict, action=found.action, reasons=found.reasons)
    assert decide_study([one], is_held=False) == (
        Disposition.FORWARD,
        Verdict.INCONCLUSIVE,
        (Reason.UNKNOWN_STUDY_SIZE,),
    )


def test_a_required_certificate_is_asked_for_in_a_study_of_unknown_size_too():
    policy = replace(REQUIRE, unknown_size="forward")
    found = judge_score(CLEAN, THRESHOLDS, policy, ruling=ruling(is_beyond=True))
    assert found.reasons == (Reason.UNKNOWN_STUDY_SIZE, Reason.NOT_CERTIFIED)
    assert found.action == "quarantine"
    # A certificate is about one image and a small budget: it does not say that the others are not there to hide it.
    proven = judge_score(voted("CERTIFIED"), THRESHOLDS, policy, ruling=ruling(is_beyond=True))
    assert (proven.reasons, proven.action) == ((Reason.UNKNOWN_STUDY_SIZE,), "forward")


def test_a_number_that_is_none_does_not_pass_in_any_study():
    for found in (ruling(), ruling(0), ruling(3), ruling(is_beyond=True)):
        judgement = judge_score(score(statistic=math.nan), THRESHOLDS, POLICY, ruling=found)
        assert (judgement.verdict, judgement.reasons) == (Verdict.INCONCLUSIVE, (Reason.NOT_A_NUMBER,))
        assert judgement.action == "quarantine"


def test_a_ruling_is_json_ready():
    import json

    assert json.loads(json.dumps(ruling(3, 1).to_json(1, 2))) == {
        "images": 4,
        "score": 5.0,
        "threshold": 4.0,
        "p_value": 0.01,
        "has_promise": True,
        "beyond": False,
        "flagged": True,
        "first": 1,
        "suspects": [1],
        "suspect_count": 2,
    }


# Certificates --------------------------------------------------------------------------------------------------------


def voted(outcome, **changes):
    return score(guard=GuardVote(64, 64, outcome, "normal", 0.004, 0.5, 1e-6), **changes)


REQUIRE = replace(POLICY, certificate="require")
FRAMES = [
    pytest.param(voted("CERTIFIED"), "proven", id="certified"),
    pytest.param(voted("UNCERTIFIED"), "screened", id="uncertified"),
    pytest.param(voted("DISAGREE"), "screened", id="disagree"),
    pytest.param(CLEAN, "screened", id="no-guard"),
]


@pytest.mark.parametrize(("frame", "assurance"), FRAMES)
@pytest.mark.parametrize("found", [None, ruling(), ruling(3)], ids=["alone", "study", "flagged-study"])
def test_a_certificate_is_asked_for_where_the_policy_requires_it(frame, assurance, found):
    assert frame.assurance == assurance
    assert judge_score(frame, THRESHOLDS, POLICY, ruling=found).verdict is Verdict.CLEAN
    judgement = judge_score(frame, THRESHOLDS, REQUIRE, ruling=found)
    if assurance == "proven":
        assert (judgement.verdict, judgement.action) == (Verdict.CLEAN, "forward")
    else:
        assert (judgement.verdict, judgement.reasons) == (Verdict.INCONCLUSIVE, (Reason.NOT_CERTIFIED,))
        assert judgement.action == "quarantine"


def test_a_certificate_does_not_excuse_a_score():
    for policy in (POLICY, REQUIRE):
        assert judge_score(voted("CERTIFIED", statistic=9.0), THRESHOLDS, policy).verdict is Verdict.SUSPECT
        assert judge_score(voted("CERTIFIED", margin=0.1), THRESHOLDS, policy).reasons == (Reason.LOW_MARGIN,)
        assert judge_score(voted("CERTIFIED"), THRESHOLDS, policy, ruling=ruling(0)).verdict is Verdict.SUSPECT


def test_what_a_missing_certificate_holds_is_held_whatever_the_other_lines_say():
    lenient = Policy(*["forward"] * 6, certificate="require")
    assert judge_score(voted("DISAGREE"), THRESHOLDS, lenient).action == "quarantine"


@pytest.mark.parametrize("found", [None, ruling(), ruling(0), ruling(3)], ids=["alone", "study", "suspect", "other"])
def test_a_range_that_was_never_enrolled_does_not_pass(found):
    """The guard's share is NaN, so that the score is no number either; the reason says what a person can act on."""
    frame = voted("UNENROLLED", statistic=math.nan)
    for action in ("forward", "quarantine"):
        judgement = judge_score(frame, THRESHOLDS, replace(POLICY, failed=action), ruling=found)
        assert (judgement.verdict, judgement.reasons) == (Verdict.INCONCLUSIVE, (Reason.UNENROLLED_RANGE,))
        assert judgement.action == action
        required = judge_score(frame, THRESHOLDS, replace(REQUIRE, failed=action), ruling=found)
        assert required.reasons == (Reason.UNENROLLED_RANGE, Reason.NOT_CERTIFIED)
        assert required.action == "quarantine"
    assert frame.assurance == "screened"


SUSPECT = instance(verdict=Verdict.SUSPECT, action="quarantine", reasons=[Reason.SCORE_OVER_THRESHOLD])
REPORT = instance(verdict=Verdict.UNSCORABLE, reasons=[Reason.NON_IMAGE])


@pytest.mark.parametrize(
    ("instances", "is_held", "disposition", "verdict"),
    [
        pytest.param([instance()], False, Disposition.FORWARD, Verdict.CLEAN, id="clean"),
        pytest.param([instance(), SUSPECT], False, Disposition.QUARANTINE, Verdict.SUSPECT, id="one-suspect"),
        pytest.param([instance()], True, Disposition.QUARANTINE, Verdict.CLEAN, id="sticky"),
        pytest.param([replace(SUSPECT, mode="shadow")], False, Disposition.FORWARD, Verdict.SUSPECT, id="shadow"),
        pytest.param([instance(), REPORT], False, Disposition.FORWARD, Verdict.CLEAN, id="report-beside-an-image"),
        pytest.param([REPORT], False, Disposition.FORWARD, Verdict.UNSCORABLE, id="report-alone"),
        pytest.param(
            [instance(), replace(REPORT, action="quarantine")],
            False,
            Disposition.QUARANTINE,
            Verdict.CLEAN,
            id="held-report",
        ),
        pytest.param(
            [instance(), instance(verdict=Verdict.UNSCORABLE, reasons=[Reason.UNMATCHED])],
            False,
            Disposition.FORWARD,
            Verdict.UNSCORABLE,
            id="an-image-that-nobody-looked-at-is-not-clean",
        ),
    ],
)
def test_a_study_takes_its_worst_image(instances, is_held, disposition, verdict):
    found = decide_study(instances, is_held=is_held)
    assert found[:2] == (disposition, verdict)
    assert (Reason.STUDY_QUARANTINED in found[2]) == is_held


SEVERITY = [Verdict.CLEAN, Verdict.UNSCORABLE, Verdict.INCONCLUSIVE, Verdict.SUSPECT]
SCORES = st.builds(
    score,
    statistic=st.floats(0, 10),
    margin=st.floats(0, 5),
    guard=st.sampled_from([None, *(voted(o).guard for o in ("CERTIFIED", "UNCERTIFIED", "DISAGREE", "UNENROLLED"))]),
)
POLICIES = st.sampled_from([POLICY, REQUIRE])


@given(SCORES, st.floats(0, 10), POLICIES)
def test_more_suspicion_never_gives_a_milder_judgement(given_score, more, policy):
    before = judge_score(given_score, THRESHOLDS, policy)
    after = judge_score(replace(given_score, statistic=given_score.statistic + more), THRESHOLDS, policy)
    assert SEVERITY.index(after.verdict) >= SEVERITY.index(before.verdict)
    assert not (before.action == "quarantine" and after.action == "forward")


@given(SCORES, st.integers(2, 400), st.booleans(), st.sampled_from([(), (1,)]), POLICIES)
def test_no_frame_of_a_study_of_unknown_size_is_ever_clean_or_passes(given_score, images, is_suspect, others, policy):
    found = ruling(*others, *[0] * is_suspect, is_beyond=True, images=images)
    judgement = judge_score(given_score, THRESHOLDS, policy, ruling=found)
    assert judgement.verdict in {Verdict.INCONCLUSIVE, Verdict.SUSPECT}
    assert judgement.action == "quarantine"


@given(st.lists(SCORES, min_size=1, max_size=6), SCORES, POLICIES)
def test_one_more_frame_never_gives_a_milder_judgement(scores, extra, policy):
    before = judge(Scored(tuple(scores)), THRESHOLDS, policy)
    after = judge(Scored((*scores, extra)), THRESHOLDS, policy)
    assert SEVERITY.index(after.verdict) >= SEVERITY.index(before.verdict)
    assert not (before.action == "quarantine" and after.action == "forward")


@given(
    st.lists(st.sampled_from([instance(), SUSPECT, REPORT, replace(SUSPECT, mode="shadow")]), min_size=1), st.booleans()
)
def test_a_study_is_forwarded_only_if_nothing_in_it_holds_it(instances, is_held):
    disposition, _, _ = decide_study(instances, is_held=is_held)
    assert (disposition is Disposition.FORWARD) == (not is_held and not any(i.holds for i in instances))


@given(st.lists(st.tuples(st.sampled_from(["1.2", "1.3", "", "1.4"]), st.integers(0, 9))))
def test_grouping_by_study_is_a_partition(items):
    from pathlib import Path

    from dicomguard.study import Instance

    instances = [Instance(Path(str(n)), 0, receipt(f"1.{sop}", study)) for n, (study, sop) in enumerate(items)]
    studies = group_by_study(instances)
    assert sorted(i.path for s in studies for i in s.instances) == sorted(i.path for i in instances)
    assert all(i.study_instance_uid == s.study_instance_uid for s in studies for i in s.instances)
    assert len({s.study_instance_uid for s in studies}) == len(studies)
