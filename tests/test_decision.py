import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.decision import (
    ALWAYS_HELD,
    Disposition,
    Fault,
    InstanceDecision,
    Policy,
    Reason,
    Score,
    Scored,
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


@pytest.mark.parametrize("field", ["probability", "margin", "min_noisy_margin", "statistic"])
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
    lines = {Reason.NON_IMAGE: "unscorable", Reason.UNMATCHED: "unmatched", Reason.OVERDUE: "overdue"}
    line = lines.get(reason, "failed")
    for action in ("forward", "quarantine"):
        others = "quarantine" if action == "forward" else "forward"
        policy = replace(Policy(others, others, others, others, others), **{line: action})
        assert judge(Fault(reason), THRESHOLDS, policy).action == action
        assert judge(Fault(reason), THRESHOLDS, policy).verdict is not Verdict.CLEAN


@pytest.mark.parametrize("reason", sorted(ALWAYS_HELD))
def test_faults_of_the_transfer_are_held_whatever_policy_and_mode_say(reason):
    anything = Policy("forward", "forward", "forward", "forward", "forward")
    judgement = judge(Fault(reason), THRESHOLDS, anything)
    assert judgement.action == "quarantine"
    assert instance(action="quarantine", mode="shadow", reasons=[reason]).holds


def test_scores_of_a_model_that_was_never_calibrated_are_not_clean():
    assert judge(Scored((CLEAN,)), None, POLICY).reasons == (Reason.MODEL_FAULT,)
    assert judge(Scored(()), THRESHOLDS, POLICY).reasons == (Reason.MODEL_FAULT,)


def test_an_instance_takes_its_worst_frame():
    judgement = judge(Scored((CLEAN, score(margin=0.1), score(statistic=5), CLEAN)), THRESHOLDS, POLICY)
    assert judgement.verdict is Verdict.SUSPECT
    assert set(judgement.reasons) == {Reason.LOW_MARGIN, Reason.SCORE_OVER_THRESHOLD}


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
SCORES = st.builds(score, statistic=st.floats(0, 10), margin=st.floats(0, 5))


@given(SCORES, st.floats(0, 10))
def test_more_suspicion_never_gives_a_milder_judgement(given_score, more):
    before = judge_score(given_score, THRESHOLDS, POLICY)
    after = judge_score(replace(given_score, statistic=given_score.statistic + more), THRESHOLDS, POLICY)
    assert SEVERITY.index(after.verdict) >= SEVERITY.index(before.verdict)
    assert not (before.action == "quarantine" and after.action == "forward")


@given(st.lists(SCORES, min_size=1, max_size=6), SCORES)
def test_one_more_frame_never_gives_a_milder_judgement(scores, extra):
    before = judge(Scored(tuple(scores)), THRESHOLDS, POLICY)
    after = judge(Scored((*scores, extra)), THRESHOLDS, POLICY)
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
