"""Decisions that the real screener made are made again; only the model is a stand-in."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard.decision import ALWAYS_HELD, Policy, Reason
from dicomguard.screen.compare import Tolerance, differences, score_differences
from dicomguard.screen.examine import Examiner
from dicomguard.screen.locate import Altered, Located, Locator, Lost, Removal
from dicomguard.screen.outcome import Outcome
from dicomguard.screen.past import past_of
from dicomguard.screen.protected import Protected
from dicomguard.screen.reproduce import Reproducer
from dicomguard.screen.verdicts import Rules
from tests.screen.conftest import CLEAN, LOW_MARGIN, NAN, RAISES, SUSPECT, THRESHOLDS, StandInScorer


class Recorder:
    """The flight recorder on a site."""

    def __init__(self, site, *scorers, removals=None, tolerance=None):
        self.site = site
        self.locator = Locator(site.spool, site.ledger, removals or {})
        models = [Protected(scorer, {"Modality": ["no such"]}, "shadow") for scorer in scorers or (site.scorer,)]
        self.reproducer = Reproducer(
            models,
            lambda some: Examiner(site.worker, some, b"n" * 32),
            Rules(site.policy, "enforce", ("elsewhere",), lambda _: ""),
            tolerance or Tolerance(),
        )

    def again(self, decision):
        return self.reproducer.reproduce(decision, self.locator.locate(decision), past_of(self.site.ledger, decision))


def only(site):
    (decision,) = site.decisions()
    return decision


def tampered(path, offset_from_end=4):
    content = bytearray(path.read_bytes())
    content[-offset_from_end] ^= 0xFF
    path.write_bytes(content)


def kept(site, decision):
    return sorted(site.spool.root.glob(f"*/{decision.decision_id}/*.dcm"))


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("code", [CLEAN, SUSPECT, LOW_MARGIN, NAN, RAISES])
def test_every_verdict_comes_out_again(site, code, mode):
    site.mode = mode
    site.send(code)
    site.screen()
    decision = only(site)
    again = Recorder(site).again(decision)
    assert again.outcome is Outcome.AGREES, again
    assert (again.instances, again.recomputed) == (1, 1)
    assert again.differences == again.problems == again.notes == ()
    assert (again.largest_distance is None) == (code == RAISES)
    json.dumps(again.to_json(), allow_nan=False)


def test_what_no_bundle_is_for_and_what_is_no_image_agree(site):
    site.match = {"Modality": ["MR"]}
    site.send(seed=1)
    site.put(b"anything", "1.2.3.4", "1.2.3", fault="uid_mismatch")
    site.send(seed=2)
    site.screen()
    decisions = site.decisions()
    assert len(decisions) == 3
    assert {reason for d in decisions for reason in d.reasons} == {Reason.UNMATCHED, Reason.UID_MISMATCH}
    found = {d.reasons: Recorder(site).again(d) for d in decisions}
    assert {one.outcome for one in found.values()} == {Outcome.AGREES}
    assert [note for note in found[(Reason.UNMATCHED,)].notes if "taken as recorded" in note]
    assert found[(Reason.UID_MISMATCH,)].notes == ()


def test_a_conflict_agrees_while_the_ledger_knows_the_other_data_set(site):
    site.send(CLEAN, seed=3)
    site.screen()
    site.send(CLEAN, seed=3, InstitutionName="another")
    site.screen()
    first, second = site.decisions()
    assert Reason.UID_CONFLICT in second.reasons
    recorder = Recorder(site)
    assert [recorder.again(d).outcome for d in (first, second)] == [Outcome.AGREES] * 2
    # The same decision in a site whose ledger has no first one: nothing was in conflict.
    there = recorder.locator.locate(second)
    past = replace(past_of(site.ledger, second), others=frozenset())
    assert recorder.reproducer.reproduce(second, there, past).outcome is Outcome.DIFFERS
    unknown = recorder.reproducer.reproduce(second, there, None)
    assert unknown.outcome is Outcome.AGREES
    assert any("uid_conflict" in note for note in unknown.notes)


def test_a_study_that_stays_held_is_told_apart(site):
    site.send(SUSPECT, seed=1, study="1.2.9")
    site.screen()
    site.send(CLEAN, seed=2, study="1.2.9")
    site.screen()
    _, late = site.decisions()
    assert Reason.STUDY_QUARANTINED in late.reasons
    again = Recorder(site).again(late)
    assert again.outcome is Outcome.AGREES
    assert again.notes == ("history: the study was in quarantine already, as recorded",)
    forgotten = replace(late, reasons=(), version=1)
    assert any("by the ledger" in note for note in Recorder(site).again(replace(late, version=1)).notes)
    assert Recorder(site).again(forgotten).outcome is Outcome.DIFFERS  # quarantined, and for nothing


def test_found_in_quarantine_in_the_store_in_a_queue_and_under_another_name(site):
    site.send(SUSPECT, seed=1)
    site.send(CLEAN, seed=2)
    site.screen()
    held, forwarded = sorted(site.decisions(), key=lambda d: d.disposition.value, reverse=True)
    assert Recorder(site).again(held).outcome is Outcome.AGREES
    (path,) = (site.spool.root / "store" / forwarded.decision_id).iterdir()
    path.unlink()  # still in the queue for its destination
    assert Recorder(site).again(forwarded).outcome is Outcome.AGREES
    (path,) = kept(site, held)
    path.rename(path.with_name("renamed.dcm"))
    assert Recorder(site).again(held).outcome is Outcome.AGREES
    site.spool.reject(held.decision_id)
    assert Recorder(site).again(held).outcome is Outcome.AGREES


@pytest.mark.parametrize("what", ["pixel", "receipt", "cut off", "replaced", "link"])
def test_an_altered_instance_is_an_alarm(site, what):
    site.send(SUSPECT, seed=1)
    site.send(SUSPECT, seed=2)
    site.screen()
    decision, other = site.decisions()
    (path,), (foreign,) = kept(site, decision), kept(site, other)
    match what:
        case "pixel":
            tampered(path)
        case "receipt":
            changed = path.read_bytes().replace(b'"series_instance_uid":"2.', b'"series_instance_uid":"1.')
            assert changed != path.read_bytes()
            path.write_bytes(changed)
        case "cut off":
            path.write_bytes(path.read_bytes()[:-10])
        case "replaced":
            path.write_bytes(foreign.read_bytes())
        case "link":
            path.unlink()
            path.symlink_to(foreign)
    again = Recorder(site).again(decision)
    assert again.outcome is Outcome.ALTERED
    assert again.altered == (decision.instances[0].sop_instance_uid,)
    assert again.problems[0].startswith("ALARM")
    assert again.recomputed == 0


def test_what_was_altered_before_it_was_screened_agrees(site):
    tampered(site.send(CLEAN).path)
    site.screen()
    decision = only(site)
    assert not ALWAYS_HELD.isdisjoint(decision.reasons)
    assert Recorder(site).again(decision).outcome is Outcome.AGREES


def test_what_is_left_of_a_study_is_compared(site):
    for seed in (1, 2, 3):
        site.send(SUSPECT if seed == 1 else CLEAN, seed=seed, study="1.2.9")
    site.screen()
    decision = only(site)
    gone = next(i for i in decision.instances if not i.reasons)
    (site.spool.root / "quarantine" / decision.decision_id / gone.file_name).unlink()
    missing = Recorder(site).again(decision)
    assert missing.outcome is Outcome.MISSING
    key = (decision.decision_id, str(gone.sop_instance_uid), gone.sha256)
    recorder = Recorder(site, removals={key: Removal("retention_removed", decision.decided_at)})
    again = recorder.again(decision)
    assert (again.outcome, again.recomputed, again.instances) == (Outcome.GONE, 2, 3)
    assert f"{decision.decided_at:%Y-%m-%d %H:%M:%S}" in again.problems[0]
    assert again.notes == ("2 of 3 instances were compared, the study as a whole not",)
    # What is left counts: a disagreement in it is one.
    site.scorer.thresholds = THRESHOLDS
    recorder.reproducer._models[0].scorer._one = lambda code: StandInScorer()._one(CLEAN)
    assert recorder.again(decision).outcome is Outcome.DIFFERS


def test_another_bundle_is_named(site):
    site.send(CLEAN)
    site.screen()
    decision = only(site)
    other = StandInScorer()
    other.name, other.fingerprint = "newer", "a" * 64
    again = Recorder(site, other).again(decision)
    assert again.outcome is Outcome.OTHER_MODEL
    (problem,) = again.problems
    assert "stand-in" in problem
    assert "f" * 16 in problem
    assert "newer aaaaaaaaaaaaaaaa" in problem
    assert "--bundle" in problem
    assert Recorder(site, other, site.scorer).again(decision).outcome is Outcome.AGREES


def test_another_calibration_of_the_same_bundle_is_another_model(site):
    site.send(CLEAN)
    site.screen()
    decision = only(site)
    newer = StandInScorer()
    newer.thresholds = replace(THRESHOLDS, statistic=3.001)
    newer.enrolment_sha256 = "d" * 64
    recorder = Recorder(site, newer)
    for _ in range(2):  # the second time it is known beforehand
        again = recorder.again(decision)
        assert again.outcome is Outcome.OTHER_MODEL
        assert "decided with" in again.problems[0]
        assert "--enrolment" in again.problems[0]
        assert again.recomputed == 0
    # Both at hand: the one that decided is used, whatever their order.
    assert Recorder(site, site.scorer, newer).again(decision).outcome is Outcome.AGREES
    assert Recorder(site, newer, site.scorer).again(decision).outcome is Outcome.AGREES


@pytest.mark.parametrize(("shift", "outcome"), [(0.03, Outcome.AGREES), (0.06, Outcome.DIFFERS)])
def test_scores_may_lie_apart_by_the_tolerance(site, shift, outcome):
    site.send(CLEAN)
    site.screen()
    shifted = StandInScorer()
    shifted._one = lambda code: replace(StandInScorer()._one(code), statistic=1.0 + shift)
    again = Recorder(site, shifted).again(only(site))
    assert again.outcome is outcome
    assert again.largest_distance == pytest.approx(shift)
    if outcome is Outcome.DIFFERS:
        assert any(difference.what.endswith("scores.worst.statistic") for difference in again.differences)
        assert all(difference.by == pytest.approx(shift) for difference in again.differences)
    assert Recorder(site, shifted, tolerance=Tolerance(0.1, 0.0)).again(only(site)).outcome is Outcome.AGREES


def test_another_verdict_is_a_difference_however_wide_the_tolerance(site):
    site.send(SUSPECT)
    site.screen()
    blind = StandInScorer()
    blind._one = lambda code: StandInScorer()._one(CLEAN)
    again = Recorder(site, blind, tolerance=Tolerance(1e9, 1e9)).again(only(site))
    assert again.outcome is Outcome.DIFFERS
    assert {d.what.rpartition(": ")[2] for d in again.differences} == {"verdict", "reasons", "action", "disposition"}


def test_a_policy_that_changed_since_is_a_note(site):
    site.send(LOW_MARGIN)
    site.screen()
    site.policy = Policy(inconclusive="forward")
    again = Recorder(site).again(only(site))
    assert again.outcome is Outcome.AGREES
    assert [note.partition(":")[0] for note in again.notes] == ["policy", "policy"]


def test_an_action_that_no_policy_explains_is_a_difference(site):
    site.send(SUSPECT)
    site.screen()
    decision = only(site)
    lenient = replace(decision, instances=(replace(decision.instances[0], action="forward"),))
    assert [d.what.rpartition(": ")[2] for d in Recorder(site).again(lenient).differences] == ["action"]


def test_a_late_study_that_nobody_looked_at_is_taken_as_recorded(site):
    site.policy = Policy(overdue="forward")
    screener = site.screener()
    for seed in range(1, 13):  # never quiet
        site.send(SUSPECT, seed=seed, study="1.2.9")
        screener.step()
        site.now_s += 9
    while screener.step():
        pass
    decision = site.decisions()[0]
    assert Reason.OVERDUE in decision.reasons
    again = Recorder(site).again(decision)
    assert again.outcome is Outcome.AGREES, again
    assert "that it came too late (overdue) is taken as recorded" in again.notes


def test_places_are_told(site):
    site.send(SUSPECT, seed=1)
    site.screen()
    decision = only(site)
    locator = Locator(site.spool, site.ledger, {})
    (found,) = locator.locate(decision)
    assert isinstance(found, Located)
    tampered(found.instance.path)
    (found,) = locator.locate(decision)
    assert isinstance(found, Altered)
    assert found.place == f"quarantine/{decision.decision_id}"
    kept(site, decision)[0].unlink()
    assert locator.locate(decision) == [Lost(decision.instances[0], None)]


def test_a_failed_claim_that_was_screened_again_is_found_under_its_later_decision(site):
    instance = site.send(CLEAN, seed=1)
    data = instance.path.read_bytes()[instance.data_offset :]
    site.screen()
    decision = only(site)
    for path in site.spool.root.glob("*/**/*.dcm"):
        path.unlink()
    assert isinstance(Locator(site.spool, site.ledger, {}).locate(decision)[0], Lost)
    receipt = instance.receipt
    site.put(data, receipt.sop_instance_uid, receipt.study_instance_uid, series=receipt.series_instance_uid)
    assert isinstance(Locator(site.spool, site.ledger, {}).locate(decision)[0], Located)  # in incoming/
    site.screen()
    assert len(site.decisions()) == 2
    assert Recorder(site).again(decision).outcome is Outcome.AGREES


# Numbers -------------------------------------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6)


@given(finite, finite)
def test_the_tolerance_is_what_it_says(recorded, recomputed):
    is_near = abs(recomputed - recorded) <= 0.02 + 0.02 * abs(recorded)
    found = list(differences({"a": [recorded]}, {"a": [recomputed]}, Tolerance(), "scores"))
    assert (not found) == is_near
    assert all(d.what == "scores.a[0]" and d.by == abs(recomputed - recorded) for d in found)


@pytest.mark.parametrize(
    ("recorded", "recomputed", "what"),
    [
        ({"a": float("nan")}, {"a": float("nan")}, None),
        ({"a": float("inf")}, {"a": float("inf")}, None),
        ({"a": float("inf")}, {"a": 1e300}, "s.a"),
        ({"a": 1.0}, {"a": float("nan")}, "s.a"),
        ({"a": 1}, {"a": 1.0}, None),
        ({"a": True}, {"a": 1}, "s.a"),
        ({"a": None}, {"a": 0.0}, "s.a"),
        ({"a": "x"}, {"a": "y"}, "s.a"),
        ({"a": [1, 2]}, {"a": [1]}, "s.a"),
        ({"a": 1}, {}, "s.a"),
        ({}, {"a": 1}, None),
        ({"passes": 5}, {"passes": 41}, None),
        ({"guard": {"votes": 100, "outcome": "CERTIFIED"}}, {"guard": {"votes": 101, "outcome": "CERTIFIED"}}, None),
        ({"guard": {"outcome": "CERTIFIED"}}, {"guard": {"outcome": "DISAGREE"}}, "s.guard.outcome"),
        ({"guard": {"outcome": "CERTIFIED"}}, {"guard": None}, "s.guard"),
        ({"frames": 100}, {"frames": 101}, "s.frames"),
        ({"calibration_images": 300}, {"calibration_images": 301}, "s.calibration_images"),
        ({"study": {"images": 100}}, {"study": {"images": 101}}, "s.study.images"),
        ({"study": {"suspect_count": 100}}, {"study": {"suspect_count": 101}}, "s.study.suspect_count"),
        ({"study": {"suspects": [3, 100]}}, {"study": {"suspects": [100, 3]}}, None),
        ({"study": {"suspects": [3, 100]}}, {"study": {"suspects": [3, 101]}}, "s.study.suspects"),
        ({"study": {"suspects": [3]}}, {"study": {"suspects": [3, 100]}}, "s.study.suspects"),
        ({"study": {"suspects": []}}, {"study": {"suspects": None}}, "s.study.suspects"),
        ({"study": {"flagged": True}}, {"study": {"flagged": False}}, "s.study.flagged"),
        ({"study": {"p_value": 0.5}}, {"study": {"p_value": 0.51}}, None),
        ({"guard": {"draws": 1000}}, {"guard": {"draws": 1001}}, "s.guard.draws"),
        ({"guard": {"votes": 100}}, {"guard": {"votes": 103}}, "s.guard.votes"),
        ({"guard": {"eps": 0.01}}, {"guard": {"eps": 0.0101}}, "s.guard.eps"),
        ({"guard": {"sigma": 0.01}}, {"guard": {"sigma": 0.0101}}, "s.guard.sigma"),
        ({"guard": {"alpha": 0.001}}, {"guard": {"alpha": 0.0011}}, "s.guard.alpha"),
        ({"guard": {"CERTIFIED": 100}}, {"guard": {"CERTIFIED": 101}}, "s.guard.CERTIFIED"),
        ({"worst": {"levels": [0.03, 0.06]}}, {"worst": {"levels": [0.03, 0.061]}}, "s.worst.levels[1]"),
        ({"worst": {"frame": 1}}, {"worst": {"frame": 2}}, "s.worst.frame"),
        ({"enrolment": "a"}, {"enrolment": "b"}, None),  # told apart, beforehand
        (None, None, None),
        (None, {}, "s"),
        ({}, None, "s"),
    ],
)  # fmt: skip
def test_scores_are_compared_value_by_value(recorded, recomputed, what):
    found = [d.what for d in score_differences(recorded, recomputed, Tolerance(), "s")]
    assert found == ([] if what is None else [what])


def test_of_two_frames_alike_either_may_be_the_worst():
    score = asdict(StandInScorer()._one(CLEAN))
    first = {"frames": 2, "statistics": [5.0, 5.01], "worst": score | {"statistic": 5.01, "frame": 1, "margin": 9.0}}
    second = {"frames": 2, "statistics": [5.02, 5.01], "worst": score | {"statistic": 5.02, "frame": 0}}
    assert not list(score_differences(first, second, Tolerance(), "s"))
    apart = {**first, "statistics": [3.0, 5.01]}
    assert list(score_differences(apart, second, Tolerance(), "s"))
