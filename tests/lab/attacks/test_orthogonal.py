from __future__ import annotations

import pytest
import torch

from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.fused import paper_score
from dicomguard.lab.attacks.noise_check import NoiseCheck
from dicomguard.lab.attacks.orthogonal import Orthogonal, orthogonal_pgd
from dicomguard.scoring.consistency import NoiseSettings
from tests.attacks.toys import linear, picture
from tests.lab.attacks.toys import blobs, two

SETTINGS = Orthogonal(eps=0.1, steps=60)


def first(x):
    """The answer is on the upper half of a picture ..."""
    return x[:, 0, :2].mean((1, 2)) - 0.45


def lopsided(x, which, step):
    """... and the detector measures both halves, mostly the upper."""
    return (0.5 - x[:, 0, :2]).mean((1, 2)) + (0.6 * (x[:, 0, 2:] - 0.5)).mean((1, 2))


@pytest.mark.parametrize("orthogonal", [True, False], ids=["orthogonal", "selective"])
def test_both_aims_are_reached_where_one_step_undoes_the_other(orthogonal: bool) -> None:
    clean = torch.full((3, 1, 4, 4), 0.5)
    margins = from_logits(first, clean)
    plain = fixed_eps_pgd(margins, clean, range(3), FixedEps(0.1))
    assert plain.flipped.all()
    assert (lopsided(plain.pixels, None, 0) > 0.05).all(), "the answer alone gives it away"
    settings = Orthogonal(eps=0.1, steps=60, orthogonal=orthogonal)
    found = orthogonal_pgd(margins, lopsided, 0.02, clean, range(3), settings)
    assert found.passed.all()
    assert (first(found.attacked.pixels) < 0).all()
    assert (lopsided(found.attacked.pixels, None, 0) < 0.02).all()
    assert torch.allclose(lopsided(found.attacked.pixels, None, 0), found.score, atol=1e-6)
    assert ((found.attacked.pixels - clean).abs() <= 0.1 + 1e-6).all()


def test_on_a_trained_network_it_passes_the_papers_check_where_pgd_at_the_border_does_not() -> None:
    clean = blobs(24, 8)[0]
    noise = NoiseSettings(levels=(0.1, 0.25))
    margins = from_log_odds(two, clean)
    mine = paper_score(NoiseCheck(two, noise, range(24)), 1)
    calm = mine(clean, torch.arange(24), 0)
    threshold = float(calm.quantile(0.9))
    found = orthogonal_pgd(margins, mine, threshold, clean, range(24), Orthogonal(eps=0.2, steps=40))
    assert found.passed.float().mean() > 0.9
    others = paper_score(NoiseCheck(two, noise, range(500, 524)), 1)
    with torch.no_grad():
        judged = others(found.attacked.pixels, torch.arange(24), 0)
    assert (judged < threshold + 0.05).float().mean() > 0.7, "also with another key, nearly always"


def test_slack_is_kept_and_what_has_both_is_computed_no_more() -> None:
    asked = []

    def counting(x):
        asked.append(len(x))
        return first(x)

    clean = torch.cat([torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), 0.9)])
    margins = from_logits(counting, clean)
    asked.clear()
    settings = Orthogonal(eps=0.1, steps=40, slack=(0.01, 0.02))
    found = orthogonal_pgd(margins, lopsided, 0.05, clean, range(2), settings)
    assert found.passed.tolist() == [True, False]
    assert found.score[0] < 0.04
    assert found.attacked.margin[0] < -0.02
    assert not found.attacked.flipped[1]
    assert found.score[1].isnan()
    assert asked[0] == 2
    assert asked[-1] == 1


def test_a_score_that_cannot_be_lowered_is_told_not_hidden() -> None:
    clean = picture(0.01, 0.02)
    found = orthogonal_pgd(
        from_logits(linear, clean), lambda x, which, step: 1 + 0 * x.sum((1, 2, 3)), 0.5, clean, range(2), SETTINGS
    )
    assert found.attacked.flipped.all()
    assert not found.passed.any()
    assert found.score.tolist() == [1.0, 1.0]


def test_neighbours_make_no_difference() -> None:
    clean = blobs(4, 8)[0]
    noise = NoiseSettings(levels=(0.1,))
    settings = Orthogonal(eps=0.1, steps=10, random_start=True)

    def run(pixels, seeds):
        score = paper_score(NoiseCheck(two, noise, seeds), 0)
        return orthogonal_pgd(from_log_odds(two, pixels), score, 0.01, pixels, seeds, settings, chunk=3)

    together = run(clean, range(4))
    for place in range(4):
        alone = run(clean[place : place + 1], [place])
        assert torch.allclose(alone.attacked.pixels[0], together.attacked.pixels[place], atol=1e-4)
        assert bool(alone.passed[0]) == bool(together.passed[place])


def test_edges_and_nothing() -> None:
    clean = picture(0.1)
    with pytest.raises(DicomguardError, match="not a finite number"):
        orthogonal_pgd(from_logits(linear, clean), lambda x, which, step: linear(x) / 0, 0, clean, [0], SETTINGS)
    empty = clean[:0]
    none = orthogonal_pgd(from_logits(linear, empty), lopsided, 0, empty, [], SETTINGS)
    assert none.passed.tolist() == []
