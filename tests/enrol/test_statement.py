from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomguard.enrol import statement
from dicomguard.scoring.enrolment import CertifiedShare, Enrolment
from tests.scoring.small import enrol_small, write_small

SHARE = CertifiedShare(distilled=1000, certified=180, agreed=195, tested=200, weakest=0.8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_small(tmp_path_factory.mktemp("statement"), size=16, repeats=2)


@pytest.fixture(scope="module")
def enrolled(bundle: Path) -> Enrolment:
    trial = {"attack": "PGD 0.004", "tried": 40, "flipped": 0, "auroc": None, "flagged": 0}
    return enrol_small(bundle, certified=(SHARE,), self_test=(trial,))


def test_the_band_of_false_alarms_is_where_calibrations_fall() -> None:
    rng = np.random.default_rng(0)
    for held_back, alpha in ((99, 0.1), (60, 0.05)):
        rank = int(np.ceil((held_back + 1) * (1 - alpha) - 1e-9))
        rates = 1 - np.sort(rng.random((4000, held_back)), 1)[:, rank - 1]
        low, high = statement.false_alarm_band(held_back, alpha)
        assert np.mean((rates >= low) & (rates <= high)) == pytest.approx(0.95, abs=0.015)
        assert rates.mean() <= alpha + 0.003


def test_what_requiring_certificates_would_hold(enrolled: Enrolment, bundle: Path) -> None:
    assert statement.hold_rate(SHARE, 1) == pytest.approx(0.1)
    assert statement.hold_rate(SHARE, 10) == pytest.approx(1 - 0.9**10)
    assert statement.facts(enrolled)["require_holds"]["100"] == pytest.approx(1 - 0.9**100)


def test_the_page_says_what_is_promised_and_what_is_not(enrolled: Enrolment) -> None:
    page = statement.page(enrolled)
    for words in (
        enrolled.fingerprint,
        enrolled.clean_set.sha256,
        "May be enforced: yes",
        "probability at most 0.1",
        "No promise above 1 image",
        "180/200 = 0.900",
        "No detection rate against an attacker who knows the check",
        "| PGD 0.004 | 40 | 0 | - | 0 |",
        "grey levels of 12 bits",
    ):
        assert words in page, words


def test_a_refusal_stands_on_the_page(enrolled: Enrolment) -> None:
    refused = enrolled.model_copy(update={"armed": "shadow", "refusal": "the check sees nothing."})
    page = statement.page(refused)
    assert "May be enforced: no, shadow only.** the check sees nothing." in page


def test_without_a_guard_the_page_promises_no_certificates(bundle: Path) -> None:
    page = statement.page(enrol_small(bundle, guard=None))
    assert "enrolled without a guard" in page
    assert "CERTIFIED means" not in page


def test_facts_are_json_ready_and_lack_what_only_the_scorer_reads(enrolled: Enrolment) -> None:
    found = json.loads(json.dumps(statement.facts(enrolled)))
    assert found["study_sizes_promised"] == [[1, 1]]
    assert found["threshold"] == enrolled.calibration.threshold
    assert found["false_alarm_interval"] == list(statement.false_alarm_band(enrolled.calibration.images[1], 0.1))
    assert "calibration" not in found
    assert found["guard"]["eps"] == 0.0001
