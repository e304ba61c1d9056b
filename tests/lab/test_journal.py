from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicomguard.lab.measure import Journal, to_evidence, to_row
from dicomguard.scoring.calibration import Evidence
from dicomguard.scoring.consistency import Observation

DRAWS = ((0, 0), (1, 0), (1, 1))


def evidence(questions: int = 1, *, is_whole: bool = True) -> Evidence:
    rng = np.random.default_rng(questions)
    seen = Observation(rng.normal(size=(questions, 2)), rng.normal(size=(3, questions, 2)), DRAWS)
    return Evidence(seen, rng.random(questions), 0.75) if is_whole else Evidence(seen)


@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("is_whole", [True, False])
def test_evidence_comes_back_from_its_row(questions: int, is_whole: bool) -> None:
    before = evidence(questions, is_whole=is_whole)
    after = to_evidence(to_row(before), DRAWS)
    assert to_row(after) == to_row(before)
    assert np.allclose(after.seen.noisy, before.seen.noisy, atol=1e-5)
    assert after.seen.draws == DRAWS
    assert after.guard_share == before.guard_share
    assert (after.distances is None) == (not is_whole)


def test_a_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "j.jsonl"
    journal = Journal(path, "f")
    for key in ("a", "b"):
        journal.put(key, {"tried": True, **to_row(evidence())})
    assert journal["a"]["tried"]
    with path.open("a") as file:
        file.write('{"key": "c", "finger')  # stopped while writing
    again = Journal(path, "f")
    assert "a" in again
    assert "b" in again
    assert "c" not in again
    assert again["b"]["fingerprint"] == "f"
    assert to_row(to_evidence(again["b"], DRAWS)) == to_row(evidence())
    assert "a" not in Journal(path, "another fingerprint")


def test_after_a_line_that_was_cut_off_others_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, "f").put("a", {"n": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "finger')
    resumed = Journal(path, "f")
    resumed.put("c", {"n": 3})
    resumed.put("d", {"n": 4})
    again = Journal(path, "f")
    assert [key in again for key in "abcd"] == [True, False, True, True]


@pytest.mark.parametrize("line", ["[]", "3", "null", '{"fingerprint": "f"}', ""])
def test_a_line_that_is_no_row_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(line + "\n")
    Journal(path, "f").put("a", {"n": 1})
    assert Journal(path, "f")["a"]["n"] == 1
