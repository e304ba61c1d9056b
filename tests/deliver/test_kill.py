from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from loopback import CR, EXPLICIT

from dicomguard.ledger import DeliveryState

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, threading
from pathlib import Path
from dicomguard.deliver import Destination, run
from dicomguard.ledger import Ledger
from dicomguard.spool.store import Spool
from dicomguard.study import AeTitle, Peer

root, port = Path(sys.argv[1]), int(sys.argv[2])
print("up", flush=True)
with Ledger.open(f"sqlite:///{root}/ledger.sqlite", bytes(range(32)), "deliver", heads=root / "heads") as ledger:
    run(
        Spool(root / "data"), ledger, [Destination("ai", Peer(AeTitle("AI"), "127.0.0.1", port))],
        calling_ae="GUARD", retention_days=1, stop=threading.Event(),
    )
"""


def test_kill_9_loses_nothing_alters_nothing_and_breaks_no_chain(node, make_scp, tmp_path):
    scp = make_scp([(CR, EXPLICIT)])
    sent = {}
    for study in range(6):
        uids = [f"{study}.{number}" for number in range(25)]
        sent |= node.forward(*uids, study=f"9.{study}", decision=f"d{study:02}")
    chance = random.Random(7)
    kills = 0  # each may hit a start, an association, a commit or a move
    deadline = time.monotonic() + 300
    while node.waiting() and time.monotonic() < deadline:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(scp.port)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.3 + 0.01 * kills))  # on a busy machine a short life delivers nothing
        process.kill()
        process.wait()
        process.stdout.close()
        kills += 1
        assert node.ledger.verify() == []
    assert kills >= 3
    assert node.waiting() == []
    assert node.dead() == []
    assert set(node.states().values()) == {DeliveryState.DELIVERED}
    assert len(node.states()) == 150
    assert {uid: data for uid, _, data in scp.received} == sent
    # Sent again is what was sent and not yet recorded when the process died, no more.
    assert len(scp.received) <= 150 + kills * 17
