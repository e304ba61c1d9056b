"""What is drawn from decisions for the drift watch, and that a turn of a state is recorded once."""

import math
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from dicomguard.ledger import DrawGroup, Ledger, Tally, tables
from dicomguard.ledger.draws import drawn_from
from tests.ledger.conftest import KEY


def scored(decision, *, p, images=99, enrolment="e" * 64, bundle="chest-xray"):
    """The decision as if every instance had been scored; `p` holds a list for each instance, or one for all."""
    lists = p if p and isinstance(p[0], list) else [p] * len(decision.instances)
    parts = tuple(
        replace(
            instance,
            bundle=bundle,
            scores={
                "frames": len(values),
                "enrolment": enrolment,
                "calibration_images": images,
                "thresholds": {"alpha": 0.05},
                "p_values": values,
                "statistics": [1.0] * len(values),
            },
        )
        for instance, values in zip(decision.instances, lists, strict=True)
    )
    return replace(decision, instances=parts)


class TestDrawn:
    def test_one_frame_stands_for_the_study_and_each_has_the_same_chance(self, make_decision):
        decision = make_decision(instances=2, patient_key="k")
        found = Counter()
        for number in range(2000):
            (draw,) = drawn_from(scored(replace(decision, decision_id=f"{number:032x}"), p=[[0.1, 0.2, 0.3], [0.4]]))
            found[draw.p_value] += 1
        assert all(400 < found[p] < 600 for p in (0.1, 0.2, 0.3, 0.4))
        assert (draw.sender, draw.patient_key, draw.images, draw.alpha) == ("MODALITY", "k", 99, 0.05)
        assert drawn_from(scored(decision, p=[0.1, 0.2])) == drawn_from(scored(decision, p=[0.1, 0.2]))

    def test_each_bundle_has_its_own(self, make_decision):
        one, two = scored(make_decision(), p=[0.5]), scored(make_decision(), p=[0.25], bundle="brain-mri")
        both = replace(one, instances=one.instances + two.instances)
        assert {(draw.bundle, draw.p_value) for draw in drawn_from(both)} == {("chest-xray", 0.5), ("brain-mri", 0.25)}

    @pytest.mark.parametrize("p", [[], [math.nan], [None], [0.0], [1.5], ["0.5"]])
    def test_what_has_no_p_value_is_no_draw(self, make_decision, p):
        assert drawn_from(scored(make_decision(), p=p)) == []

    def test_without_an_enrolment_nothing_is_drawn(self, make_decision):
        decision = make_decision()
        assert drawn_from(decision) == []
        assert drawn_from(scored(decision, p=[0.5], images=None)) == []
        assert drawn_from(scored(decision, p=[0.5], enrolment=None)) == []
        assert drawn_from(replace(decision, instances=())) == []

    def test_frames_without_one_are_passed_over(self, make_decision):
        (draw,) = drawn_from(scored(make_decision(), p=[math.nan, 0.5, None]))
        assert draw.p_value == 0.5

    def test_a_frame_whose_statistic_is_not_finite_is_passed_over(self, make_decision):
        decision = scored(make_decision(instances=1), p=[0.01, 0.5, 0.01, 0.01])
        decision.instances[0].scores["statistics"] = [math.nan, 2.0, math.inf, None]
        (draw,) = drawn_from(decision)
        assert draw.p_value == 0.5
        for others in ([math.nan] * 4, [2.0], []):
            decision.instances[0].scores["statistics"] = others
            assert drawn_from(decision) == []
        del decision.instances[0].scores["statistics"]
        assert drawn_from(decision) == []


class TestRecorded:
    def test_with_the_decision_once_for_a_study_and_a_bundle(self, ledger, make_decision):
        ledger.record_decisions([scored(make_decision("1.2.3"), p=[1 / 3])])
        ledger.record_decisions([scored(make_decision("1.2.3", version=2), p=[0.5])])
        ledger.record_decisions([scored(make_decision("1.2.4"), p=[0.5])])
        ledger.record_decisions([make_decision("1.2.5")])
        found = ledger.draws()
        assert [(draw.study_instance_uid, draw.p_value) for draw in found] == [("1.2.3", 1 / 3), ("1.2.4", 0.5)]
        assert ledger.draws(after=found[0].number) == found[1:]
        assert ledger.verify() == []

    @pytest.mark.parametrize("column", [c.name for c in tables.draws.columns if c.name not in {"id", "writer", "seq"}])
    def test_an_edit_of_any_column_is_found(self, ledger, database, make_decision, column):
        ledger.record_decisions([scored(make_decision(), p=[1 / 3])])
        assert ledger.verify() == []
        with closing(sqlite3.connect(database)) as raw, raw:
            raw.execute("DROP TRIGGER draws_no_update")
            assert raw.execute(f"UPDATE draws SET {column} = COALESCE({column}, '') || '7'").rowcount == 1
        kinds = {(problem.kind, problem.table) for problem in ledger.verify()}
        assert ("schema", "draws") in kinds
        assert {kind for kind, _ in kinds} - {"schema"} in ({"edited"}, {"unlinked"}, {"edited", "unlinked"})


class TestGroups:
    def test_the_newest_of_a_group_and_how_many_there_are(self, ledger, make_decision):
        def draw(number, peer, **changes):
            decision = replace(make_decision(f"1.2.{number}"), peer=peer)
            ledger.record_decisions([scored(decision, p=[number / 100], **changes)])

        for number in range(1, 9):
            draw(number, "CR1@10.0.0.1" if number % 2 else "CT2@10.0.0.2")
        draw(9, "CR1@10.0.0.1", enrolment="a" * 64)
        found = ledger.draw_groups()
        cr, ct = (DrawGroup("chest-xray", "e" * 64, 99, 0.05, sender) for sender in ("CR1", "CT2"))
        assert found == {cr: Tally(4, 7), ct: Tally(4, 8), replace(cr, enrolment="a" * 64): Tally(1, 9)}
        assert [d.number for d in ledger.newest_draws(cr, 2, through=100)] == [5, 7]
        assert [d.number for d in ledger.newest_draws(cr, 2, through=6)] == [3, 5]
        assert [d.number for d in ledger.newest_draws(cr.of_all, 3, through=100)] == [6, 7, 8]
        assert (ledger.count_draws(cr, through=5), ledger.count_draws(cr.of_all, through=5)) == (3, 5)
        assert [DrawGroup.of(d) for d in ledger.draws(after=8)] == [replace(cr, enrolment="a" * 64)]
        assert ledger.newest_draws(ct, 0, through=100) == []


class TestTurns:
    def test_of_several_that_see_it_one_records_it(self, url, ledger, heads):
        def is_news(last):
            return last is None or last.kind != "drift_moved"

        def turn(_):
            with Ledger.open(url, KEY, "screen", heads=heads) as mine:
                return mine.record_turn("drift_moved", "b", {}, kinds=("drift_moved", "drift_over"), is_news=is_news)

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(turn, range(8))) == [False] * 7 + [True]
        assert [event.kind for event in ledger.events()] == ["drift_moved"]
        assert ledger.events()[0].is_alarm
        ledger.record_event("drift_over", "b", {})
        ledger.record_event("drift_moved", "another", {})
        assert turn(0)
        assert ledger.verify() == []
