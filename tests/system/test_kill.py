"""kill -9 of any one process at random moments while two senders stream: nothing acknowledged is lost."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dicomguard.cli.verification import problems
from dicomguard.config import load
from dicomguard.spool import envelope
from dicomguard.spool.store import Spool
from tests.system.conftest import until

KILLS = int(os.environ.get("DICOMGUARD_KILLS", "8"))
SENDERS = Path(__file__).parents[1] / "wire" / "senders.py"


def test_nothing_acknowledged_is_lost_whatever_is_killed(make_node, ai, tmp_path):
    node = make_node(
        study={"quiet_s": 0.3},
        peers=[{"ae_title": "SCU", "host": "127.0.0.1"}],
        delivery={"retry_first_s": 0.2, "retry_max_s": 1.0},
    )
    node.start()
    senders = [stream(node.port, tmp_path / f"acks-{n}") for n in range(2)]
    chance = random.Random(2026)
    killed = []
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.1, 2.0))
            killed.append(kill_one(node, chance))
            if killed[-1] == "serve":
                node.start()
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()
    acknowledged = acks(tmp_path)
    assert len(acknowledged) > 5 * KILLS, node.log_end()

    spool = Spool(node.data_dir / "spool")
    # Kills can hit one claim three times; a person would put it back, and so do we.
    assert until(node, lambda: drained(spool), within_s=120 + 6 * KILLS), node.log_end()
    assert node.stop() == 0
    arrived = ai.digests()
    lost = {uid: digest for uid, digest in acknowledged.items() if arrived.get(uid) != digest}
    assert lost == {}
    partial = [path for _, path in spool.everything() if not is_whole(path)]
    assert partial == []
    assert list(problems(load(node.config_path, {}))) == []
    tally = {name: killed.count(name) for name in sorted(set(killed))}
    print(f"{len(killed)} kills {tally}, {len(acknowledged)} acknowledged, 0 lost")


def stream(port, acks_path):
    command = [sys.executable, str(SENDERS), "--port", str(port), "--called", "DICOMGUARD", "--acks", str(acks_path)]
    return subprocess.Popen([*command, "--pixel-bytes", "262144"], stderr=subprocess.DEVNULL)


def kill_one(node, chance):
    """SIGKILL one process of the node, each kind being as likely as the next; what it was."""
    serve = psutil.Process(node.pid)
    kinds = {"serve": [serve]}
    for process in serve.children(recursive=True):
        kinds.setdefault(kind_of(process), []).append(process)
    kind = chance.choice(sorted(kinds))
    process = chance.choice(kinds[kind])
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
    if kind == "serve":
        node._process.wait()
    return kind


def kind_of(process):
    try:
        line = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "gone"
    names = {"dicomguard.receive": "acceptor", "dicomguard.pixels": "decoder"}
    for module, name in names.items():
        if module in line:
            return name
    return next((name for name in ("receive", "screen", "deliver") if f"dicomguard {name}" in line), "other")


def acks(folder):
    found = {}
    for path in folder.glob("acks-*"):
        for line in path.read_text().splitlines():
            if len(line.split()) == 2:
                uid, digest = line.split()
                found[uid] = digest
    return found


def drained(spool):
    for claim in spool.failed():
        spool.requeue(claim)
    return not any(spool.arrivals().values()) and not spool.claims() and not list(spool.outgoing("ai"))


def is_whole(path):
    instance = envelope.read(path)
    return hashlib.sha256(path.read_bytes()[instance.data_offset :]).hexdigest() == instance.receipt.sha256


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 20 * KILLS)]
