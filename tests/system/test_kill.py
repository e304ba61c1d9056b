"""kill -9 of any one process at random moments while two senders stream: nothing acknowledged is lost.

DICOMGUARD_KILLS: how many kills (8; CI takes more). DICOMGUARD_KILL_SEED: another run of bad luck.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from dicomguard.cli import compose
from dicomguard.cli.verification import problems
from dicomguard.config import load
from dicomguard.decision import Disposition
from dicomguard.spool import envelope
from dicomguard.spool.store import EVIDENCE, Spool
from tests.spool.conftest import everything
from tests.system.conftest import until

KILLS = int(os.environ.get("DICOMGUARD_KILLS", "8"))
SEED = int(os.environ.get("DICOMGUARD_KILL_SEED", "2026"))
MODALITY = Path(__file__).with_name("pictures.py")
KINDS = ("acceptor", "decoder", "deliver", "receive", "screen", "serve")
# Killing these costs seconds of loading torch and the model; the next such kill waits until there is work to disturb.
SCREENING = ("decoder", "screen", "serve")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 20 * KILLS)]


def test_nothing_acknowledged_is_lost_whatever_is_killed(make_node, ai, armed_bundle, tmp_path):
    node = make_node(
        bundles=[{"path": str(armed_bundle), "match": {"Modality": ["CT"]}}],
        study={"quiet_s": 0.3},
        peers=[{"ae_title": "SCU", "host": "127.0.0.1"}],
        delivery={"retry_first_s": 0.2, "retry_max_s": 1.0},
    )
    node.start()
    spool = Spool(node.data_dir / "spool")
    senders = [stream(node.port, tmp_path / f"acks-{n}", seed=n) for n in range(2)]
    chance = random.Random(SEED)
    killed = Counter()
    put_back = 0
    began_s = time.monotonic()
    starts = 0
    try:
        for _ in range(KILLS):
            kind = chance.choice(KINDS)
            if kind in SCREENING:
                assert until(node, lambda starts=starts: starts_of_screener(node) > starts), node.log_end()
                assert until(node, lambda: list((spool.root / "claimed").iterdir()), pause_s=0.01), node.log_end()
            if kind == "deliver":
                assert until(node, lambda: list(spool.outgoing("ai")), pause_s=0.005), node.log_end()
            time.sleep(chance.uniform(0.0, 0.05 if kind == "deliver" else 1.0))
            starts = starts_of_screener(node) if kind in {"screen", "serve"} else starts
            assert until(node, lambda kind=kind: kill(node, kind, chance), within_s=60), (kind, node.log_end())
            killed[kind] += 1
            if kind == "serve":
                node.start()
    finally:
        took_s = time.monotonic() - began_s
        for sender in senders:
            sender.kill()
            sender.wait()
    acknowledged = acks(tmp_path)
    assert len(acknowledged) > 5 * KILLS, node.log_end()

    def is_drained():
        # Kills can hit one claim three times; a person would put it back, and so do we.
        nonlocal put_back
        for claim in spool.failed():
            put_back += 1
            spool.requeue(claim)
        return not any(spool.arrivals().values()) and not spool.claims() and not list(spool.outgoing("ai"))

    assert until(node, is_drained, within_s=180 + 6 * KILLS, pause_s=0.5), node.log_end()
    assert node.stop() == 0

    config = load(node.config_path, {})
    with compose.open_ledger(config, "cli") as ledger:
        held = set(held_instances(spool, ledger))
        verdicts = Counter(decision.verdict.value for decision in ledger.decisions())
        reasons = Counter(reason.value for decision in ledger.decisions() for reason in decision.reasons)
        scored = {i.sha256 for decision in ledger.decisions() for i in decision.instances if i.scores is not None}
    arrived = set(ai.digests().items())
    lost = acknowledged - arrived - held
    assert lost == set()
    assert arrived.isdisjoint(held)
    assert [path for _, path in everything(spool) if not is_whole(path)] == []
    assert list(problems(config)) == []
    # The kills met scoring, holding and drawing, not only copying.
    assert len(scored) > len(acknowledged) / 2
    assert verdicts["SUSPECT"] > 0, verdicts
    assert any((spool.root / "quarantine").glob(f"*/{EVIDENCE}/evidence.json"))
    again = transfers(tmp_path / "ai") - len(arrived)
    print(
        f"\n{killed.total()} kills in {took_s:.0f} s (seed {SEED}) {dict(sorted(killed.items()))}: "
        f"{len(acknowledged)} acknowledged, {len(lost)} lost, {len(acknowledged & arrived)} arrived unaltered, "
        f"{len(acknowledged & held)} held; {len(scored)} scored; decisions {dict(verdicts)}, reasons {dict(reasons)}; "
        f"{again} sent twice; {put_back} claims struck out three times and put back by hand"
    )


def starts_of_screener(node):
    """How often it has got as far as having its models."""
    return node.config_path.with_name("node.log").read_text(errors="replace").count("The screener is ready")


def stream(port, acks_path, *, seed):
    command = [sys.executable, str(MODALITY), "--port", str(port), "--acks", str(acks_path), "--seed", str(seed)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def kill(node, kind, chance):
    """SIGKILL one process of that kind. False when there is none just now."""
    serve = psutil.Process(node.pid)
    if kind == "serve":
        serve.send_signal(signal.SIGKILL)
        node._process.wait()
        return True
    there = [process for process in serve.children(recursive=True) if kind_of(process) == kind]
    if not there:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        chance.choice(there).send_signal(signal.SIGKILL)
        return True
    return False


def kind_of(process):
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    names = {"dicomguard.receive": "acceptor", "dicomguard.pixels": "decoder"}
    for module, name in names.items():
        if module in line:
            return name
    return next((name for name in ("receive", "screen", "deliver") if f"dicomguard {name}" in line), "other")


def acks(folder):
    """(SOP Instance UID, SHA-256) of everything that a sender was told is safe; a torn last line told nobody."""
    lines = [line for path in folder.glob("acks-*") for line in path.read_text().splitlines(keepends=True)]
    return {tuple(line.split()) for line in lines if line.endswith("\n")}


def held_instances(spool, ledger):
    """What lies in quarantine and is there by a decision of the ledger."""
    for folder in (spool.root / "quarantine").iterdir():
        decision = ledger.decision(folder.name)
        named = {(instance.file_name, instance.sha256) for instance in decision.instances}
        for instance in spool.quarantined(folder.name):
            if decision.disposition is Disposition.QUARANTINE and (instance.name, instance.receipt.sha256) in named:
                yield str(instance.sop_instance_uid), instance.receipt.sha256


def transfers(folder):
    """How many instances the AI stand-in has taken, repeated ones included, by its journal."""
    stored = {}
    for path in (folder / "spool" / "journal", folder / "journal"):
        for file in path.glob("*") if path.is_dir() else ():
            for line in file.read_text().splitlines():
                event = json.loads(line)
                key = event.get("association_id", "")
                stored[key] = max(stored.get(key, 0), event.get("instances", 0))
    return sum(stored.values())


def is_whole(path):
    instance = envelope.read(path)
    return hashlib.sha256(path.read_bytes()[instance.data_offset :]).hexdigest() == instance.receipt.sha256
