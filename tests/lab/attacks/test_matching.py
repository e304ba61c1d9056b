from __future__ import annotations

import numpy as np
import pytest
import torch

from dicomguard.attacks.margins import from_log_odds
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.deep import DeepNetwork, mahalanobis
from dicomguard.lab.attacks.descend import Descent
from dicomguard.lab.attacks.matching import (
    FeatureMatching,
    choose_guides,
    feature_matching,
    logit_matching,
    logits_of,
)
from dicomguard.lab.attacks.noise_eot import NoiseEOT
from dicomguard.scoring import features
from dicomguard.scoring.consistency import NoiseSettings
from tests.lab.attacks.toys import blobs, trained, two

NOISE = NoiseSettings(levels=(0.03, 0.1), repeats=4)
DESCENT = Descent(0.2, steps=50)


def deep(pixels):
    seen = trained()[:-1](pixels)
    logit = trained()[-1](seen)[:, 0]
    return torch.stack([torch.zeros_like(logit), logit], -1).unsqueeze(1), seen


def setting(n=16):
    clean, pool = blobs(n, 8)[0], blobs(100, 77)[0]
    odds, seen = deep(clean)
    pool_odds, pool_seen = deep(pool)
    places = choose_guides(seen, odds.argmax(-1), pool_seen, pool_odds.argmax(-1))
    return clean, pool[places]


def test_guides_are_the_nearest_of_another_answer() -> None:
    clean, guides = setting()
    assert (two(clean).argmax(-1) != two(guides).argmax(-1)).all()
    own = torch.tensor([[0.0, 0.0]])
    pool, answers = torch.tensor([[0.1, 0.0], [1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0], [1], [2]])
    assert choose_guides(own, torch.tensor([[0]]), pool, answers).tolist() == [1]
    several = torch.tensor([[0, 1], [0, 0], [1, 1]])
    assert choose_guides(own, torch.tensor([[0, 1]]), pool, several).tolist() == [1]
    with pytest.raises(DicomguardError, match="no clean image with another answer"):
        choose_guides(own, torch.tensor([[0]]), pool[:1], answers[:1])


@pytest.mark.parametrize("draws", [0, 4], ids=["plain", "under noise"])
def test_log_odds_become_the_guides(draws: int) -> None:
    clean, guides = setting()
    found = logit_matching(two, guides, NOISE, clean, range(16), NoiseEOT(DESCENT, draws))
    assert found.flipped.all()
    assert ((found.pixels - clean).abs() <= 0.2 + 1e-6).all()
    apart = (two(found.pixels) - two(guides)).abs()[..., 1]
    assert apart.median() < 0.3
    assert apart.median() < 0.1 * (two(clean) - two(guides)).abs()[..., 1].median()


def test_what_is_matched_is_what_the_guides_say() -> None:
    _, guides = setting(4)
    wanted = logits_of(two, guides, NOISE, range(4), draws=8, chunk=3)
    own = wanted.targets.unsqueeze(2)
    assert torch.equal(wanted.targets, two(guides).argmax(-1))
    assert torch.allclose(wanted.clean.gather(2, 1 - own)[..., 0], two(guides)[..., 1].abs(), atol=1e-5)
    assert torch.equal(wanted.drops.gather(3, own.unsqueeze(2).expand(-1, -1, 2, -1)), torch.zeros(4, 1, 2, 1))
    assert wanted.drops.shape == (4, 1, 2, 2)
    assert (logits_of(two, guides, NOISE, range(4), draws=0).drops == 0).all()


@pytest.mark.parametrize("draws", [0, 3], ids=["plain", "under noise"])
def test_features_become_the_guides(draws: int) -> None:
    clean, guides = setting()
    found = feature_matching(deep, guides, clean, range(16), FeatureMatching(DESCENT, draws), noise=NOISE)
    before = (deep(clean)[1] - deep(guides)[1]).norm(dim=1)
    after = (deep(found.pixels)[1] - deep(guides)[1]).norm(dim=1)
    assert found.flipped.float().mean() > 0.9
    assert ((found.pixels - clean).abs() <= 0.2 + 1e-6).all()
    assert (after / before).median() < 0.5


def test_it_hides_from_the_feature_distance_where_pgd_does_not() -> None:
    pool_odds, pool_seen = deep(blobs(200, 77)[0])
    model = features.fit(pool_seen.double().numpy(), pool_odds.argmax(-1).numpy(), 2)

    def distance(pixels):
        odds, seen = deep(pixels)
        return mahalanobis(model, seen, odds.argmax(-1))[:, 0]

    clean, guides = setting()
    matched = feature_matching(deep, guides, clean, range(16), FeatureMatching(DESCENT))
    loud = fixed_eps_pgd(from_log_odds(two, clean), clean, range(16), FixedEps(0.2))
    assert distance(matched.pixels).median() < 0.5 * distance(loud.pixels).median()


def test_on_a_bundle_of_any_head(enrolled) -> None:
    from tests.scoring.small import gray_image

    bundle, scorer = enrolled
    network = DeepNetwork(bundle)
    pixels = scorer.prepare([gray_image(n) for n in range(40)]).pixels.clone()
    known = scorer.answer(pixels)
    answers, seen = torch.from_numpy(known.log_odds.argmax(-1)), torch.from_numpy(known.features)
    attackable = (answers != answers[:1]).any(1)
    assert attackable.any()
    clean = pixels[:1]
    place = choose_guides(seen[:1], answers[:1], seen, answers)
    found = feature_matching(network, pixels[place], clean, [3], FeatureMatching(Descent(0.3, 60, relative_step=0.05)))
    assert found.flipped.all()
    moved = scorer.answer(found.pixels)
    assert not np.array_equal(moved.log_odds.argmax(-1), answers[:1].numpy())
    guide = known.features[int(place)]
    assert np.linalg.norm(moved.features[0] - guide) < 0.95 * np.linalg.norm(known.features[0] - guide)


def test_neighbours_make_no_difference() -> None:
    clean, guides = setting(4)
    settings = FeatureMatching(Descent(0.1, steps=8), 2)
    together = feature_matching(deep, guides, clean, range(4), settings, noise=NOISE, chunk=6)
    for place in range(4):
        one = slice(place, place + 1)
        alone = feature_matching(deep, guides[one], clean[one], [place], settings, noise=NOISE)
        assert torch.allclose(alone.pixels[0], together.pixels[place], atol=1e-4)


def test_edges_and_nothing() -> None:
    clean, guides = setting(2)
    with pytest.raises(DicomguardError, match="not a finite number"):
        feature_matching(lambda x: (two(x), deep(x)[1] / 0), guides, clean, range(2))
    empty = clean[:0]
    assert feature_matching(deep, empty, empty, []).flipped.tolist() == []
    assert logit_matching(two, empty, NOISE, empty, []).flipped.tolist() == []
    still = logit_matching(two, guides, NOISE, clean, range(2), NoiseEOT(Descent(0.0, steps=3), 0))
    assert not still.flipped.any()
