"""Studies that are due at one moment share batches, and stay strangers otherwise."""

from __future__ import annotations

import pytest

from dicomguard.decision import Disposition, Verdict
from dicomguard.errors import LedgerError
from tests.screen.conftest import CLEAN, RAISES, SUSPECT


def counting(site):
    sizes = []
    score = site.scorer.score

    def counted(batch, seeds):
        sizes.append(len(batch))
        return score(batch, seeds)

    site.scorer.score = counted
    return sizes


def test_studies_that_are_due_together_share_a_batch(site):
    sizes = counting(site)
    for seed in range(5):
        site.send(SUSPECT if seed == 3 else CLEAN, seed=seed)
    screener = site.screener()
    screener.step()
    site.now_s += 11
    assert screener.step()
    assert sizes == [5]
    verdicts = [decision.verdict for decision in site.decisions()]
    assert sorted(verdicts) == [Verdict.CLEAN] * 4 + [Verdict.SUSPECT]
    assert not screener.step()


def test_a_batch_ends_so_that_a_stop_need_not_wait_long(site):
    for seed in range(40):
        site.send(seed=seed)
    screener = site.screener()
    screener.step()
    site.now_s += 11
    screener.step()
    assert len(site.decisions()) == 16
    screener.step()
    screener.step()
    assert len(site.decisions()) == 40


def test_one_that_the_model_cannot_do_takes_nobody_along(site):
    for seed in range(4):
        site.send(RAISES if seed == 1 else CLEAN, seed=seed)
    site.screen()
    dispositions = sorted(decision.disposition for decision in site.decisions())
    assert dispositions == [Disposition.FORWARD] * 3 + [Disposition.QUARANTINE]


def test_an_examiner_that_fails_on_all_together_is_asked_about_each(site, monkeypatch):
    for seed in range(3):
        site.send(seed=seed)
    screener = site.screener()
    examine = screener._examiner.examine

    def only_alone(instances):
        if len(instances) > 1:
            raise MemoryError("too many at once")
        return examine(instances)

    monkeypatch.setattr(screener._examiner, "examine", only_alone)
    site.screen(screener)
    assert [decision.verdict for decision in site.decisions()] == [Verdict.CLEAN] * 3


def test_a_ledger_that_goes_away_in_the_middle_loses_no_claim(site, monkeypatch):
    for seed in range(4):
        site.send(seed=seed)
    screener = site.screener()
    record = site.ledger.record_decisions
    calls = []

    def fails_once(decisions):
        calls.append(decisions)
        if len(calls) == 2:
            raise LedgerError("the ledger is away")
        return record(decisions)

    monkeypatch.setattr(site.ledger, "record_decisions", fails_once)
    screener.step()
    site.now_s += 11
    with pytest.raises(LedgerError):
        screener.step()
    assert len(site.decisions()) == 1
    while screener.step():
        pass
    assert len(site.decisions()) == 4


def test_a_large_study_keeps_no_small_one_waiting(site, monkeypatch):
    for seed in range(3):
        site.send(seed=seed)
    for seed in range(10, 30):
        site.send(seed=seed, study="1.2.3.99")
    screener = site.screener()
    examine = screener._examiner.examine
    looks = []

    def watched(instances):
        looks.append([instance.study_instance_uid for instance in instances])
        return examine(instances)

    monkeypatch.setattr(screener._examiner, "examine", watched)
    site.screen(screener)
    assert len(site.decisions()) == 4
    assert max(map(len, looks)) == 20
    assert all(set(look) == {"1.2.3.99"} for look in looks if "1.2.3.99" in look)


def test_what_was_claimed_before_the_disk_failed_is_screened_later(site, monkeypatch):
    for seed in range(3):
        site.send(seed=seed)
    screener = site.screener()
    claim = site.spool.claim
    calls = []

    def fails_at_the_second(study_key):
        calls.append(study_key)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return claim(study_key)

    monkeypatch.setattr(site.spool, "claim", fails_at_the_second)
    screener.step()
    site.now_s += 11
    while screener.step():
        pass
    assert len(site.decisions()) == 2  # those before and behind it do not wait
    assert site.ledger.events("host_failing")[0].detail["detail"] == "No space left on device"
    site.now_s += 1
    while screener.step():
        pass
    assert len(site.decisions()) == 3
