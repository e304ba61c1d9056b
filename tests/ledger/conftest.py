from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicomguard.decision import Decision, Disposition, InstanceDecision, Reason, Verdict
from dicomguard.ledger import Ledger
from dicomguard.study import Uid

KEY = bytes(range(32))
MakeDecision = Callable[..., Decision]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def url(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "heads.json"


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once: a tenth of a second that each test would pay."""
    path = tmp_path_factory.mktemp("ledger") / "empty.sqlite"
    Ledger.open(f"sqlite:///{path}", KEY, "screen", heads=None).close()
    return path


@pytest.fixture
def ledger(empty_ledger: Path, database: Path, url: str, heads: Path) -> Iterator[Ledger]:
    shutil.copyfile(empty_ledger, database)
    database.chmod(0o600)
    with Ledger.open(url, KEY, "screen", heads=heads) as opened:
        yield opened


@pytest.fixture(scope="session")
def make_decision() -> MakeDecision:
    count = itertools.count(1)

    def make(
        study: str = "1.2.3",
        *,
        claim: str | None = None,
        version: int = 1,
        disposition: Disposition = Disposition.FORWARD,
        instances: int = 2,
        **changes: object,
    ) -> Decision:
        number = next(count)
        parts = tuple(
            InstanceDecision(
                sop_instance_uid=Uid(f"{study}.{number}.{index}"),
                sop_class_uid=Uid("1.2.840.10008.5.1.4.1.1.1.1"),
                series_instance_uid=Uid(f"{study}.9"),
                transfer_syntax_uid=Uid("1.2.840.10008.1.2.1"),
                sha256=f"{number:032x}{index:032x}",
                size_bytes=524_288,
                file_name=f"{number}-{index}.dcm",
                verdict=Verdict.SUSPECT,
                reasons=(Reason.SCORE_OVER_THRESHOLD,),
                action="quarantine",
                mode="enforce",
                bundle="chest-xray",
                fingerprint="f" * 64,
                scores={"statistic": 0.1 + 0.2, "drops": [0.25, -1e-9]},
            )
            for index in range(instances)
        )
        values: dict[str, object] = {
            "decision_id": f"{number:032x}",
            "claim_id": claim or f"claim-{number}",
            "version": version,
            "study_instance_uid": Uid(study),
            "disposition": disposition,
            "verdict": Verdict.SUSPECT,
            "reasons": (Reason.SCORE_OVER_THRESHOLD,),
            "bundle": "chest-xray",
            "fingerprint": "f" * 64,
            "mode": "enforce",
            "peer": "MODALITY@127.0.0.1",
            "received_at": datetime(2026, 3, 1, 12, 0, 0, 123_456, UTC),
            "decided_at": datetime(2026, 3, 1, 12, 0, 9, tzinfo=UTC),
            "destinations": (),
            "instances": parts,
        }
        return Decision(**{**values, **changes})  # type: ignore[arg-type]

    return make
