"""One destination's courier: takes from its queue, sends, records, and lets the spool move what is done.

Knows one destination only, so that a slow or dead one holds up nobody else. The order is always: send, record, move.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from dicomguard.deliver.answer import Answer, in_words, is_busy, judge
from dicomguard.deliver.destination import Destination, Settings
from dicomguard.deliver.permit import permit
from dicomguard.errors import DeliveryError, DicomguardError, HostError, is_shortage
from dicomguard.ledger import Delivery, DeliveryState, EventKind, Ledger
from dicomguard.scu import AlteredError, Association, LinkError, RejectedError, unreadable
from dicomguard.scu.association import MAX_CONTEXTS
from dicomguard.spool import envelope
from dicomguard.spool.store import Outgoing, Spool
from dicomguard.study import Instance, Receipt, utc_now

_log = logging.getLogger(__name__)

# Results are recorded together: one durable commit for so many, or for what came in so many seconds.
_RESULTS_PER_COMMIT: Final = 16
_RESULTS_WITHIN_S: Final = 0.5
# So many "out of resources" in a row concern the destination, not the instance.
_BUSY_IN_A_ROW: Final = 3
# A study that got no association so often goes one presentation context at a time: one of them may be at fault.
_ONE_BY_ONE: Final = 3
# Looking for files that cannot be sent reads the head of everything that waits: now and then is enough.
_LOOK_FOR_DAMAGE_S: Final = 300.0

_Key = tuple[str, str, Receipt]


@dataclass(frozen=True, slots=True)
class _Progress:
    """Where one queued instance stands. `strikes`: doubtful statuses in a row; `due_s`: monotonic seconds."""

    attempt: int = 0
    strikes: int = 0
    due_s: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Misses:
    """How often in a row a study got no association, or broke one; `due_s`: monotonic, where it alone has to wait."""

    count: int = 0
    due_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of one instance, before it is recorded."""

    item: Outgoing
    delivery: Delivery
    progress: _Progress


class Courier:
    """Sends what waits for one destination. `step` sends one batch, of one study, on one association."""

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        destination: Destination,
        settings: Settings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        jitter: Callable[[], float] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.destination = destination
        self._spool = spool
        self._ledger = ledger
        self._settings = settings
        self._monotonic = monotonic
        self._now = now
        self._jitter = jitter
        self._stop = stop or threading.Event()
        self._progress: dict[_Key, _Progress] = {}
        self._misses: dict[str, _Misses] = {}
        self._failures = 0
        self._failing_since_s: float | None = None
        self._is_overdue = False
        self._resume_s = 0.0
        self._damage_due_s = 0.0
        self._damaged: set[tuple[str, str]] | None = None
        self._refused: set[_Key] = set()
        self._blamed: set[tuple[str, str]] = set()

    def step(self) -> bool:
        """Send one batch where one is due. False: nothing to do now. Raises LedgerError and SpoolError."""
        self._report_damage()
        if self._monotonic() < self._resume_s:
            return False
        batch = self._next_batch()
        if batch:
            self._send(batch)
        return bool(batch)

    # What to send ----------------------------------------------------------------------------------------------------

    def _next_batch(self) -> list[Outgoing]:
        """Due instances of one study, those that failed before last, so that none of them holds up the others."""
        now_s = self._monotonic()
        studies: dict[str, list[Outgoing]] = {}
        for item in self._waiting():
            progress = self._progress[_key(item)]
            study = item.instance.study_instance_uid
            if max(progress.due_s, self._missed(study).due_s) > now_s:
                continue
            if study not in studies and any(self._failures_of(group) == 0 for group in studies.values()):
                break  # a fresh study is complete; older ones that failed come after it
            studies.setdefault(study, []).append(item)
        if not studies:
            return []
        group = min(studies.values(), key=self._failures_of)
        group.sort(key=lambda item: self._progress[_key(item)].attempt)
        return _within_contexts(group, self._missed(_study(group)).count)[: self._settings.batch]

    def _failures_of(self, group: Sequence[Outgoing]) -> int:
        """How often the study has failed: all of its instances that are due, or its associations."""
        attempts = min(self._progress[_key(item)].attempt for item in group)
        return max(attempts, self._missed(_study(group)).count)

    def _missed(self, study: str) -> _Misses:
        return self._misses.get(study, _Misses())

    def _waiting(self) -> Iterator[Outgoing]:
        """What waits, with its progress known; what the ledger knows to be done is taken off the queue."""
        by_decision = itertools.groupby(self._spool.outgoing(self.destination.name), key=lambda item: item.decision_id)
        for decision_id, group in by_decision:
            items = list(group)
            if any(_key(item) not in self._progress for item in items):
                items = self._recall(decision_id, items)
            yield from items

    def _recall(self, decision_id: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        items = self._permitted(decision_id, items)
        recorded = self._ledger.deliveries(decision_id=decision_id, destination=self.destination.name)
        last = {(d.sop_instance_uid, d.sha256): d for d in recorded}
        waiting, unheard = [], []
        for item in items:
            receipt = item.instance.receipt
            known = last.get((receipt.sop_instance_uid, receipt.sha256))
            if known is not None and known.state is DeliveryState.DELIVERED:
                self._spool.delivered(item)  # recorded, and then the process died
                continue
            if known is not None and known.state is DeliveryState.DEAD:
                self._spool.give_up(item)
                continue
            if known is None:
                unheard.append(self._step_of(item, _Progress(), DeliveryState.QUEUED))
            if _key(item) not in self._progress:
                # After a restart everything is due at once, and the count goes on.
                struck = known is not None and known.state is DeliveryState.RETRY and (known.status or 0) >> 12 == 0xC
                self._progress[_key(item)] = _Progress(0 if known is None else known.attempt, int(struck))
            waiting.append(item)
        self._ledger.record_deliveries(unheard)
        return waiting

    def _permitted(self, decision_id: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Those that the ledger lets go. The others were put here by somebody else: set aside, never sent."""
        given = permit(self._ledger, decision_id)
        objections = {item.instance.name: given.objection(item.instance) for item in items}
        refused = [item for item in items if objections[item.instance.name]]
        if refused:
            self._set_aside(decision_id, refused, objections[refused[0].instance.name])
        return [item for item in items if not objections[item.instance.name]]

    def _set_aside(self, decision_id: str, refused: Sequence[Outgoing], why: str) -> None:
        news = [item for item in refused if _key(item) not in self._refused]
        if news:
            detail = {
                "decision_id": decision_id,
                "destination": self.destination.name,
                "error": why,
                "files": [item.instance.name for item in news],
            }
            self._ledger.record_event(EventKind.UNKNOWN_OUTBOUND, news[0].instance.sop_instance_uid, detail)
            steps = [self._step_of(item, _Progress(), DeliveryState.DEAD) for item in news]
            # A folder that somebody else made may have any name; the ledger's column takes 64 characters of it.
            self._ledger.record_deliveries(
                [replace(s, decision_id=decision_id[:64], error=f"Not sent: {why}. See 'verify'.") for s in steps]
            )
        for item in refused:
            self._refused.add(_key(item))
            self._progress.pop(_key(item), None)
            self._spool.give_up(item)

    def _report_damage(self) -> None:
        """Say once of every file in the queue that has no readable receipt: it stays, and will never be sent."""
        now_s = self._monotonic()
        if now_s < self._damage_due_s:
            return
        self._damage_due_s = now_s + _LOOK_FOR_DAMAGE_S
        for decision_id, path, is_for_good in self._spool.damaged_outgoing(self.destination.name):
            if not is_for_good:
                self._blame_host("", decision_id, f"{path.name} cannot be read just now.")
                continue
            if self._damaged is None:
                earlier = [event.detail for event in self._ledger.events(EventKind.DAMAGED_IN_SPOOL)]
                name = self.destination.name
                self._damaged = {(d["decision_id"], d["file"]) for d in earlier if d["destination"] == name}
            if (decision_id, path.name) not in self._damaged:
                detail = {"decision_id": decision_id, "destination": self.destination.name, "file": path.name}
                self._ledger.record_event(EventKind.DAMAGED_IN_SPOOL, "", detail)
                self._damaged.add((decision_id, path.name))

    # Sending ---------------------------------------------------------------------------------------------------------

    def _send(self, batch: list[Outgoing]) -> None:
        peer = self.destination.peer
        try:
            association = Association(
                peer.host,
                peer.port,
                calling_ae=self._settings.calling_ae,
                called_ae=peer.ae_title,
                contexts=list(dict.fromkeys(_syntaxes(item.instance) for item in batch)),
                timeouts=self._settings.timeouts,
            )
        except RejectedError as error:
            if error.is_permanent:
                self._give_up(batch, error.message)
            else:
                self._miss(batch, batch, error)
        except LinkError as error:
            self._miss(batch, batch, error)
        else:
            with association:
                self._send_over(association, batch)

    def _send_over(self, association: Association, batch: list[Outgoing]) -> None:
        self._ledger.record_deliveries(
            [self._step_of(item, self._progress[_key(item)], DeliveryState.SENDING) for item in batch]
        )
        results: list[_Result] = []
        committed_s = self._monotonic()
        sent = busy = 0
        failure: DicomguardError | None = None
        for item in batch:
            if self._stop.is_set():
                break
            sent += 1
            try:
                result = self._send_one(association, item)
            except LinkError as error:
                failure = error
                results.append(self._put_off(item, error.message))
                break
            except HostError as error:
                # A shortage concerns all that waits here; a bad sector this file alone.
                failure = error if is_shortage(error) else None
                results.append(self._unread(item, error.message))
                break
            except AlteredError as error:
                results.append(self._altered(item, error.message))
                break  # the association may have been aborted
            results.append(result)
            busy = busy + 1 if is_busy(result.delivery.status or 0) else 0
            if busy >= _BUSY_IN_A_ROW:
                failure = DeliveryError(f"The peer is {in_words(result.delivery.status or 0)}.")
                break
            late = self._monotonic() - committed_s > _RESULTS_WITHIN_S
            if late or len(results) >= _RESULTS_PER_COMMIT:
                self._settle(results)
                results, committed_s = [], self._monotonic()
        self._settle(results)
        unsent = batch[sent:]
        self._ledger.record_deliveries(
            [self._step_of(item, self._progress[_key(item)], DeliveryState.QUEUED) for item in unsent]
        )
        if isinstance(failure, LinkError):
            self._miss(batch, [], failure)
            return
        self._misses.pop(_study(batch), None)
        if failure is None:
            self._recovered()
        else:
            self._stay_away([], failure)

    def _send_one(self, association: Association, item: Outgoing) -> _Result:
        instance, before = item.instance, self._progress[_key(item)]
        receipt = instance.receipt
        if _syntaxes(instance) not in association.accepted:
            message = (
                f"The peer accepts no context for SOP class {receipt.sop_class_uid} in {receipt.transfer_syntax_uid}."
            )
            return self._result(item, before, DeliveryState.DEAD, error=message)
        try:
            digest = _sha256(instance)
        except HostError as error:
            if is_shortage(error):
                raise
            return self._unread(item, error.message)
        if digest != receipt.sha256:
            return self._altered(item, f"{instance.name} is not what was received: its SHA-256 differs.")
        outcome = association.store(
            instance.path,
            instance.data_offset,
            syntaxes=_syntaxes(instance),
            sop_instance_uid=receipt.sop_instance_uid,
            sha256=receipt.sha256,
        )
        progress = replace(before, attempt=before.attempt + 1)
        match judge(outcome.status, before.strikes, self._settings.max_strikes):
            case Answer.DELIVERED:
                state = DeliveryState.DELIVERED
            case Answer.DEAD:
                state = DeliveryState.DEAD
            case Answer.RETRY:
                state = DeliveryState.RETRY
                strikes = 0 if is_busy(outcome.status) else before.strikes + 1
                progress = self._later(replace(progress, strikes=strikes))
        return self._result(item, progress, state, outcome.status, in_words(outcome.status))

    def _unread(self, item: Outgoing, error: str) -> _Result:
        """The machine could not read this instance: it is tried again, and told of once."""
        self._blame_host(item.instance.sop_instance_uid, item.decision_id, error)
        return self._put_off(item, error)

    def _blame_host(self, uid: str, decision_id: str, error: str) -> None:
        if (decision_id, error) not in self._blamed:
            _log.error("%s It is tried again.", error)
            detail = {"destination": self.destination.name, "decision_id": decision_id, "error": error}
            self._ledger.record_event(EventKind.HOST_FAILING, uid, detail)
            self._blamed.add((decision_id, error))

    def _put_off(self, item: Outgoing, error: str) -> _Result:
        """The connection broke around this instance, or the machine could not read it: it is sent again, later."""
        before = self._progress[_key(item)]
        progress = self._later(replace(before, attempt=before.attempt + 1, strikes=0))
        return self._result(item, progress, DeliveryState.RETRY, error=error)

    def _altered(self, item: Outgoing, error: str) -> _Result:
        receipt = item.instance.receipt
        _log.critical("%s It was not sent to %s. Run 'dicomguard verify'.", error, self.destination.name)
        detail = {"decision_id": item.decision_id, "destination": self.destination.name, "sha256": receipt.sha256}
        self._ledger.record_event(EventKind.ALTERED_IN_SPOOL, receipt.sop_instance_uid, detail)
        return self._result(item, self._progress[_key(item)], DeliveryState.DEAD, error=error)

    # Recording -------------------------------------------------------------------------------------------------------

    def _settle(self, results: Sequence[_Result]) -> None:
        """Record, then move. A crash in between is mended by `_recall`."""
        self._ledger.record_deliveries([result.delivery for result in results])
        for result in results:
            match result.delivery.state:
                case DeliveryState.DELIVERED:
                    self._spool.delivered(result.item)
                    self._progress.pop(_key(result.item), None)
                case DeliveryState.DEAD:
                    self._spool.give_up(result.item)
                    self._progress.pop(_key(result.item), None)
                case _:
                    self._progress[_key(result.item)] = result.progress
        dead = [result.delivery for result in results if result.delivery.state is DeliveryState.DEAD]
        for study, group in itertools.groupby(dead, key=lambda delivery: delivery.study_instance_uid):
            refused = list(group)
            detail = {"destination": self.destination.name, "instances": len(refused), "error": refused[0].error}
            self._ledger.record_event(EventKind.DELIVERY_DEAD, study, detail)
            _log.error(
                "%s refused %d instance(s) of study %s for good: %s See 'dicomguard deliveries list --state dead'.",
                self.destination.name,
                len(refused),
                study,
                refused[0].error,
            )

    def _give_up(self, batch: Sequence[Outgoing], error: str) -> None:
        self._misses.pop(_study(batch), None)
        self._settle(
            [self._result(item, self._progress[_key(item)], DeliveryState.DEAD, error=error) for item in batch]
        )

    def _miss(self, batch: Sequence[Outgoing], untold: Sequence[Outgoing], error: DeliveryError) -> None:
        """The batch's study got no association, or broke it; the next try is another study's, where one waits.

        A study that fails again although the destination has served another one meanwhile is put off alone. When that
        is a mistake, and the destination has gone, the next study finds out.
        """
        study = _study(batch)
        count = self._missed(study).count + 1
        self._misses[study] = _Misses(count)
        if count == 1 or self._failures:
            self._stay_away(untold, error)
            return
        pause_s = self._pause_s(count)
        self._misses[study] = _Misses(count, self._monotonic() + pause_s)
        _log.warning(
            "%s serves others, but not study %s: %s Next try in %.0f s.",
            self.destination.name,
            study,
            error.message,
            pause_s,
        )
        self._tell_failing(untold, error, pause_s, study, count)

    def _stay_away(self, batch: Sequence[Outgoing], error: DicomguardError) -> None:
        """Leave the destination alone for a while. The queue is kept; what waits is told why, once for each reason."""
        self._failures += 1
        pause_s = self._pause_s(self._failures)
        self._resume_s = self._monotonic() + pause_s
        _log.warning("%s: %s Next try in %.0f s.", self.destination.name, error.message, pause_s)
        self._tell_failing(batch, error, pause_s, "", self._failures)

    def _tell_failing(
        self, batch: Sequence[Outgoing], error: DicomguardError, pause_s: float, study: str, failures: int
    ) -> None:
        """Record it, for the instances too, once for each reason. `study`: "" where the whole destination fails."""
        news = [item for item in batch if self._progress[_key(item)].note != error.message]
        for item in news:
            self._progress[_key(item)] = replace(self._progress[_key(item)], note=error.message)
        until = self._now() + timedelta(seconds=pause_s)
        self._ledger.record_deliveries(
            [
                replace(
                    self._step_of(item, self._progress[_key(item)], DeliveryState.RETRY),
                    error=error.message,
                    next_attempt_at=until,
                )
                for item in news
            ]
        )
        detail = {"destination": self.destination.name, "failures": failures, "error": error.message}
        self._ledger.record_event(
            EventKind.DESTINATION_FAILING, study, {**detail, "next_attempt_at": until.isoformat()}
        )
        now_s = self._monotonic()
        self._failing_since_s = now_s if self._failing_since_s is None else self._failing_since_s
        if not self._is_overdue and now_s - self._failing_since_s >= self._settings.alarm_after_s:
            self._is_overdue = True
            _log.critical("%s has been failing for %.0f s.", self.destination.name, now_s - self._failing_since_s)
            self._ledger.record_event(EventKind.DESTINATION_OVERDUE, "", detail)

    def _recovered(self) -> None:
        if self._failures or self._is_overdue:
            _log.info("%s answers again.", self.destination.name)
            detail = {"destination": self.destination.name, "failures": self._failures}
            self._ledger.record_event(EventKind.DESTINATION_RECOVERED, "", detail)
        self._failures, self._failing_since_s, self._is_overdue = 0, None, False

    def _later(self, progress: _Progress) -> _Progress:
        return replace(progress, due_s=self._monotonic() + self._pause_s(progress.attempt))

    def _pause_s(self, failures: int) -> float:
        return self._settings.delay_s(failures, self._jitter() if self._jitter else None)

    def _result(
        self, item: Outgoing, progress: _Progress, state: DeliveryState, status: int | None = None, error: str = ""
    ) -> _Result:
        step = replace(self._step_of(item, progress, state), status=status, error=error)
        if state is DeliveryState.RETRY:
            wait = timedelta(seconds=max(progress.due_s - self._monotonic(), 0.0))
            step = replace(step, next_attempt_at=self._now() + wait)
        return _Result(item, step, progress)

    def _step_of(self, item: Outgoing, progress: _Progress, state: DeliveryState) -> Delivery:
        receipt = item.instance.receipt
        return Delivery(
            decision_id=item.decision_id,
            study_instance_uid=receipt.study_instance_uid,
            sop_instance_uid=receipt.sop_instance_uid,
            sha256=receipt.sha256,
            destination=self.destination.name,
            state=state,
            attempt=progress.attempt,
            at=self._now(),
        )


def _key(item: Outgoing) -> _Key:
    """With the receipt, which a permit is about: a file that was exchanged for another one is permitted anew."""
    return item.decision_id, item.instance.name, item.instance.receipt


def _syntaxes(instance: Instance) -> tuple[str, str]:
    return instance.receipt.sop_class_uid, instance.receipt.transfer_syntax_uid


def _study(batch: Sequence[Outgoing]) -> str:
    return batch[0].instance.study_instance_uid


def _within_contexts(items: Sequence[Outgoing], misses: int) -> list[Outgoing]:
    """Those that one association's 128 presentation contexts can carry; the others go over the next one.

    After several misses those of one context, of another one each time.
    """
    contexts = list(dict.fromkeys(_syntaxes(item.instance) for item in items))
    turn = misses % len(contexts)
    wanted = contexts[turn : turn + 1] if misses >= _ONE_BY_ONE else contexts[:MAX_CONTEXTS]
    return [item for item in items if _syntaxes(item.instance) in wanted]


def _sha256(instance: Instance) -> str:
    """The digest of the data set as it lies in the spool now. Raises AlteredError (no such file) and HostError."""
    try:
        return envelope.data_sha256(instance)
    except OSError as error:
        raise unreadable(instance.name, error) from error
