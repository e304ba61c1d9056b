from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scu"))

from loopback import CR, EXPLICIT, data_set, make_scp, part10, scripted  # the peers that these tests talk to

from dicomguard.decision import Decision, Disposition, InstanceDecision, Verdict
from dicomguard.deliver import Destination, Settings
from dicomguard.deliver.courier import Courier
from dicomguard.ledger import DeliveryState, Ledger
from dicomguard.spool.store import Claim, Spool
from dicomguard.study import AeTitle, Peer, Receipt, Uid, study_key

__all__ = ["make_scp", "part10", "scripted"]

KEY = bytes(range(32))
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
_versions = itertools.count(1)


@dataclass
class Clock:
    """Moves only when told to."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)


@dataclass
class Node:
    """A spool and a ledger, with a way to queue what would have been decided."""

    spool: Spool
    ledger: Ledger
    clock: Clock = field(default_factory=Clock)

    def forward(
        self,
        *uids: str,
        study: str = "1.2",
        decision: str = "d1",
        destinations: tuple[str, ...] = ("ai",),
        syntaxes: tuple[str, str] = (CR, EXPLICIT),
        each: Mapping[str, tuple[str, str]] | None = None,
        received_at: datetime = START,
        data: bytes | None = None,
        decided: bool = True,
    ) -> dict[str, bytes]:
        """Receive, claim, forward: the real way into `outbound/`. `each`: syntaxes by UID, where they differ."""
        all_syntaxes = dict.fromkeys(uids, syntaxes) | dict(each or {})
        sent = {}
        incoming = self.spool.incoming(reserve_bytes=0)
        for uid, syntaxes in all_syntaxes.items():  # noqa: PLR1704 - the one default becomes each one's own
            sent[uid] = data_set(uid, sop_class_uid=syntaxes[0]) if data is None else data
            part = incoming.begin(
                sop_class_uid=syntaxes[0], sop_instance_uid=uid, transfer_syntax_uid=syntaxes[1], calling_ae="CT"
            )
            part.write(sent[uid])
            part.commit(
                Receipt(
                    received_at, "CT", "GUARD", "127.0.0.1", "a1",
                    Uid(syntaxes[0]), Uid(uid), Uid(syntaxes[1]), Uid(study), Uid(study + ".1"), "", 0,
                )
            )  # fmt: skip
        (key,) = self.spool.arrivals()
        claim = self.spool.claim(key)
        assert claim is not None
        if decided:
            self.ledger.record_decisions([decision_about(decision, claim, study, destinations, self.clock.now())])
        self.spool.forward(claim, decision, [i.name for i in claim.instances], destinations)
        self.spool.finish(claim)
        return sent

    def hold(self, uid: str, decision: str = "held", study: str = "1.2") -> Path:
        """A study that was quarantined; returns the folder that holds it."""
        self.forward(uid, study=study, decision=decision, destinations=(), decided=False)
        (instance,) = [i for d, i in self.spool.stored() if d == decision]
        claim = Claim(decision, study_key(study), 1, instance.path.parent, (instance,))
        held = decision_about(decision, claim, study, ("ai",), disposition=Disposition.QUARANTINE)
        self.ledger.record_decisions([held])
        return instance.path.parent.rename(self.spool.root / "quarantine" / decision)

    def courier(self, port: int, name: str = "ai", **settings: object) -> Courier:
        return Courier(
            self.spool,
            self.ledger,
            Destination(name, Peer(AeTitle("AI"), "127.0.0.1", port)),
            Settings("GUARD", **settings),  # type: ignore[arg-type]
            monotonic=self.clock.monotonic,
            now=self.clock.now,
            jitter=lambda: 0.0,
        )

    def states(self, destination: str = "ai") -> dict[str, DeliveryState]:
        return {d.sop_instance_uid: d.state for d in self.ledger.deliveries(destination=destination)}

    def history(self, uid: str, destination: str = "ai") -> list[str]:
        return [d.state.value for d in self.ledger.delivery_history(uid, destination)]

    def waiting(self, destination: str = "ai") -> list[str]:
        return [item.instance.sop_instance_uid for item in self.spool.outgoing(destination)]

    def dead(self) -> list[str]:
        return [item.instance.sop_instance_uid for item in self.spool.undeliverable()]

    def event_kinds(self) -> list[str]:
        return [event.kind for event in self.ledger.events()]


def decision_about(
    decision_id: str,
    claim: Claim,
    study: str,
    destinations: tuple[str, ...],
    decided_at: datetime = START,
    *,
    disposition: Disposition = Disposition.FORWARD,
) -> Decision:
    """What the screener would have recorded about a claim."""
    found = tuple(
        InstanceDecision(
            i.receipt.sop_instance_uid, i.receipt.sop_class_uid, i.receipt.series_instance_uid,
            i.receipt.transfer_syntax_uid, i.receipt.sha256, i.receipt.size_bytes, i.name,
            Verdict.CLEAN, (), "forward", "enforce",
        )
        for i in claim.instances
    )  # fmt: skip
    return Decision(
        decision_id, claim.claim_id, next(_versions), Uid(study), disposition, Verdict.CLEAN, (), None, None, "enforce",
        "CT@::1", START, decided_at, destinations, found,
    )  # fmt: skip


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once: a tenth of a second that each test would pay."""
    path = tmp_path_factory.mktemp("ledger") / "empty.sqlite"
    Ledger.open(f"sqlite:///{path}", KEY, "deliver", heads=None).close()
    return path


@pytest.fixture
def node(tmp_path: Path, empty_ledger: Path) -> Iterator[Node]:
    shutil.copyfile(empty_ledger, tmp_path / "ledger.sqlite")
    spool = Spool(tmp_path / "data")
    spool.create()
    heads = tmp_path / "heads"
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite", KEY, "deliver", heads=heads) as ledger:
        yield Node(spool, ledger)
        assert ledger.verify() == []


@pytest.fixture
def finish() -> Callable[[Courier], int]:
    """Steps until there is nothing to do now; returns how many steps did something."""

    def run(courier: Courier) -> int:
        steps = 0
        while courier.step():
            steps += 1
            assert steps < 100
        return steps

    return run
