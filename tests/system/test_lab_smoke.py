"""The lab's five suites at their smallest, from pictures to the page that a person opens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SUITES = ("noise-consistency", "joel2023", "adaptive", "natural", "certified")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1500)
def test_every_suite_runs_and_is_reported(data_dir: Path, tmp_path: Path) -> None:
    work, results, out = tmp_path / "work", tmp_path / "results", tmp_path / "report"
    places = ["--data", str(data_dir), "--work", str(work), "--results", str(results), "--profile", "smoke", "--json"]
    wanted = [word for suite in SUITES for word in ("--suite", suite)]
    command = [sys.executable, "-m", "dicomguard", "lab", "benchmark", *wanted, *places]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["failed"] == []
    assert ran.stderr.count(": done.") == told["done"], "a log shows how far a night's run is"
    assert {path.name for path in results.glob("*.json")} == {f"lab-{suite}-smoke.json" for suite in SUITES}
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["done"] == 0, "what is there is not computed twice"
    report = [sys.executable, "-m", "dicomguard", "lab", "report", "--results", str(results), "--out", str(out)]
    subprocess.run([*report, "--profile", "smoke"], check=True, capture_output=True)
    page = (out / "report.html").read_text()
    assert "not measured yet" not in page
    assert page.count("<img") == page.count("data:image/png;base64,") >= 3
    assert "Detection (Table 2)" in page
    noise = json.loads((results / "lab-noise-consistency-smoke.json").read_text())
    assert noise["grid"][0]["attacks"]["DeepFool"]["flipped"] > 0
