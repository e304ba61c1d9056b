import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomguard import phantom
from dicomguard.errors import DicomguardError
from dicomguard.lab import study_power, study_scores
from dicomguard.lab.study_candidates import CANDIDATES, MONOTONE, Law, higher_criticism, simes, tail_sum
from dicomguard.lab.study_figures import draw_false_holds, draw_power
from dicomguard.pixels.reader import images
from dicomguard.scoring.consistency import NoiseSettings
from dicomguard.scoring.study_test import score

LAW = Law([np.random.default_rng(0).exponential(size=50) for _ in range(40)])


DRAWS = NoiseSettings(study_scores.LEVELS, repeats=1).ladder()


def seen(rng: np.random.Generator, count: int, shift: float = 0.0) -> study_scores.Seen:
    """Log-odds of pictures that noise moves by about 1, and by `shift` towards the other answer."""
    clean = np.stack([np.zeros((count, 1)), rng.gamma(6, 1, (count, 1))], -1).astype(np.float32)
    noisy = clean[:, None] + rng.normal(0, 0.7, (count, len(DRAWS), 1, 2)).astype(np.float32)
    noisy[..., 1] -= np.float32(shift)
    return study_scores.Seen(clean, noisy)


def write_reference(work: Path, kind: str, count: int) -> None:
    found = seen(np.random.default_rng(4), count)
    np.savez(work / f"{kind}-reference.npz", clean=found.clean, noisy=found.noisy)


def fabricated(work: Path) -> None:
    """Scores as the score stage leaves them: exponential surprises, attacked ones about 30."""
    (work / "phantom").mkdir(parents=True)
    write_reference(work, "phantom", 450)
    for part, seed in (("selection", 1), ("figures", 2)):
        rng = np.random.default_rng(seed)
        for number in range(24):
            for first, step in ((0, 1), (1000, 5), (2000, 50)):
                indices = np.arange(0, 500, step)
                path = work / "phantom" / f"{part}-{first + number}-{step}.npz"
                attacked, found = {}, {"": seen(rng, len(indices))}
                if step == 1 and number < 8:
                    for kind in study_scores.ATTACKS:
                        attacked[kind] = np.full(500, np.nan)
                        attacked[kind][list(study_scores.ATTACKED)] = rng.normal(30, 2, 18)
                        found[kind] = seen(rng, 18, 9.0).spread(500, study_scores.ATTACKED)
                surprises = rng.exponential(size=len(indices))
                study_scores.save(path, study_scores.Studied(path.stem, indices, surprises, attacked, found))


def test_the_picture_is_the_one_that_the_node_reads() -> None:
    scan = phantom.Tomography(8, slices=4, rows=128, columns=128, opacity=True)
    for index, dataset in enumerate(phantom.series(8, slices=4, rows=128, columns=128, opacity=True)):
        (image,) = images(dataset)
        assert np.abs(image.pixels[0] - study_scores.picture(scan.stored(index))).max() < 1e-5


def test_attacked_slices_belong_to_the_coarser_studies_too() -> None:
    hit = np.array(study_scores.ATTACKED)
    assert len(set(hit)) == 18
    assert (hit % 5 == 0).all()
    assert (hit % 50 == 0).sum() == 10
    assert hit.max() < 500


@pytest.mark.parametrize("name", sorted(MONOTONE))
@given(values=st.lists(st.floats(0, 40), min_size=1, max_size=20), where=st.integers(0, 19), more=st.floats(0, 40))
def test_candidates_never_fall_when_one_image_looks_worse(
    name: str, values: list[float], where: int, more: float
) -> None:
    statistic = study_power.with_law(name, LAW)
    raised = np.array(values)
    raised[where % len(values)] += more
    assert statistic(raised) >= statistic(np.array(values)) - 1e-9


def test_known_values_of_the_candidates() -> None:
    p = np.array([0.01, 0.03, 0.9, 0.95])
    assert simes(p, p) == pytest.approx(-np.log(0.04))
    z = [2 * (0.25 - 0.01) / np.sqrt(0.01 * 0.99), 2 * (0.5 - 0.03) / np.sqrt(0.03 * 0.97)]
    assert higher_criticism(small_sample=False)(p, p) == pytest.approx(max(z))
    s = np.array([9.0, 7.0, 2.0])
    assert tail_sum(5)(s, s) == pytest.approx(6.0)
    assert tail_sum(5, 3)(s, s) == pytest.approx(5.0)
    assert tail_sum(10)(s, s) == pytest.approx(-1.0)
    assert CANDIDATES["2nd largest"](s, s) == 7


def test_fewest_is_where_power_stays_high() -> None:
    assert study_power.fewest({1: 0.2, 2: 0.95, 3: 0.8, 4: 0.92, 5: 0.99, 6: None}) == 4
    assert study_power.fewest({1: 0.2, 2: 0.5}) is None
    assert study_power.fewest({1: 1.0, 2: 1.0}) == 1


def test_power_is_alpha_where_the_attack_changes_nothing_and_one_where_it_shouts() -> None:
    rng = np.random.default_rng(6)
    clean = [rng.exponential(size=10) for _ in range(200)]
    silent = [dict.fromkeys(study_scores.ATTACKS, study) for study in clean]
    loud = [dict.fromkeys(study_scores.ATTACKS, np.full(10, 90.0)) for _ in clean]
    assert study_power.power(clean, silent, score, 0.1, [3])["bim"][3] == pytest.approx(0.1, abs=0.02)
    assert study_power.power(clean, loud, score, 0.1, [1])["bim"][1] == 1.0
    with pytest.raises(DicomguardError, match="too few"):
        study_power.power(clean[:8], loud[:8], score, 0.05, [1])


def test_false_holds_know_their_band_and_say_when_there_is_no_promise() -> None:
    rng = np.random.default_rng(7)
    found = study_power.false_holds([rng.exponential(size=5) for _ in range(200)], score, 0.1)
    assert found["inside_share_of_splits"] > 0.9
    assert found["mean_of_splits"] == pytest.approx(0.1, abs=0.03)
    assert not study_power.false_holds([rng.exponential(size=5) for _ in range(20)], score, 0.05)["promise"]


def test_correlated_slices_are_told_from_independent_ones() -> None:
    rng = np.random.default_rng(8)
    alike = [np.full(50, rng.normal()) + 0.1 * rng.normal(size=50) for _ in range(60)]
    apart = [rng.normal(size=50) for _ in range(60)]
    assert study_power.correlation(alike)["between_studies"] > 0.9
    assert study_power.correlation(apart)["between_studies"] < 0.05


def test_choose_and_report_on_kept_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_power, "_DRAWS", 2)
    monkeypatch.setattr(study_power, "_SPLITS", 20)
    monkeypatch.setattr(study_power, "THINNED", (28,))
    fabricated(tmp_path)
    chosen = study_power.choose(tmp_path, 0.1)
    assert set(chosen["candidates"]) == set(CANDIDATES)
    found = study_power.report(tmp_path, 0.1, chosen)
    assert found["sizes"][10]["fewest"] == {"bim": 1, "loud": 1, "pgd4": 1, "pgd8": 1}
    assert found["sizes"][500]["false_holds"]["studies"] == 24
    assert found["reference_images"] == 300
    few = found["sizes"][10]["fewest_by_reference"][28]
    assert set(few) == set(study_scores.ATTACKS)
    assert all(count is not None and count <= 5 for count in few.values())
    json.dumps(study_power._rounded(found), allow_nan=False)
    draw_power(found, tmp_path / "power.png")
    draw_false_holds(found, tmp_path / "holds.png")
    assert (tmp_path / "power.png").stat().st_size > 10_000
    with pytest.raises(DicomguardError, match="score stage"):
        study_power.sample(tmp_path / "none", "figures", 10)


def test_a_threshold_from_mixed_sizes_holds_all_of_them_alike_where_slices_are_alike() -> None:
    rng = np.random.default_rng(12)
    bodies = [np.exp(0.5 * (rng.standard_normal() + np.repeat(rng.standard_normal(25), 20))) for _ in range(60)]
    rates = study_power.mixed_sizes(bodies, score, 0.1)
    assert set(rates) == {167, 125, 100, 50, 25}
    assert all(0.02 < rate < 0.2 for rate in rates.values())
    assert study_power.mixed_sizes(bodies[:8], score, 0.05) == {}


def test_surprises_are_those_that_the_kept_log_odds_give(tmp_path: Path) -> None:
    write_reference(tmp_path, "phantom", 90)
    rng = np.random.default_rng(13)
    reference = study_scores.reference(tmp_path, "phantom")
    assert reference.images[0] == 60
    shown, hit = seen(rng, 6), seen(rng, 2, 9.0).spread(6, [1, 4])
    attacked = hit.surprises(reference)
    assert np.flatnonzero(np.isfinite(attacked)).tolist() == [1, 4]
    attacked[4] = np.nan  # this one did not flip
    kept = study_scores.Studied(
        "a", np.arange(6), shown.surprises(reference), {"bim": attacked}, {"": shown, "bim": hit}
    )
    study_scores.save(tmp_path / "a.npz", kept)
    again = study_scores.load(tmp_path / "a.npz")
    same = study_scores.rated(again, reference)
    assert np.array_equal(same.surprises, kept.surprises)
    assert np.array_equal(same.attacked["bim"], attacked, equal_nan=True)
    fewer = study_scores.reference(tmp_path, "phantom", 28)
    assert fewer.images[0] == 28
    other = study_scores.rated(study_scores.of(again, again.indices % 2 == 0), fewer)
    assert len(other.surprises) == 3
    assert not np.array_equal(other.surprises, kept.surprises[::2])
    assert np.isnan(other.attacked["bim"]).all()
    assert study_scores.rated(again, fewer).attacked["bim"][1] < attacked[1]


def test_what_was_kept_under_another_definition_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = study_scores.keyed(tmp_path)
    assert study_scores.keyed(tmp_path) == before
    assert json.loads((before / "definition.json").read_text())["statistic"] == study_scores.STATISTIC
    folders = {before}
    for name, value in (("STATISTIC", "another"), ("LEVELS", (0.01,)), ("_REFERENCE", 60), ("SIZE", 64)):
        with monkeypatch.context() as patched:
            patched.setattr(study_scores, name, value)
            folders.add(study_scores.keyed(tmp_path))
    assert len(folders) == 5
