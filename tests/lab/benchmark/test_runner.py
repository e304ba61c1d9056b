from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import RESULT, Cell, in_order
from dicomguard.lab.benchmark.finished import hand_over, states, take_over
from dicomguard.lab.benchmark.runner import Runner, compute


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import toy_kinds

    return toy_kinds.KINDS


def number(value: int, **more: object) -> Cell:
    return Cell.of("number", "1", f"number {value}", value=value, **more)


def total(*cells: Cell, **more: object) -> Cell:
    return Cell.of("total", "1", "total", {f"n{place}": cell for place, cell in enumerate(cells)}, **more)


def test_the_key_stands_for_every_input_and_not_for_the_title() -> None:
    one = number(1)
    others = [
        number(2),
        Cell.of("number", "2", "number 1", value=1),
        Cell.of("other", "1", "number 1", value=1),
        Cell.of("number", "1", "number 1", {"a": number(3)}, value=1),
        Cell.of("number", "1", "number 1", {"b": number(3)}, value=1),
        Cell.of("number", "1", "number 1", {"a": number(4)}, value=1),
    ]
    assert len({one.key, *(other.key for other in others)}) == 7
    assert Cell.of("number", "1", "another title", value=1).key == one.key
    assert total(one).key != total(number(2)).key, "what a need rests on counts too"
    with pytest.raises(TypeError):
        Cell.of("number", "1", "", value=object())


def test_what_is_needed_comes_first_and_once() -> None:
    a, b = number(1), number(2)
    both, again = total(a, b), total(a, total(a, b))
    assert [cell.title for cell in in_order([again, both])] == ["number 1", "number 2", "total", "total"]


def test_a_result_is_whole_or_not_there(tmp_path: Path, kinds) -> None:
    cell = number(3)
    assert cell.result(tmp_path) is None
    found = compute(cell, kinds["number"], root=tmp_path, data=tmp_path)
    assert (found["value"], found["runs"], found["title"], found["settings"]) == (3, 1, "number 3", {"value": 3})
    assert compute(cell, kinds["number"], root=tmp_path, data=tmp_path) == found, "kept, not computed again"
    (cell.folder(tmp_path) / RESULT).rename(cell.folder(tmp_path) / "result.partial")
    assert cell.result(tmp_path) is None
    assert compute(cell, kinds["number"], root=tmp_path, data=tmp_path)["runs"] == 2
    (cell.folder(tmp_path) / RESULT).write_text('{"value"')
    with pytest.raises(DicomguardError, match="Delete its folder"):
        cell.result(tmp_path)
    with pytest.raises(DicomguardError, match="is not computed"):
        compute(total(number(9)), kinds["total"], root=tmp_path, data=tmp_path)


@pytest.mark.slow
def test_workers_compute_what_is_needed_first_and_nothing_twice(tmp_path: Path, kinds) -> None:
    seen: list[tuple[str, float]] = []
    runner = Runner(
        kinds,
        tmp_path,
        tmp_path / "data",
        workers=2,
        device="cpu",
        show=lambda cell, share: seen.append((cell.title, share)),
    )
    sum_of_three = total(number(1), total(number(2), number(3)), plus=10)
    outcome = runner.run([sum_of_three])
    assert (len(outcome.done), outcome.failed, outcome.skipped, outcome.kept) == (5, [], [], [])
    result = sum_of_three.result(tmp_path)
    assert result is not None
    assert result["value"] == 16
    assert ("number 1", 0.5) in seen
    assert ("total", 1.0) in seen
    again = runner.run([sum_of_three])
    assert (len(again.kept), again.done) == (5, [])
    shutil.rmtree(number(1).folder(tmp_path))
    again = runner.run([sum_of_three])
    assert (len(again.kept), again.done) == (4, []), "nobody needs it any more"
    compute(number(1), kinds["number"], root=tmp_path, data=tmp_path)
    assert json.loads((number(1).folder(tmp_path) / RESULT).read_text())["runs"] == 1


@pytest.mark.slow
def test_a_cell_that_fails_takes_only_what_needs_it_along(tmp_path: Path, kinds) -> None:
    late = number(1, until=2)
    dies, breaks = Cell.of("dies", "1", "dies"), Cell.of("breaks", "1", "breaks")
    needing = total(late, number(2))
    further = total(needing)
    runner = Runner(kinds, tmp_path, tmp_path, workers=3)
    outcome = runner.run([further, dies, breaks, number(2), number(4)])
    why = {cell.title: reason for cell, reason in outcome.failed}
    assert why.keys() == {"number 1", "dies", "breaks"}
    assert why["number 1"] == "not yet. Run again."
    assert "-9" in why["dies"]
    assert why["breaks"] == "unforeseen ZeroDivisionError: by nothing"
    assert {cell.key for cell in outcome.skipped} == {needing.key, further.key}
    assert {cell.key for cell in outcome.done} == {number(2).key, number(4).key}
    (late.folder(tmp_path) / "error.txt").read_text().index("Traceback")
    again = runner.run([further])
    assert {cell.key for cell in again.done} == {late.key, needing.key, further.key}
    found = further.result(tmp_path)
    assert found is not None
    assert found["value"] == 3


@pytest.mark.slow
def test_a_failure_that_comes_last_ends_the_run(tmp_path: Path, kinds) -> None:
    late = number(1, until=2)
    outcome = Runner(kinds, tmp_path, tmp_path, workers=1).run([total(late)])
    assert [cell for cell, _ in outcome.failed] == [late]
    assert outcome.skipped == [total(late)]


def test_what_another_victim_left_is_made_again(tmp_path: Path, kinds) -> None:
    victim = Cell.of("number", "1", "victim", value=1)
    judged = Cell.of("total", "1", "judged", {"victim": victim}, plus=1)
    runner = Runner(kinds, tmp_path, tmp_path, workers=1)
    runner.run([judged])
    victim.keep(tmp_path, {"value": 1, "fingerprint": "old"})
    judged.keep(tmp_path, {"value": 2, "fingerprint": "old"})
    assert runner.run([judged]).kept == [victim, judged]
    victim.keep(tmp_path, {"value": 5, "fingerprint": "new"})
    outcome = runner.run([judged])
    assert outcome.done == [judged]
    assert judged.result(tmp_path)["value"] == 6


def test_a_run_goes_on_on_another_machine(tmp_path: Path, kinds) -> None:
    here, there, packed = tmp_path / "here", tmp_path / "there", tmp_path / "packed"
    cell, open_one = total(number(1)), number(7)
    hand_over(open_one, here, packed)
    assert not packed.exists(), "there is nothing to hand over yet"
    found = {"value": 4, "charts": ["bars.png"], "versions": {}}
    cell.folder(here).mkdir(parents=True)
    for name in ("bars.png", "patient.png"):
        (cell.folder(here) / name).write_bytes(name.encode())
    cell.keep(here, found)
    hand_over(cell, here, packed)
    assert {path.name for path in (packed / cell.key).iterdir()} == {RESULT, "bars.png"}, "no picture of the data"
    assert take_over(cell, there, packed)
    assert cell.result(there) == found
    assert (cell.folder(there) / "bars.png").read_bytes() == b"bars.png"
    assert not take_over(cell, there, packed), "it is there"
    assert not take_over(total(number(2)), there, packed), "of other inputs"
    outcome = Runner(kinds, there, tmp_path, workers=1).run([cell])
    assert (outcome.kept, outcome.done) == ([cell], []), "what it was made of is not made again"
    cell.keep(here, found | {"value": 5})
    hand_over(cell, here, packed)
    assert take_over(cell, tmp_path / "third", packed)
    assert cell.result(tmp_path / "third")["value"] == 5, "what was found since"
    (packed / cell.key / RESULT).write_text("[")
    with pytest.raises(DicomguardError, match=r"result\.json cannot be read"):
        take_over(cell, tmp_path / "elsewhere", packed)


def test_a_list_says_what_a_run_would_do(tmp_path: Path) -> None:
    here, there, packed = tmp_path / "here", tmp_path / "there", tmp_path / "packed"
    finished, open_one = total(number(1)), total(number(2), number(3))
    finished.keep(here, {"value": 2})
    hand_over(finished, here, packed)
    number(2).keep(there, {"value": 2})
    tables = [finished, open_one]
    expected = {number(1): "not needed", number(2): "kept", number(3): "to do", finished: "finished", open_one: "to do"}
    assert states(tables, there, packed) == {cell.key: state for cell, state in expected.items()}
    alone = states(tables, there, None)
    assert (alone[number(1).key], alone[finished.key]) == ("to do", "to do")


def test_a_part_of_a_run_leaves_out_what_only_kept_cells_need(tmp_path: Path, kinds) -> None:
    kept, needed = total(number(1)), total(number(2))
    kept.keep(tmp_path, {"value": 2})
    runner = Runner(kinds, tmp_path, tmp_path, workers=1)
    outcome = runner.run([kept, needed, number(3)], only="number")
    assert [cell.key for cell in outcome.done] == [number(2).key, number(3).key]
    assert runner.run([kept, needed, number(3)]).done == [needed]
