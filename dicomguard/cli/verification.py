"""What `dicomguard verify` re-checks: chains, bytes, bundles; and that folders and ledger tell the same story."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dicomguard.cli import compose
from dicomguard.config import Config
from dicomguard.decision import Disposition
from dicomguard.errors import BundleError, EnvelopeError
from dicomguard.ledger import Ledger
from dicomguard.spool import envelope
from dicomguard.spool.store import Spool

_CHUNK_BYTES = 2**20
_DECIDED = ("store", "quarantine", "rejected")


def problems(config: Config) -> Iterator[dict[str, Any]]:
    """Everything that is not as it was recorded, one at a time, each naming what is wrong."""
    with compose.open_ledger(config, "cli") as ledger:
        for problem in ledger.verify():
            yield {"what": "ledger", **problem.to_json(), "message": str(problem)}
        spool = compose.open_spool(config)
        yield from _instances(spool, ledger)
        yield from _missing(spool, ledger)
    yield from _bundles(config)


def _instances(spool: Spool, ledger: Ledger) -> Iterator[dict[str, Any]]:
    recorded = {
        (decision.decision_id, instance.file_name): (instance.sha256, decision.disposition)
        for decision in ledger.decisions()
        for instance in decision.instances
    }
    for place, path in spool.everything():
        where = {"what": "instance", "place": place, "path": str(path)}
        try:
            instance = envelope.read(path)
        except EnvelopeError as error:
            yield {**where, "message": str(error)}
            continue
        where["sop_instance_uid"] = instance.sop_instance_uid
        if _digest(path, instance.data_offset) != instance.receipt.sha256:
            message = f"The data set of {instance.sop_instance_uid} in {place}/ is not the one that was received."
            yield {**where, "message": message}
            continue
        if place not in _DECIDED:
            continue
        sha256, disposition = recorded.get((path.parent.name, path.name), (None, None))
        if sha256 is None:
            message = f"No decision {path.parent.name} of the ledger names {instance.sop_instance_uid} in {place}/."
            yield {**where, "message": message}
        elif sha256 != instance.receipt.sha256:
            message = f"The ledger recorded another data set for {instance.sop_instance_uid} in {place}/."
            yield {**where, "message": message}
        elif place != "store" and disposition is not Disposition.QUARANTINE:
            yield {**where, "message": f"{instance.sop_instance_uid} is in {place}/, but was never quarantined."}
        elif place == "store" and disposition is Disposition.QUARANTINE and not _was_released(ledger, path.parent.name):
            yield {**where, "message": f"{instance.sop_instance_uid} left quarantine, but nobody released it."}


def _missing(spool: Spool, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """What the ledger says is held, and is not there."""
    ruled = {review.decision_id for review in ledger.reviews()}
    for decision in ledger.decisions(disposition=Disposition.QUARANTINE):
        if decision.decision_id in ruled:
            continue
        there = {instance.name for instance in spool.quarantined(decision.decision_id)}
        for instance in decision.instances:
            if instance.file_name not in there:
                uid = instance.sop_instance_uid
                message = f"{uid} of decision {decision.decision_id} is not in quarantine, and nobody ruled on it."
                yield {"what": "instance", "place": "quarantine", "sop_instance_uid": uid, "message": message}


def _was_released(ledger: Ledger, decision_id: str) -> bool:
    return any(review.action == "release" for review in ledger.reviews(decision_id))


def _digest(path: Path, offset: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _bundles(config: Config) -> Iterator[dict[str, Any]]:
    from dicomguard.scoring.scorer import Scorer

    for section in config.bundles:
        try:
            scorer = Scorer.load(section.path, device=config.device)
        except BundleError as error:
            yield {"what": "bundle", "path": str(section.path), "message": str(error)}
            continue
        if section.fingerprint is not None and section.fingerprint != scorer.fingerprint:
            message = f"The fingerprint of {section.path} is {scorer.fingerprint}, not the one that is pinned."
            yield {"what": "bundle", "path": str(section.path), "message": message}
