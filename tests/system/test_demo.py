"""The demo as a newcomer runs it, and its decisions under other keys: is it luck?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dicomguard.site_key import SiteKey

BUNDLE = Path(__file__).parents[2] / "config" / "bundles" / "phantom"
KEYS = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_demo_ends_with_every_study_where_it_should_be(tmp_path):
    command = [sys.executable, "-m", "dicomguard", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["truth"] for row in rows].count("clean") == 6
    assert [row["truth"] for row in rows].count("attacked") == 6
    for row in rows:
        is_attacked = row["truth"] == "attacked"
        assert row["disposition"] == ("quarantine" if is_attacked else "forward")
        assert row["arrived"] is not is_attacked
        # Attacked means that the classifier was turned: it says what is not there.
        assert (row["answer"] != row["shows"]) is is_attacked


def test_its_decisions_hold_under_twenty_keys():
    from dicomguard import demo
    from dicomguard.decision import Policy, judge_score
    from dicomguard.pixels import reader
    from dicomguard.scoring import noise
    from dicomguard.scoring.scorer import Scorer

    scorer = Scorer.load(BUNDLE)
    specimens = demo.make_specimens(scorer, lambda *_: None)
    batch = scorer.prepare([image for s in specimens for image in reader.images(s.dataset)])
    false_holds, misses = [], []
    for number in range(KEYS):
        key = SiteKey.fixed(f"key {number}").for_purpose("noise")
        uids = [str(s.dataset.SOPInstanceUID) for s in specimens]
        seeds = [noise.seeds(key, uid, 0, "0" * 64, scorer.fingerprint) for uid in uids]
        for specimen, score in zip(specimens, scorer.score(batch, seeds), strict=True):
            held = judge_score(score, scorer.thresholds, Policy()).action == "quarantine"
            if held and specimen.truth == "clean":
                false_holds.append((number, specimen.name))
            if not held and specimen.truth == "attacked":
                misses.append((number, specimen.name))
    print(f"{KEYS} keys: {len(false_holds)} false holds {false_holds}, {len(misses)} misses {misses}")
    assert misses == []
    # The calibration allows alpha of the clean images; with so few images, a few of 120 decisions.
    assert len(false_holds) <= 0.05 * KEYS * len(demo.CLEAN_SEEDS)
