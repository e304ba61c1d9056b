from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from dicomguard.cli.lab.benchmark import _instead
from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark import suites
from dicomguard.lab.benchmark.cell import Cell
from dicomguard.lab.benchmark.profile import PROFILES, Profile, Reduction, named
from dicomguard.lab.benchmark.suites import adaptive, natural, planning
from dicomguard.lab.benchmark.suites.planning import Plan, Where


def _refuse(bits: int) -> None:
    if bits < 12:
        raise DicomguardError("a CT image has 12 to 16 stored bits.")


def _set(planes: int, bits: int, make: Callable[[int], None] = lambda _bits: None) -> SimpleNamespace:
    return SimpleNamespace(planes=planes, bits=bits, cases=lambda _split: [SimpleNamespace(make=make)])


_SETS = {
    "fundus": _set(3, 8),
    "breast_us": _set(1, 8),
    "lung_ct": _set(1, 12, _refuse),
    "": _set(1, 12),
}


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    """Plans without data: what a set consists of is not looked at."""
    monkeypatch.setattr(planning, "data_digest", lambda name, side, _where: f"{name}-{side}")
    monkeypatch.setattr(planning, "_opened", lambda name, _side, _where: _SETS.get(name, _SETS[""]))
    monkeypatch.setattr(planning, "is_pretrained", lambda _family: True)
    monkeypatch.setattr(natural, "data_digest", lambda name, side, _where: f"{name}-{side}")
    return Where(tmp_path, tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("suite", suites.SUITES)
def test_every_suite_has_a_plan_of_every_size(suite: str, profile: str, where: Where) -> None:
    made = suites.plan(suite, named(profile), where)
    cells = made.everything()
    assert len({cell.key for cell in cells}) == len(cells)
    assert made.cells.keys() == suites.plan(suite, named(profile), where).cells.keys()
    again = {cell.key for cell in suites.plan(suite, named(profile), where).everything()}
    assert again == {cell.key for cell in cells}, "the same plan twice is the same cells"


def test_the_grids_are_those_of_the_papers(where: Where) -> None:
    cells = suites.plan("noise-consistency", named("cpu"), where).everything()
    judged = [cell for cell in cells if cell.kind == "judge"]
    assert len(judged) == 9, "three families, three image sets"
    for cell in judged:
        roles = {role for role, _ in cell.needs}
        assert {f"attack: {name}" for name in ("early-stopped FGSM", "DeepFool", "PGD 0.016")} <= roles
        levels = [need.given for role, need in cell.needs if role.startswith("validation: ")]
        assert {one["split"] for one in levels} == {"validation"}, "the paper's level is not chosen on test files"
        assert {one["attack"] for one in levels} == {"early-stopped BIM", "PGD 0.008"}
    enrolled = [cell for cell in cells if cell.kind == "enrolled"]
    assert {(cell.given["data_set"], cell.given["eps"]) for cell in enrolled} == {
        ("chest_xray", 0.004),
        ("brain_mri", 0.004),
        ("fundus", None),
    }, "a guard sees gray pictures"
    taught = [cell for cell in suites.plan("joel2023", named("cpu"), where).everything() if cell.kind == "taught"]
    assert {dict(c.needs)["victim"].given["data_set"] for c in taught} == {"brain_mri", "lung_ct", "breast_us"}
    assert {c.given["protocol"] for c in taught} == {"closed", "paper", "floats", "change"}
    for cell in taught:
        needs = dict(cell.needs)
        harmless = [role for role in needs if role.startswith("harmless: ")]
        assert bool(harmless) == (cell.given["protocol"] in {"closed", "floats"})
        tested = f"test: random noise {needs['taught on'].given['eps']:g}"
        assert tested in needs or cell.given["protocol"] == "closed", "noise of the strength that was taught on"
        published = cell.given["protocol"] in {"paper", "floats"} or needs["victim"].given["data_set"] == "breast_us"
        may_be_8 = needs["victim"].given["data_set"] != "lung_ct"
        assert needs["clean"].given["bits"] == (8 if published and may_be_8 else 12)
        assert {need.given["bits"] for role, need in needs.items() if role != "victim"} == {
            needs["clean"].given["bits"]
        }


def test_another_data_set_can_be_taken_for_one_that_a_suite_names(where: Where) -> None:
    other = replace(where, instead=(("brain_mri", "lung_ct"), ("lung_ct", "brain_mri")))
    taught = [cell for cell in suites.plan("joel2023", named("cpu"), other).everything() if cell.kind == "taught"]
    at = {
        dict(cell.needs)["taught on"].given["eps"]
        for cell in taught
        if "lung_ct" in cell.title and cell.given["protocol"] == "paper"
    }
    assert at == {0.008}, "what is taken for a task is taught as the task is"
    judged = {
        cell.title
        for cell in suites.plan("noise-consistency", named("cpu"), other).everything()
        if cell.kind == "judge"
    }
    assert any("lung_ct" in title for title in judged)
    assert not any("brain_mri" in title for title in judged)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["lung_ct=lidc_idri"], (("lung_ct", "lidc_idri"),)),
        (["brain_mri=lung_ct", "lung_ct=brain_mri"], (("brain_mri", "lung_ct"), ("lung_ct", "brain_mri"))),
        (["lung_ct=breast_us", "breast_us=mine"], (("breast_us", "mine"), ("lung_ct", "breast_us"))),
        (["lung_ct=brain_mri"], None),
        (["lung_ct=a", "lung_ct=b"], None),
        (["lungs=a"], None),
        (["lung_ct="], None),
        (["lung_ct=a/b"], None),
    ],
)
def test_data_sets_that_are_taken_instead_stand_on_the_command_line(
    words: list[str], found: tuple[tuple[str, str], ...] | None
) -> None:
    if found is not None:
        assert _instead(words) == found
        return
    with pytest.raises(typer.BadParameter):
        _instead(words)


def test_strangers_are_of_as_many_planes_and_another_set(where: Where) -> None:
    cells = suites.plan("natural", named("cpu"), where).everything()
    foreign = [cell for cell in cells if cell.kind == "foreign"]
    assert foreign
    for cell in foreign:
        own = dict(cell.needs)["victim"].given["data_set"]
        assert own != cell.given["data_set"]
        assert (own == "fundus") == (cell.given["data_set"] == "fundus")


def test_every_seed_has_victims_of_its_own(where: Where) -> None:
    made = suites.plan("certified", named("full"), where)
    seeds = {cell.given["seed"] for cell in made.everything() if cell.kind == "victim"}
    assert seeds == {0, 1, 2}
    named_by = [planning.place_of(name) for name in made.cells]
    assert {place.seed for _, place, _ in named_by} == seeds
    assert {place.called(kind, *more) for kind, place, more in named_by} == made.cells.keys()


def test_a_change_of_one_kind_leaves_others_valid(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> dict[str, str]:
        cells = suites.plan("noise-consistency", named("cpu"), where).everything()
        return {f"{cell.kind} {cell.title}": cell.key for cell in cells}

    before, made_by = keys(), planning.made_by
    monkeypatch.setattr(planning, "made_by", lambda kind: made_by(kind) + "+" * (kind == "judge"))
    changed = {name for name, key in keys().items() if before[name] != key}
    assert changed
    assert all(name.startswith("judge ") for name in changed)


def test_a_victim_is_trained_once_for_all_suites(where: Where) -> None:
    def victims(suite: str, profile: Profile) -> set[str]:
        return {cell.key for cell in suites.plan(suite, profile, where).everything() if cell.kind == "victim"}

    of_all = replace(named("cpu"), fewer={})
    assert victims("adaptive", of_all) <= victims("noise-consistency", of_all)
    assert victims("natural", of_all) == victims("noise-consistency", of_all)
    for suite in ("adaptive", "natural", "certified"):
        assert victims(suite, named("cpu")) < victims(suite, of_all), "and some by fewer"


def test_an_unknown_suite_or_profile_is_named(where: Where) -> None:
    with pytest.raises(DicomguardError, match="there is no suite odd"):
        suites.plan("odd", named("smoke"), where)
    with pytest.raises(DicomguardError, match="there is no profile huge"):
        named("huge")


def test_missing_data_are_found_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(DicomguardError, match=r"cannot be opened: chest_xray.*fundus"):
        planning.required(Where(tmp_path, tmp_path), ["chest_xray", "fundus"])


def test_tables_are_written_when_all_cells_are_there(tmp_path: Path) -> None:
    cell = Cell.of("number", "1", "n", value=1)
    profile = replace(named("smoke"), reductions=(Reduction("small"), Reduction("of another", ("natural",))))
    made = Plan("toy", profile, {"n/toy/blobs/0": cell}, lambda found: {"all": found["n/toy/blobs/0"]["v"]})
    with pytest.raises(DicomguardError, match="is not computed"):
        suites.write(made, tmp_path, tmp_path / "results", command="c")
    assert not (tmp_path / "results").exists()
    cell.folder(tmp_path).mkdir(parents=True)
    (cell.folder(tmp_path) / "bars.png").write_bytes(b"a picture")
    cell.keep(tmp_path, {"v": 7, "versions": {"torch": "2"}, "charts": ["bars.png"]})
    path = suites.write(made, tmp_path, tmp_path / "results", command="dicomguard lab benchmark")
    written = json.loads(path.read_text())
    assert path.name == "lab-toy-smoke.json"
    assert written["all"] == 7
    assert written["reductions"] == ["small"]
    assert written["cells"] == {"n/toy/blobs/0": cell.key}
    assert written["versions"] == {"torch": "2"}, "of the cells, not of whoever puts them together"
    (charts,) = written["charts"].values()
    assert [(path.parent / name).read_bytes() for name in charts] == [b"a picture"]
    assert written["command"] == "dicomguard lab benchmark"
    assert {p.name for p in path.parent.iterdir()} == {path.name, "figures"}


def test_the_cost_of_being_unseen() -> None:
    succeeded = {"PGD, eps 0.001": ["a"], "PGD, eps 0.004": ["a", "b", "c"], "EOT, eps 0.002": ["b"]}
    unseen = {"PGD, eps 0.004": ["a"], "EOT, eps 0.016": ["b", "c"]}
    found = adaptive.cost(succeeded, unseen)
    assert found["files"] == 3
    assert found["success"] == 0.004  # PGD: of .001, .004, .004
    assert (found["undetected"], found["attack"]) == (0.016, "EOT")  # of none, .016, .016
    assert found["factor"] == 4
    low, high = found["interval"]
    assert low <= 2, "EOT was made at .002 and .016 only, and success needs between .001 and .004"
    assert high is None or high >= 16
    assert found["pooled"]["undetected"] == 0.016  # of .004, .016, .016
    assert found["pooled"]["success"] == 0.002
    assert not found["pooled"]["is_least"]
    assert not found["is_most"], "EOT was made at .002, and did not pass there"
    once = {**succeeded, "once, eps 0.004": ["a", "b", "c"]}
    assert adaptive.cost(once, {"once, eps 0.004": ["a", "b"]})["is_most"], "it might have passed at less"
    assert adaptive.cost(once, {"once, eps 0.004": ["a", "b"]})["pooled"]["is_most"]
    assert not adaptive.cost(once, {"PGD, eps 0.004": ["a", "b"]})["is_most"]
    assert adaptive.cost(once, {})["limit"] == 0.002, "EOT was made at no larger budget"
    torn = adaptive.cost(succeeded, {"PGD, eps 0.004": ["a"], "EOT, eps 0.016": ["b"]})
    assert torn["undetected"] is None, "no attack alone passes with half of the files"
    assert torn["pooled"]["undetected"] == 0.016
    beyond = adaptive.cost(succeeded, {"PGD, eps 0.004": ["a"]})
    assert beyond["undetected"] is None
    assert beyond["factor"] is None
    assert adaptive.cost({}, {})["files"] == 0
    halves = {"PGD, eps 0.001": ["a", "b"], "PGD, eps 0.016": ["a", "b"], "EOT, eps 0.001": ["c", "d"]}
    for everything in (succeeded, {**halves, "PGD, eps 0.032": ["a", "b", "c", "d"]}):
        blind = adaptive.cost(everything, everything)
        assert (blind["factor"], blind["pooled"]["factor"]) == (1, 1), "what sees nothing costs nothing"
    assert adaptive.cost({"PGD, eps 0.001": ["a"]}, {"PGD, eps 0.004": ["a"]})["is_least"]
    assert math.isfinite(found["factor"])


def test_few_files_and_coarse_budgets_leave_a_factor_open() -> None:
    keys = [str(number) for number in range(18)]
    eps = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
    plain = {f"PGD, eps {at}": keys if at >= 0.004 else [] for at in eps}
    for passed, bounds in ((0.008, (1.0, 4.0)), (0.032, (4.0, 16.0))):
        unseen = {f"PGD, eps {at}": keys if at >= passed else [] for at in eps}
        assert adaptive.cost(plain, unseen)["interval"] == pytest.approx(bounds)
    nobody = adaptive.cost(plain, {f"PGD, eps {at}": [] for at in eps})
    assert nobody["interval"] == [pytest.approx(8), None]
    assert adaptive.cost({"PGD, eps 0.001": keys}, {"PGD, eps 0.001": keys})["interval"] == [0, None]


@pytest.mark.parametrize("names", [("EOT", "once"), ("once", "EOT")])
@pytest.mark.parametrize("passed", [0.008, 0.016])
def test_an_attack_that_passes_at_the_first_budget_it_was_made_at_leaves_the_least_cost_open(
    names: tuple[str, str], passed: float
) -> None:
    keys = [str(number) for number in range(18)]
    eps = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
    at = {"EOT": eps, "once": (0.016,)}
    made = {f"{name}, eps {budget:g}": budget for name in names for budget in at[name]}
    succeeded = {name: keys if budget >= 0.002 else [] for name, budget in made.items()}
    unseen = {name: keys if budget >= passed else [] for name, budget in made.items()}
    found = adaptive.cost(succeeded, unseen)
    assert (found["is_most"], found["factor"]) == (True, passed / 0.002)
    assert found["interval"] == [0, pytest.approx(passed / 0.001)]
    seen_once = unseen | {"once, eps 0.016": []}
    assert adaptive.cost(succeeded, seen_once)["interval"][0] == pytest.approx(passed / 2 / 0.002)


def test_any_attack_of_a_budget_or_less_counts_a_file_once() -> None:
    unseen = {"PGD, eps 0.004": ["a"], "EOT, eps 0.004": ["a", "b"], "EOT, eps 0.016": ["c"], "PGD, eps 0.016": []}
    found = adaptive.any_of(unseen, 4)
    assert {eps: (one["hits"], one["count"]) for eps, one in found.items()} == {"0.004": (2, 4), "0.016": (3, 4)}


@pytest.mark.slow
@pytest.mark.data
def test_the_data_sets_can_store_the_bits_that_are_planned(data_dir: Path, tmp_path: Path) -> None:
    where = Where(data_dir, tmp_path)
    cells = suites.plan("joel2023", named("cpu"), where).everything()
    planned = {(dict(c.needs)["victim"].given["data_set"], c.given["bits"]) for c in cells if c.kind == "pairs"}
    assert planned == {("brain_mri", 8), ("brain_mri", 12), ("breast_us", 8), ("lung_ct", 12)}
    for data_set, bits in planned:
        assert planning.can_store(data_set, bits, where)
