"""Every malformed and hostile file of the corpus through the screener: no crash, no hang, every file accounted for."""

import time
from collections import Counter

import pytest

from dicomguard.decision import Disposition, Fault, Reason, Verdict
from dicomguard.pixels.sandbox import DecodeWorker
from tests.screen.conftest import EXPLICIT, Site
from tests.spool.conftest import everything

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(600)]

# The bound is on the work for one file: claim, sandbox, decision, ledger, move. Measured: about 0.03 s.
LIMIT_S = 2.0


@pytest.mark.parametrize("in_command", [True, False], ids=["uids-of-the-file", "uids-missing"])
def test_every_malformed_file_ends_somewhere_with_a_reason(tmp_path, data_dir, in_command, monkeypatch):
    # The receipts' UIDs are made up, so that no two of the files contradict each other.
    monkeypatch.setattr("dicomguard.screen.examine.misnamed", lambda header, receipt: [])
    files = sorted(path for path in (data_dir / "malformed_dicom").rglob("*") if path.is_file())
    assert len(files) > 300
    slowest = ("", 0.0)
    with DecodeWorker() as worker:
        site = Site(tmp_path, worker)
        site.match = {}  # whatever can be decoded is scored
        site.scorer.score = lambda batch, seeds: [site.scorer._one(0) for _ in batch]
        screener = site.screener()
        for number, path in enumerate(files):
            data = path.read_bytes()
            located = worker.locate(path)
            offset, syntax = (0, EXPLICIT) if isinstance(located, Fault) else located
            fault = "" if in_command else Reason.MISSING_UID.value
            site.put(data[offset:], f"1.2.{number}", f"1.3.{number}" if in_command else "", fault=fault, syntax=syntax)
            screener.step()
            site.now_s += 11
            began = time.perf_counter()
            screener.step()
            slowest = max(slowest, (path.name, time.perf_counter() - began), key=lambda item: item[1])
        decisions = list(site.ledger.decisions())
        site.ledger.close()
    instances = [instance for decision in decisions for instance in decision.instances]
    assert len(instances) == len({i.sop_instance_uid for i in instances}) == len(files)
    assert site.spool.failed() == []
    assert site.spool.claims() == []
    places = Counter(place for place, _ in everything(site.spool) if place in {"store", "quarantine"})
    held = [d for d in decisions if d.disposition is Disposition.QUARANTINE]
    assert places["quarantine"] == sum(len(d.instances) for d in held)
    assert places.total() == len(files)
    for decision in decisions:
        assert decision.reasons or decision.verdict is Verdict.CLEAN
        for instance in decision.instances:
            assert (instance.verdict is Verdict.CLEAN) == (instance.scores is not None and not instance.reasons)
    if not in_command:
        assert len(held) == len(decisions)
    assert slowest[1] < LIMIT_S, slowest
    print(
        f"slowest {slowest}; {Counter(r.value for i in instances for r in i.reasons)}, clean "
        f"{sum(i.verdict is Verdict.CLEAN for i in instances)}"
    )
