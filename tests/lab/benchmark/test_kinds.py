"""Every kind of cell, computed in this process on a toy victim and a folder of blobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.attacking import load_attacked
from dicomguard.lab.benchmark.cell import Cell, Result
from dicomguard.lab.benchmark.files import load_files, opened
from dicomguard.lab.benchmark.judging import divided, published
from dicomguard.lab.benchmark.kinds import KINDS
from dicomguard.lab.benchmark.kinds.adaptive import AGAINST_ALL, AGAINST_GUARD, KNOWING, NEED_GUARD
from dicomguard.lab.benchmark.kinds.joel import _dithered
from dicomguard.lab.benchmark.kinds.opening import BUNDLE
from dicomguard.lab.benchmark.kinds.seconds import ALONE, PAPER
from dicomguard.lab.benchmark.runner import compute
from dicomguard.lab.cases import Case
from dicomguard.lab.detectors.noise_check import NoiseCheck
from dicomguard.lab.detectors.ours import AS_ENROLLED
from dicomguard.lab.instances import secondary_capture
from dicomguard.scoring.calibration import smallest_margin
from dicomguard.scoring.scorer import Scorer
from tests.lab.data.toys import class_folders
from tests.scoring.small import write_small

pytestmark = pytest.mark.slow
ATTACKS = ("early-stopped BIM", "PGD 0.016")


class World:
    """A victim that is there already, and the cells that hang on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        class_folders(self.data / "blobs", {"ill": 260, "normal": 260})
        self.victim = Cell.of("victim", "1", "train toy on blobs", data_set="blobs", side=None)
        write_small(self.victim.folder(self.root) / BUNDLE, size=32, levels=(0.01, 0.03, 0.05), repeats=2)
        self.victim.keep(self.root, {"title": self.victim.title, "settings": self.victim.given, "training": {}})
        self.clean = Cell.of("clean", "1", "clean", {"victim": self.victim}, train=80, calibration=None, test=None)

    def attack(self, name: str, *, split: str = "test", wanted: int = 4) -> Cell:
        return Cell.of("attack", "1", name, {"victim": self.victim}, attack=name, split=split, wanted=wanted, cases=24)

    def run(self, cell: Cell, told: list[float] | None = None) -> Result:
        def tell(share: float) -> None:
            if told is not None:
                told.append(share)

        return compute(cell, KINDS[cell.kind], root=self.root, data=self.data, tell=tell)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    made = World(tmp_path_factory.mktemp("cells"))
    made.run(made.clean)
    for name in ATTACKS:
        made.run(made.attack(name))
    made.run(made.attack("PGD 0.016", split="validation"))
    return made


def test_clean_files_of_two_splits_are_looked_at(world: World) -> None:
    found = world.clean.result(world.root)
    assert found is not None
    test = load_files(world.clean.folder(world.root), "test")
    calibration = load_files(world.clean.folder(world.root), "calibration")
    assert found["test"]["files"] == len(test) > 10
    assert not set(test.keys) & set(calibration.keys)
    assert found["test"]["accuracy"]["hits"] == int(test.right.sum())
    assert len(test.sight.draws) == 6
    assert (test.margins >= 0).all()
    training = load_files(world.clean.folder(world.root), "train")
    assert len(training) == 80
    assert training.sight.draws == (), "features are learnt without noise"


def test_only_right_answers_are_attacked_and_success_is_counted_on_files(world: World) -> None:
    cell = world.attack("PGD 0.016")
    found, kept = cell.result(world.root), load_attacked(cell.folder(world.root))
    assert found is not None
    assert found["succeeded"] == sum(a.succeeded for a in kept.attempts) >= 1
    assert found["tried"] == len(kept.attempts) <= 24
    test = load_files(world.clean.folder(world.root), "test")
    right = dict(zip(test.keys, test.right.tolist(), strict=True))
    assert all(right[a.key] for a in kept.attempts if a.key in right)
    assert kept.files is not None
    assert not kept.files.right.any(), "what succeeded is answered wrongly"
    assert all(a.linf <= 0.016 + 1e-6 for a in kept.attempts)
    # Eight bits: whatever is stored lies on a grid of 255 steps, and floats do not.
    clean = {key: row for row, key in enumerate(test.keys)}
    pairs = [(clean[key], row) for row, key in enumerate(kept.files.keys) if key in clean]
    assert pairs


def test_an_attack_goes_on_where_it_was_stopped(world: World, tmp_path: Path) -> None:
    cell = world.attack("PGD 0.016")
    folder = cell.folder(world.root)
    first = folder / "0000-attempts.json"
    before = first.stat().st_mtime_ns
    (folder / "result.json").rename(tmp_path / "result.json")
    again = world.run(cell)
    assert first.stat().st_mtime_ns == before, "the first batch was not attacked again"
    was = json.loads((tmp_path / "result.json").read_text())
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in was.items() if key != "seconds"
    }


def judged(world: World, **more: Cell) -> Cell:
    needs = {
        "victim": world.victim,
        "clean": world.clean,
        "validation: PGD 0.016": world.attack("PGD 0.016", split="validation"),
        **{f"attack: {name}": world.attack(name) for name in ATTACKS},
        **more,
    }
    return Cell.of("judge", "1", "judge", needs, alphas=[0.2])


def test_every_detector_is_judged_or_says_why_not(world: World) -> None:
    shift = Cell.of("shift", "1", "noise", {"victim": world.victim}, shift="Gaussian noise, 3 %", cases=12)
    world.run(shift)
    told: list[float] = []
    found = world.run(judged(world, **{"shift: Gaussian noise, 3 %": shift}), told)
    (paper,) = [row for row in found["rows"] if "levels" in row]
    chosen = paper["levels"][paper["level"]]
    at = paper["files"]["theta"]
    assert chosen["correct"] == at["strata"]["correct"]
    for kind in ("files", "floats"):
        of_kind = paper[kind]["theta"]["attacks"]
        assert chosen[kind] == {name: one["detected"] for name, one in of_kind.items()}
    assert len(paper["levels"]) == len(paper["thetas"])
    assert any(one["files"] != chosen["files"] for one in paper["levels"])
    names = {row["detector"] for row in found["rows"]}
    assert {"noise check of the paper", "ours, without the guard", "Mahalanobis", "low margin", "MGM"} <= names
    assert told[-1] == 1
    for row in found["rows"]:
        if "none_because" in row:
            assert "needs" in row["none_because"]
            continue
        for kind in ("files", "floats"):
            point = row[kind]["theta"] or row[kind]["points"][0]
            if "none_because" in point:
                continue
            for name, one in point["attacks"].items():
                attempts = found["attacks"][name]
                assert one["success"]["count"] == attempts["tried"]
                assert one["detected"]["count"] == attempts["succeeded" if kind == "files" else "flipped"]
                unseen = one["success"]["hits"] - one["detected"]["hits"]
                assert one["undetected_success"]["hits"] == unseen
                if kind == "files" and row["unseen"] is not None:
                    assert len(row["unseen"][name]) == unseen
        if row["shifts"] is not None:
            moved = row["shifts"]["Gaussian noise, 3 %"]
            assert moved["count"] == moved["before"]["count"] == 12, "the same files, before and after"
            assert moved["hits"] - moved["before"]["hits"] == moved["gained"] - moved["lost"]
    fitted = [row for row in found["rows"] if "files" in row]
    assert len(fitted) >= 5
    assert set(found["succeeded"]) == set(ATTACKS)


def test_figures_are_drawn_of_what_succeeded(world: World) -> None:
    needs = dict(judged(world).needs)
    found = world.run(Cell.of("pictures", "1", "pictures", needs, attacks=ATTACKS, of="toy"))
    cell = Cell.of("pictures", "1", "pictures", needs, attacks=ATTACKS, of="toy")
    assert found["charts"] == ["sigmoid-outputs.png", "bubbles.png"], "what shows no picture may be published"
    for name in (*found["charts"], *found["pictures"]):
        assert (cell.folder(world.root) / name).stat().st_size > 5000
    nothing = Cell.of("pictures", "1", "nothing", needs | {"attack: none": _nothing(world)}, attacks=["none"], of="")
    assert world.run(nothing)["charts"] == [], "a missing figure keeps no table back"


def _nothing(world: World) -> Cell:
    cell = Cell.of("attack", "1", "none", {"victim": world.victim}, attack="none")
    folder = cell.folder(world.root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0000-attempts.json").write_text(json.dumps({"attempts": [], "floats": False, "files": False}))
    cell.keep(world.root, {"settings": {}})
    return cell


def test_noise_is_an_attack_only_when_it_is_strong(world: World) -> None:
    found = world.run(Cell.of("noise", "1", "noise", {"victim": world.victim}, cases=20))
    rates = [found["success"][name]["hits"] for name in ("0.01", "0.32")]
    assert rates[0] <= rates[1]
    assert found["success"]["0.01"]["count"] == found["success"]["0.32"]["count"] > 0


@pytest.mark.parametrize(
    "name",
    [name for name in KNOWING if name not in {"EOT-PGD, 32 draws", "logit matching, 8 draws", *NEED_GUARD}],
)
def test_an_attacker_who_knows_the_detector_keeps_the_budget(world: World, name: str) -> None:
    needs = {
        "victim": world.victim,
        "clean": world.clean,
        "validation: PGD 0.016": world.attack("PGD 0.016", split="validation"),
    }
    cell = Cell.of("adaptive", "1", name, needs, attack=name, eps=0.016, cases=6)
    found = world.run(cell)
    kept = load_attacked(cell.folder(world.root))
    assert found["tried"] == len(kept.attempts) >= 1
    assert all(a.linf <= 0.016 + 1e-6 for a in kept.attempts)
    assert all(a.linf_stored <= 0.016 + 0.5 / 255 + 1e-6 for a in kept.attempts)


def test_what_a_stranger_gets_through_is_let_through(world: World) -> None:
    needs = {
        "victim": world.victim,
        "clean": world.clean,
        "validation: PGD 0.016": world.attack("PGD 0.016", split="validation"),
    }
    name = "black-box, accept or reject"
    cell = Cell.of("adaptive", "1", "stranger", needs, attack=name, eps=0.03, cases=6)
    found = world.run(cell)
    judged = world.run(Cell.of("judge", "1", "judge", {**needs, f"attack: {name}, eps 0.03": cell}, alphas=[0.2]))
    kept = load_attacked(cell.folder(world.root))
    (paper,) = [row for row in judged["rows"] if "levels" in row]
    queried = paper["files"]["theta"]["attacks"][f"{name}, eps 0.03"]
    assert found["tried"] == len(kept.attempts) > 0
    # The search ends with the first file that is let through: whatever was found so is found again by the judge.
    assert queried["undetected_success"]["hits"] <= found["succeeded"]
    assert queried["undetected_success"]["hits"] > 0


def test_a_victim_is_enrolled_as_a_site_would(world: World) -> None:
    settings = {"alpha": 0.2, "eps": 0.004, "pictures": 64, "epochs": 1, "least_steps": 40}
    needs = {"victim": world.victim}
    cell = Cell.of("enrolled", "1", "enrol", needs, data_set="blobs", side=None, **settings)
    found = world.run(cell)
    assert found["armed"] in {"enforce", "shadow"}
    assert found["guard"]["eps"] == 0.004
    clean = Cell.of("clean", "1", "clean", {"victim": cell}, train=4, calibration=None, test=6)
    world.run(clean)
    known = {"victim": cell, "clean": clean, "validation: PGD 0.016": world.attack("PGD 0.016", split="validation")}
    votes = Cell.of("adaptive", "1", "votes", known, attack=AGAINST_ALL, eps=0.016, cases=8)
    assert world.run(votes)["tried"] >= 1
    both = Cell.of("adaptive", "1", "both", known, attack=AGAINST_GUARD, eps=0.016, cases=8)
    taken = world.run(both)
    kept = load_attacked(both.folder(world.root))
    assert taken["tried"] == len(kept.attempts) >= 1
    assert all(a.linf <= 0.016 + 1e-6 for a in kept.attempts)
    assert all(a.flipped == a.succeeded for a in kept.attempts), "it moves stored values, so nothing dies in rounding"
    shares = [one.guard_share for one in load_files(clean.folder(world.root), "test").sight.evidence]
    assert len(shares) == 6
    assert all(share is not None for share in shares), "whoever needs it sees with its guard"
    rows = world.run(Cell.of("judge", "1", "judge", {**known, "attack: both": both}, alphas=[0.2]))["rows"]
    (row,) = [row for row in rows if row["detector"] == AS_ENROLLED]
    statement = Scorer.load(cell.folder(world.root) / BUNDLE).enrolment
    assert statement is not None
    assert row["files"]["theta"]["threshold"] == statement.calibration.threshold
    evidence = load_files(clean.folder(world.root), "test").sight.evidence
    alarms = [
        statement.calibration.flags(statement.calibration.statistic_of(one)[0], smallest_margin(one.seen))
        for one in evidence
    ]
    assert row["files"]["theta"]["clean"]["hits"] == sum(alarms)
    timed = world.run(Cell.of("seconds", "1", "seconds with a guard", {"victim": cell}, cases=6))["ways"]
    assert 1 < timed["ours, without the guard"]["times_alone"] < timed["ours"]["times_alone"]
    # Floats are looked at with a miniature of their own: what is dark stays dark, and the guard sees what they show.
    direct = Cell.of("attack", "1", "PGD", {"victim": cell}, attack="PGD 0.016", split="test", wanted=None, cases=8)
    world.run(direct)
    seen = load_attacked(direct.folder(world.root))
    assert seen.floats is not None
    assert seen.files is not None
    ours = {kind: [one.guard_share for one in getattr(seen, kind).sight.evidence] for kind in ("floats", "files")}
    assert not np.isnan(np.array(ours["floats"], float)).any()
    assert np.isnan(np.array(ours["files"], float)).sum() == 0


def test_the_papers_theta_is_the_spread_of_all_clean_files(world: World) -> None:
    calibration = load_files(world.clean.folder(world.root), "calibration")
    attacked = load_attacked(world.attack("PGD 0.016", split="validation").folder(world.root)).files
    found = published(calibration, attacked)
    whole = NoiseCheck(level=found.level)
    whole.fit(calibration.only(calibration.right).sight)
    assert found.theta == whole.theta
    reference, _ = divided(calibration)
    of_reference = NoiseCheck()
    of_reference.fit(reference.only(reference.right).sight, None if attacked is None else attacked.sight)
    assert found.level == of_reference.level
    assert found.theta != of_reference.theta


@pytest.mark.parametrize(("bits", "values"), [(8, 256), (12, 4096)])
def test_pictures_stored_with_more_bits_than_they_have_are_dithered(bits: int, values: int) -> None:
    picture = np.tile(np.arange(0, 256, dtype=np.uint8), (64, 1))
    case = Case("a", 0, "a", lambda bits: secondary_capture(picture, bits=bits, name="a"))
    before = opened(case, case.make(bits), "none")
    after, again = (_dithered(before) for _ in range(2))
    np.testing.assert_array_equal(after.image.pixels, again.image.pixels)
    moved = np.abs(after.image.pixels - before.image.pixels).max()
    top = values - 1
    stored = after.image.pixels.astype(np.float64) * top
    np.testing.assert_allclose(stored, np.rint(stored), atol=1e-3)
    if bits == 8:
        assert moved == 0
    else:
        assert 0.4 / 255 < moved <= (0.5 / 255 + 0.5 / top + 1e-6)
        assert len(np.unique(np.rint(stored))) > 3000, "nearly every value that can be stored, not one in sixteen"


def test_guards_for_several_budgets_have_the_same_lessons(world: World) -> None:
    taught = {"pictures": 20, "epochs": 1, "least_steps": 40}
    lessons = Cell.of("lessons", "1", "lessons", {"victim": world.victim}, **taught)
    assert world.run(lessons)["files"] == 20
    needs = {"victim": world.victim, "lessons": lessons}
    for eps in (0.004, 0.008):
        cell = Cell.of("certified", "1", f"guard for {eps}", needs, eps=eps, cases=6, **taught)
        found = world.run(cell)
        assert found["certified"]["count"] == 6
        assert found["eps"] == eps
        assert not list(cell.folder(world.root).glob("**/lessons-*")), "they are not asked for again"


def test_an_attack_may_come_from_another_victim(world: World, tmp_path: Path) -> None:
    stranger = Cell.of("victim", "1", "another", data_set="blobs", side=None, seed=1)
    write_small(stranger.folder(world.root) / BUNDLE, size=24, levels=(0.01,), repeats=1, seed=3)
    stranger.keep(world.root, {"title": "another", "settings": stranger.given, "training": {}})
    given = {"attack": "PGD 0.016", "split": "test", "wanted": 4, "cases": 16}
    own = Cell.of("attack", "1", "own", {"victim": world.victim}, **given)
    cell = Cell.of("attack", "1", "transferred", {"victim": world.victim, "surrogate": stranger}, **given)
    found, direct = world.run(cell), world.run(own)
    assert found["tried"] >= direct["tried"] >= 1
    kept = load_attacked(cell.folder(world.root))
    assert all(a.linf <= 0.016 + 1e-6 for a in kept.attempts)
    assert found["succeeded"] / found["tried"] <= direct["succeeded"] / direct["tried"]


def test_files_of_another_set_have_no_right_answer(world: World) -> None:
    class_folders(world.data / "others", {"left": 60, "right": 60})
    cell = Cell.of("foreign", "1", "others", {"victim": world.victim}, data_set="others", cases=8)
    assert world.run(cell)["files"] == 8
    found = world.run(judged(world, **{"shift: files of others": cell}))
    assert found["shifted_accuracy"] == {"files of others": None}
    counted = [row["shifts"]["files of others"]["count"] for row in found["rows"] if row.get("shifts")]
    assert counted
    assert set(counted) == {8}


def test_attacks_whose_floats_were_not_looked_at_are_judged_on_files(world: World) -> None:
    needs = dict(judged(world).needs)
    known = {role: needs[role] for role in ("victim", "clean", "validation: PGD 0.016")}
    cell = Cell.of("adaptive", "1", "PGD", known, attack="PGD", eps=0.016, cases=12)
    world.run(cell)
    found = world.run(Cell.of("judge", "1", "judge", {**known, "attack: PGD, eps 0.016": cell}, alphas=[0.2]))
    fitted = [row for row in found["rows"] if "files" in row]
    assert fitted
    assert all("floats" not in row for row in fitted)


def test_what_checking_costs_is_timed_beside_the_victim_alone(world: World) -> None:
    found = world.run(Cell.of("seconds", "1", "seconds", {"victim": world.victim}, cases=10))
    assert found["files"] == 10
    alone, paper = (found["ways"][name] for name in (ALONE, PAPER))
    assert alone["times_alone"] == 1
    assert paper["times_alone"] > 2
    assert paper["seconds_an_image"] > alone["seconds_an_image"] > 0


def test_detectors_are_taught_on_pairs(world: World) -> None:
    def pairs(attack: str | None, eps: float) -> Cell:
        cell = Cell.of("pairs", "1", f"{attack}", {"victim": world.victim}, attack=attack, eps=eps, cases=40, bits=8)
        world.run(cell)
        return cell

    clean, taught_on, noise = pairs(None, 0.0), pairs("BIM", 0.016), pairs("random noise", 0.016)
    compressed = pairs("JPEG quality", 75)
    coded, plain = (load_files(one.folder(world.root), "stored").sight.pixels for one in (compressed, clean))
    assert 0 < float((coded - plain).abs().max()) < 0.2
    needs: dict[str, Any] = {
        "victim": world.victim,
        "clean": clean,
        "taught on": taught_on,
        "test: BIM 0.016": taught_on,
        "test: random noise 0.016": noise,
    }
    unknown = Cell.of("taught", "1", "five", needs, protocol="closed", small=True, least_steps=0, most_steps=0, seed=0)
    with pytest.raises(DicomguardError, match="harmless changes are needed"):
        world.run(unknown)
    needs |= {"harmless: random noise 0.016": noise, "harmless: JPEG quality 75": compressed}
    found = world.run(
        Cell.of("taught", "1", "five", needs, protocol="closed", small=True, least_steps=0, most_steps=0, seed=0)
    )
    assert len(found["rows"]) == 5
    for row in found["rows"]:
        own, other = row["tests"]["BIM 0.016"], row["tests"]["random noise 0.016"]
        assert own["accuracy"]["hits"] == row["accuracy"]["hits"], (
            "the test of the attack that taught is the trial's own"
        )
        assert other["clean_flagged"] == own["clean_flagged"]
        assert 0 <= own["combined"]["A3"] <= 1
        assert own["accuracy"]["count"] == 2 * own["accuracy"]["clusters"], "a picture counts twice, and is one"
        assert own["auroc"]["area"] == row["auroc"]["area"]
        assert own["turned"]["hits"] <= own["flagged"]["hits"]
        more = own["flagged"]["rate"] - own["clean_flagged"]["rate"]
        assert own["more"]["mean"] == pytest.approx(more)
        assert own["more"]["interval"][0] <= more <= own["more"]["interval"][1]
        assert own["turned"]["count"] <= own["flagged"]["count"]
        assert other["turned"]["count"] < own["turned"]["count"], "noise turns fewer answers round than an attack"
    assert len(load_files(taught_on.folder(world.root), "stored")) == 40
