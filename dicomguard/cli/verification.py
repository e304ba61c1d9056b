"""What `dicomguard verify` re-checks: chains, bytes, bundles; and that folders and ledger tell the same story.

The node may be at work meanwhile. Whatever moves is recorded first and moves one way, so places are looked at in the
order in which an instance passes through them; and what looks wrong is looked at again, with the ledger as it is by
then, before it is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from dicomguard.cli import compose
from dicomguard.cli.whereabouts import Whereabouts
from dicomguard.config import Config
from dicomguard.decision import Decision, Disposition
from dicomguard.errors import BundleError, EnvelopeError, LedgerError, NotFoundError
from dicomguard.ledger import Ledger
from dicomguard.spool import envelope
from dicomguard.spool.store import EVIDENCE, Spool

Finding = dict[str, Any]

# In the order in which an instance passes through them, so that none slips by from one to the next.
_PLACES: Final = ("claimed", "failed", "quarantine", "rejected", "outbound", "undeliverable", "store")
_OF_DECISIONS: Final = frozenset({"quarantine", "rejected", "outbound", "undeliverable", "store"})
_SUFFIX: Final = ".dcm"


def problems(config: Config) -> Iterator[Finding]:
    """Everything that is not as it was recorded, one at a time, each naming what is wrong."""
    spool = compose.open_spool(config, existing=True)
    with compose.open_ledger(config, "cli", existing=True) as ledger:
        for problem in ledger.verify():
            yield {"what": "ledger", **problem.to_json(), "message": str(problem)}
        yield from _as_far_as_it_goes("the files", lambda: _Present(spool, ledger).problems())
        yield from _as_far_as_it_goes("what is missing", lambda: Whereabouts(spool, ledger).problems())
    yield from _bundles(config)


def _as_far_as_it_goes(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """One check; a row of the ledger that it cannot use ends it, not those that come after."""
    try:
        yield from check()
    except (LedgerError, KeyError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, LedgerError) else f"A row of the ledger says nothing ({error!r})."
        yield {"what": "ledger", "message": f"{said} The check of {what} ended there."}


class _Present:
    """Checks every file that is there."""

    def __init__(self, spool: Spool, ledger: Ledger) -> None:
        self._root = spool.root
        self._ledger = ledger
        self._decisions: dict[str, Decision | None] = {}
        self._rulings = self._read_rulings()

    def problems(self) -> Iterator[Finding]:
        """What is wrong with them. A digest is taken once for each file, however many names it has."""
        whole: set[tuple[int, int]] = set()
        for place in _PLACES:
            for path in self._files(place):
                if self._check(place, path, whole) and (confirmed := self._check_again(place, path)):
                    yield confirmed

    def _files(self, place: str) -> Iterator[Path]:
        """Unlike `rglob`, not put out by a folder that goes while it is looked into."""
        for folder, folders, names in os.walk(self._root / place):
            folders[:] = sorted(name for name in folders if name != EVIDENCE)
            for name in sorted(names):
                if place in _OF_DECISIONS or name.endswith(_SUFFIX):
                    yield Path(folder) / name

    def _check_again(self, place: str, path: Path) -> Finding | None:
        self._decisions.pop(path.parent.name, None)
        self._rulings = self._read_rulings()
        found = self._check(place, path, set())
        return found if path.exists() else None

    def _check(self, place: str, path: Path, whole: set[tuple[int, int]]) -> Finding | None:
        where: Finding = {"what": "instance", "place": place, "path": str(path)}
        try:
            instance = envelope.read(path)
        except EnvelopeError as error:
            return {**where, "message": f"{error} (in {place}/)"}
        receipt = instance.receipt
        uid = where["sop_instance_uid"] = instance.sop_instance_uid
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity not in whole and envelope.data_sha256(instance) != receipt.sha256:
                return {**where, "message": f"The data set of {uid} in {place}/ is not the one that was received."}
        except OSError as error:
            return {**where, "message": f"{uid} in {place}/ cannot be read: {error.strerror}."}
        whole.add(identity)
        if place not in _OF_DECISIONS:
            return None
        try:
            decision = self._decision(path.parent.name)
        except LedgerError as error:
            return {**where, "message": f"{uid} in {place}/ cannot be held against its decision. {error}"}
        decided = next((i for i in decision.instances if i.file_name == path.name), None) if decision else None
        if decision is None or decided is None:
            return {**where, "message": f"No decision {path.parent.name} of the ledger names {uid} in {place}/."}
        if decided.sha256 != receipt.sha256:
            return {**where, "message": f"The ledger recorded another data set for {uid} in {place}/."}
        message = self._out_of_place(place, uid, decision)
        return {**where, "message": message} if message else None

    def _out_of_place(self, place: str, uid: str, decision: Decision) -> str:
        is_held = decision.disposition is Disposition.QUARANTINE
        ruling = self._rulings.get(decision.decision_id)
        match place:
            case "quarantine" | "rejected" if not is_held:
                return f"{uid} is in {place}/, but was never quarantined."
            case "rejected" if ruling != "reject":
                return f"{uid} is in rejected/, but nobody rejected it."
            case "store" | "outbound" | "undeliverable" if is_held and ruling != "release":
                return f"{uid} left quarantine for {place}/, but nobody released it."
        return ""

    def _read_rulings(self) -> dict[str, str]:
        return {review.decision_id: review.action for review in self._ledger.reviews()}

    def _decision(self, decision_id: str) -> Decision | None:
        if decision_id not in self._decisions:
            if len(self._decisions) > 1:
                self._decisions.clear()  # files come decision by decision, for each place
            try:
                found = self._ledger.decision(decision_id)
                self._decisions[decision_id] = found if found.decision_id == decision_id else None
            except NotFoundError:
                self._decisions[decision_id] = None
        return self._decisions[decision_id]


def _bundles(config: Config) -> Iterator[Finding]:
    from dicomguard.scoring.scorer import Scorer

    for section in config.bundles:
        try:
            compose.check_pins(Scorer.load(section.path, section.enrolment, device=config.device), section)
        except BundleError as error:
            yield {"what": "bundle", "path": str(section.path), "message": str(error)}
