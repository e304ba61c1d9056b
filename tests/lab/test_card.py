"""The model cards that are shipped are those that the code writes."""

import json
import shutil
from pathlib import Path

import pytest

from dicomguard.lab import card
from dicomguard.lab.recipes import RECIPES
from dicomguard.scoring.scorer import Scorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_card_is_what_its_enrolment_and_results_say(name: str, tmp_path: Path) -> None:
    shipped, results = ROOT / "config" / "bundles" / name, ROOT / "docs" / "results" / f"score-{name}.json"
    enrolment = Scorer.load(shipped).enrolment
    assert enrolment is not None
    copy = tmp_path / name
    shutil.copytree(shipped, copy)
    (copy / "docs" / "README.md").unlink()
    card.write(RECIPES[name], copy, enrolment, json.loads(results.read_text()) if results.exists() else None)
    assert (copy / "docs" / "README.md").read_text() == (shipped / "docs" / "README.md").read_text()
