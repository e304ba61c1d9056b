from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomguard.errors import BundleError
from dicomguard.pixels.image import Image
from dicomguard.scoring import bundle
from dicomguard.scoring.calibrate import calibrate
from dicomguard.scoring.scorer import Scorer
from tests.scoring.small import gray_image


def pictures(count: int) -> Iterator[Image]:
    return (gray_image(500 + index) for index in range(count))


def names(count: int) -> list[str]:
    return [f"patient {index}" for index in range(count)]


def test_any_bundle_can_be_calibrated_and_is_armed_then(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    fitted = calibrate(Scorer.load(folder), pictures(90), names(90), source="90 made-up pictures", alpha=0.1)
    bundle.write_calibration(folder, fitted)
    armed = Scorer.load(folder)
    assert armed.thresholds is not None
    assert armed.thresholds.alpha == 0.1
    assert armed.calibration is not None
    assert armed.calibration.mode == "unlabelled"
    assert sum(armed.calibration.images) == 90


def test_too_few_images_are_refused_before_any_is_scored(tiny_bundle: Path) -> None:
    def never() -> Iterator[Image]:
        raise AssertionError("scored")
        yield

    with pytest.raises(BundleError, match="too few") as raised:
        calibrate(Scorer.load(tiny_bundle), never(), names(40), source="")
    assert "at least 80" in raised.value.advice


@pytest.mark.slow
def test_labels_must_be_the_bundles_and_counts_must_agree(tiny_bundle: Path) -> None:
    scorer = Scorer.load(tiny_bundle)
    with pytest.raises(BundleError, match="tumour"):
        calibrate(scorer, pictures(90), names(90), source="", truths=["tumour"] * 90)
    with pytest.raises(BundleError, match="89 images, 90 groups"):
        calibrate(scorer, pictures(89), names(90), source="", alpha=0.1)


@pytest.mark.slow
def test_with_labels_only_the_correct_ones_set_the_papers_theta(tiny_bundle: Path) -> None:
    scorer = Scorer.load(tiny_bundle)
    found = calibrate(scorer, pictures(90), names(90), source="", alpha=0.1, truths=[scorer.labels[1]] * 90)
    assert found.mode == "labelled"
    assert found.paper_images < 90
