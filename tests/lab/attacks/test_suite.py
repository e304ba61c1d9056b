from __future__ import annotations

import pytest
import torch

from dicomguard.attacks import suite as node
from dicomguard.attacks.margins import from_log_odds, from_logits
from dicomguard.lab.attacks.suite import EPS, SUITE
from tests.attacks.toys import linear, noise_pictures, picture
from tests.lab.attacks.toys import classes


def test_it_has_the_nodes_attacks_and_every_one_that_an_evaluation_needs() -> None:
    assert set(node.SUITE) < set(SUITE)
    assert EPS == (0.001, 0.002, 0.004, 0.008, 0.016)
    for kind in ("FGSM", "BIM", "PGD", "APGD", "Square"):
        assert {f"{kind} {eps:.3f}" for eps in EPS} < set(SUITE)
    assert {f"CW-L2 kappa {kappa}" for kappa in (0, 1, 2, 5, 10, 20)} < set(SUITE)
    assert {"DeepFool", "DeepFool kappa 0.5", "BIM 0.004 (Joel et al. 2023)", "PGD 0.008 (Joel et al. 2023)"} < set(
        SUITE
    )


@pytest.mark.parametrize("name", SUITE)
def test_every_attack_runs_the_same_way(name: str) -> None:
    clean = picture(0.0005, -0.0005, 0.45)
    found = SUITE[name](from_logits(lambda x: 50 * linear(x), clean), clean, range(3), chunk=2)
    assert found.flipped[:2].all()
    assert found.pixels.shape == clean.shape
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1
    assert bool(found.flipped[2]) == name.startswith(("DeepFool", "CW-L2")), "the third is out of any budget"
    assert torch.equal(found.strength.isnan(), ~found.flipped)


@pytest.mark.parametrize("name", ["DeepFool", "CW-L2 kappa 0", "APGD 0.016", "Square 0.016", "PGD 0.016"])
def test_heads_of_many_outputs_are_attacked_by_margin(name: str) -> None:
    clean = noise_pictures(6)
    found = SUITE[name](from_log_odds(classes, clean), clean, range(6))
    changed = (classes(found.pixels).argmax(-1) != classes(clean).argmax(-1)).any(1)
    assert torch.equal(changed, found.flipped)
