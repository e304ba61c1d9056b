"""Receivers on loopback, in this process or as processes of their own."""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from dicomguard.receive.server import Receiver
from dicomguard.receive.settings import PermittedPeer, ReceiveSettings
from dicomguard.spool import envelope, journal
from dicomguard.spool.incoming import Incoming
from dicomguard.spool.journal import JournalWriter
from dicomguard.spool.store import Spool
from dicomguard.study import AeTitle, Instance

LOOPBACK = ip_network("127.0.0.0/8")


def make_settings(**changes: Any) -> ReceiveSettings:
    """Settings on a free port, with deadlines that tests can wait for."""
    values: dict[str, Any] = {
        "ae_title": AeTitle("GUARD"),
        "peers": (PermittedPeer(AeTitle("SCU"), LOOPBACK),),
        "port": 0,
        "acceptors": 1,
        "linger_s": 0.5,
        "journal_rotate_s": 0.2,
    }
    return ReceiveSettings(**{**values, **changes})


@dataclass
class Node:
    """A running receiver and its spool."""

    receiver: Receiver
    spool: Spool

    @property
    def port(self) -> int:
        return self.receiver.port

    @property
    def instances(self) -> list[Instance]:
        return [envelope.read(path) for path in sorted((self.spool.root / "incoming").rglob("*.dcm"))]

    @property
    def parts(self) -> list[Path]:
        return list((self.spool.root / "receiving").iterdir())

    def stop(self) -> list[dict[str, Any]]:
        """Stop, and return the journal."""
        self.receiver.stop(0.5)
        return [event for _, events in journal.finished(self.spool.root) for event in events]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start a receiver with changed settings; `incoming` replaces the receiving end of the spool."""
    nodes: list[Node] = []
    threads_before = set(threading.enumerate())

    def start_one(incoming: Incoming | None = None, **changes: Any) -> Node:
        spool = Spool(tmp_path / f"spool{len(nodes)}")
        spool.create()
        receiver = Receiver(
            make_settings(**changes), incoming or spool.incoming(reserve_bytes=0), JournalWriter(spool.root)
        )
        receiver.start()
        nodes.append(Node(receiver, spool))
        return nodes[-1]

    yield start_one
    for node in nodes:
        if not node.receiver.is_stopped:
            node.receiver.stop(0.5)
        assert node.receiver.connections == 0
    left = [thread for thread in set(threading.enumerate()) - threads_before if thread.name.startswith("association")]
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)


@pytest.fixture
def node(start: Callable[..., Node]) -> Node:
    return start()
