"""The screener's loop: ingest the journal, claim what has settled, decide, record, route.

Record, then route: after a crash a recorded decision is carried out and not made again. A claim that fails three times
goes to `failed/`, where a person finds it; it is never forwarded and never deleted. What fails for the host's sake (no
process, no descriptor, no space), or with its decision recorded, is no fault of the claim: it is tried without end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from dicomguard.decision import REFUSED, Decision, Disposition, Fault, Reason, Verdict
from dicomguard.errors import HostError, LedgerError, SpoolError, is_of_the_host
from dicomguard.ledger import EventKind, Ledger
from dicomguard.screen import evidence
from dicomguard.screen.alarms import Alarms
from dicomguard.screen.chores import Chores
from dicomguard.screen.examine import Examined, Examiner
from dicomguard.screen.turn import PAUSES_S, Turn
from dicomguard.screen.verdicts import Rules, Standing, decide_claim
from dicomguard.screen.watch import Watch
from dicomguard.spool.store import Claim, Settling, Spool
from dicomguard.study import Instance, group_by_study, utc_now

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
_TOGETHER = 16  # instances from which on no further study joins a batch: what a stop may have to wait for


class Screener:
    """One per data_dir. `step` does one piece of work and says whether there was any."""

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        examiner: Examiner,
        rules: Rules,
        settling: Settling,
        *,
        watch: Watch | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._examiner = examiner
        self._rules = rules
        self._settling = settling
        self._monotonic = monotonic
        self._now = now
        self._alarms = Alarms(ledger, monotonic)
        self._chores = Chores(spool, ledger, self._alarms, watch, monotonic)
        self._turns: list[Turn] = []
        self._begun: set[str] = set()
        self._has_strays = False
        self._no_claims_before_s = 0.0
        self._ahead: dict[Path, Examined] = {}

    def recover(self) -> int:
        """Take up what a former run left behind. Returns how many claims. To be done before the first step.

        An attempt is counted for the claims that were being worked on when the process died (`Spool.begin`), and for no
        others. Raises LedgerError while the ledger is away; it can be called again, and nothing is counted twice.
        """
        self._chores.finish_reviews()
        left = self._spool.claims()
        begun = self._spool.begun()
        for claim_id in begun - {claim.claim_id for claim in left}:
            self._spool.end(claim_id)
        decided = {claim.claim_id for claim in left if self._ledger.decisions_of_claim(claim.claim_id)}
        self._turns.clear()
        self._begun.clear()
        for claim in left:
            if claim.claim_id in begun - decided:
                self._strike(Turn(claim), pause_s=0.0)
            else:
                self._turns.append(Turn(claim))  # decided: the next steps carry it out
        return len(left)

    def step(self) -> bool:
        """Take in the journal and screen what is due, a batch at the most; True when there was something.

        Small studies that are due at the same time are looked at together: nobody waits for company, at most twice
        `_TOGETHER` instances go before a decision, and a stop waits for one batch, or one large study, only. Raises
        LedgerError while the ledger is away.
        """
        did = self._chores.step()
        if self._has_strays:
            self._take_up_strays()
        place = next((n for n, turn in enumerate(self._turns) if turn.not_before_s <= self._monotonic()), None)
        if place is not None:
            self._try_again(self._turns.pop(place))
            return True
        batch = self._claim_what_is_due()
        self._screen_batch(batch)
        return did or bool(batch)

    def _claim_what_is_due(self) -> list[Turn]:
        batch: list[Turn] = []
        if self._monotonic() < self._no_claims_before_s:
            return batch
        try:
            for due in self._settling.due(self._monotonic()):
                try:
                    claim = self._spool.claim(due.study_key)
                except (OSError, SpoolError) as error:
                    # The studies behind it get their turn; what it has moved already is looked for by the next step.
                    self._has_strays = True
                    self._no_claims_before_s = self._monotonic() + PAUSES_S[0]
                    self._alarms.blame_host(error)
                    continue
                self._settling.forget(due.study_key)
                if claim is not None:
                    batch.append(Turn(claim, due.is_endless))
                    if due.is_late:
                        self._sound_late(claim, is_endless=due.is_endless)
                    if sum(len(turn.claim.instances) for turn in batch) >= _TOGETHER:
                        break
        except Exception:
            self._turns += batch  # claimed, and nobody else would look at them before a restart
            self._has_strays = True
            raise
        return batch

    def _take_up_strays(self) -> None:
        """Claims that came about while something failed, and that nobody has in hand."""
        known = {turn.claim.claim_id for turn in self._turns}
        self._turns += [Turn(claim) for claim in self._spool.claims() if claim.claim_id not in known]
        self._has_strays = False

    def _screen_batch(self, batch: Sequence[Turn]) -> None:
        """Screen claims that were taken together; what the ledger's absence leaves over is retried one by one.

        A large study, which can only be the last one, is examined by itself, after the decisions on those before it.
        """
        small = [turn.claim for turn in batch if not turn.is_overdue and len(turn.claim.instances) < _TOGETHER]
        if len(small) > 1:
            self._look_ahead(small)
        try:
            for place, turn in enumerate(batch):
                try:
                    self._screen(turn)
                except LedgerError:
                    for other in batch[place + 1 :]:
                        self._wait(other, 0.0)
                    raise
        finally:
            self._ahead.clear()

    def _look_ahead(self, claims: Sequence[Claim]) -> None:
        """Examine several claims' instances in common batches. Where that fails, each claim is examined by itself.

        Only claims at their first attempt come here: one that kills the process takes the others along once at most.
        """
        instances = [instance for claim in claims for instance in claim.instances if not instance.receipt.fault]
        try:
            self._begin(claims)
            found = self._examiner.examine(instances)
        except Exception:  # noqa: BLE001  # one claim's trouble must not become that of those beside it
            _log.exception("%d claims could not be examined together; each is now examined by itself.", len(claims))
            return
        self._ahead = {one.instance.path: one for one in found}

    def _sound_late(self, claim: Claim, *, is_endless: bool) -> None:
        detail = {"claim_id": claim.claim_id, "cause": "never quiet" if is_endless else "the screener was behind"}
        for uid in sorted({instance.study_instance_uid for instance in claim.instances}):
            _log.error("Study %s waited longer than study.deadline_s: %s.", uid, detail["cause"])
            try:
                self._ledger.record_event(EventKind.OVERDUE, uid, detail)
            except LedgerError as error:
                _log.error("%s The alarm stands in this log only.", error)

    def _screen(self, turn: Turn) -> None:
        """Screen one claim to its end, or put it back; not counted for a ledger that is away, no fault of it."""
        claim = turn.claim
        try:
            self._begin([claim])
            self._decide_and_route(claim, is_overdue=turn.is_overdue)
        except LedgerError:
            self._wait(turn, 0.0)
            raise
        except Exception as error:  # noqa: BLE001  # whatever a claim does, the next one must get its turn
            self._fail(turn, error)
        else:
            self._end(claim)

    def _try_again(self, turn: Turn) -> None:
        try:
            claim = self._spool.reopen(turn.claim)
        except (OSError, SpoolError) as error:
            self._wait(replace(turn, failures=turn.failures + 1), turn.pause_s)
            self._alarms.blame_host(error)
            return
        if claim is None:
            self._end(turn.claim)  # somebody has put it elsewhere meanwhile; there is nothing here to screen
        elif turn.is_struck and claim.attempt == turn.claim.attempt:
            self._strike(replace(turn, claim=claim), pause_s=turn.pause_s)
        else:
            self._screen(replace(turn, claim=claim, is_struck=False))

    def _fail(self, turn: Turn, error: Exception) -> None:
        """Say what is to become of a claim that was not screened to its end: wait for better times, or a strike."""
        claim = turn.claim
        if not claim.folder.is_dir():
            self._end(claim)
            return
        again = replace(turn, failures=turn.failures + 1)
        try:
            if is_of_the_host(error):
                _log.error("Claim %s waits for %.0f s: %s", claim.claim_id, turn.pause_s, error)
                self._alarms.blame_host(error)
                is_own = False
            else:
                _log.error("Claim %s, attempt %d, failed.", claim.claim_id, claim.attempt, exc_info=error)
                is_own = not self._ledger.decisions_of_claim(claim.claim_id)
                if not is_own and again.failures >= MAX_ATTEMPTS:
                    self._alarms.sound_claim(EventKind.ROUTING_FAILED, claim)
        except LedgerError:
            self._wait(again, turn.pause_s)
            raise
        if is_own:
            self._strike(again, pause_s=turn.pause_s)
        else:
            self._wait(again, turn.pause_s)

    def _strike(self, turn: Turn, *, pause_s: float) -> None:
        """Count an attempt, or give the claim up after the last one. One that cannot be moved is kept for later."""
        claim = turn.claim
        try:
            if claim.attempt >= MAX_ATTEMPTS:
                self._alarms.sound_claim(EventKind.SCREENING_FAILED, claim)
                self._spool.fail(claim)
                _log.error("Claim %s failed %d times; see 'dicomguard failed list'.", claim.claim_id, claim.attempt)
                self._end(claim)
                return
            claim = self._spool.next_attempt(claim)
        except LedgerError:
            self._turns.append(replace(turn, is_struck=True))
            raise
        except (OSError, SpoolError) as error:
            _log.error("Claim %s stays where it is: it cannot be moved.", claim.claim_id, exc_info=error)
            later_s = self._monotonic() + PAUSES_S[-1]
            self._turns.append(replace(turn, not_before_s=later_s, is_struck=True))
            return
        self._wait(replace(turn, claim=claim, is_struck=False), pause_s)

    def _wait(self, turn: Turn, pause_s: float) -> None:
        """Back into the queue. The process has survived the claim, so a restart is no strike for it."""
        self._end(turn.claim)
        self._turns.append(replace(turn, not_before_s=self._monotonic() + pause_s))

    def _begin(self, claims: Sequence[Claim]) -> None:
        new = [claim for claim in claims if claim.claim_id not in self._begun]
        if new:
            self._spool.begin(new)
            self._begun.update(claim.claim_id for claim in new)

    def _end(self, claim: Claim) -> None:
        self._begun.discard(claim.claim_id)
        self._spool.end(claim.claim_id)

    def _carry_out(self, claim: Claim, decisions: Sequence[Decision]) -> None:
        """Do what is recorded about this claim, now or again after a crash."""
        for decision in decisions:
            self._announce(decision)
            self._route(claim, decision)
        self._spool.finish(claim)

    def _decide_and_route(self, claim: Claim, *, is_overdue: bool) -> None:
        if claim.strangers:
            self._spool.set_aside(claim, claim.strangers)
            self._ledger.record_event(
                EventKind.STRANGER_IN_SPOOL, "", {"claim_id": claim.claim_id, "n": len(claim.strangers)}
            )
        recorded = self._ledger.decisions_of_claim(claim.claim_id)
        if recorded:
            self._carry_out(claim, recorded)
            return
        if claim.unreadable:
            # Part of a study must not be decided and sent as the whole: the disk, or a person, has to act first.
            raise HostError(
                f"{len(claim.unreadable)} file(s) cannot be read, such as {claim.unreadable[0].name}.",
                advice=f"See 'dmesg'. Move what is lost out of {claim.folder}, and have the sender send it again.",
            )
        fresh, conflicts = self._sort_out(claim)
        decisions: list[Decision] = []
        for study in group_by_study((*fresh, *conflicts)):
            examined = self._examine(study.instances, conflicts, is_overdue=is_overdue)
            uid = study.study_instance_uid
            standing = Standing(self._ledger.next_version(uid), self._ledger.hold_reasons(uid))
            made = decide_claim(claim.claim_id, examined, standing, self._rules, is_overdue=is_overdue, now=self._now())
            for decision in made:
                self._keep_evidence(claim, decision, examined)
            decisions += made
        self._carry_out(claim, self._ledger.record_decisions(decisions))

    def _sort_out(self, claim: Claim) -> tuple[list[Instance], list[Instance]]:
        """New instances, and those that contradict one that we have. Repeated transfers are dropped here."""
        fresh: list[Instance] = []
        conflicts: list[Instance] = []
        seen: dict[str, tuple[str, str]] = {}
        for instance in claim.instances:
            receipt = instance.receipt
            if receipt.fault:
                # Refused: it claims a UID, it does not own it. Senders repeat these for days.
                same = [k.decision_id for k in self._ledger.refused_instances(receipt)]
                if not self._drops_copy(claim, instance, same):
                    fresh.append(instance)
                continue
            uid, this = receipt.sop_instance_uid, (receipt.sha256, str(receipt.transfer_syntax_uid))
            known = self._ledger.known_instances(uid)
            same = [k.decision_id for k in known if (k.sha256, k.transfer_syntax_uid) == this]
            if self._drops_copy(claim, instance, same):
                continue
            others = {(k.sha256, str(k.transfer_syntax_uid)) for k in known} | {seen.get(uid, this)}
            if others - {this}:
                conflicts.append(instance)
            else:
                fresh.append(instance)
                seen[uid] = this
        return fresh, conflicts

    def _drops_copy(self, claim: Claim, instance: Instance, same: Sequence[str]) -> bool:
        """`same`: the decisions about the same transfer before."""
        found = any(self._spool.drop_copy(claim, instance, decision_id) for decision_id in same)
        if found:
            _log.info("Instance %s came again with the same bytes; one copy is kept.", instance.sop_instance_uid)
        return found

    def _examine(
        self, instances: tuple[Instance, ...], conflicts: list[Instance], *, is_overdue: bool
    ) -> list[Examined]:
        plain = [instance for instance in instances if instance not in conflicts]
        examined: list[Examined] = []
        if is_overdue and self._rules.policy.overdue == "forward":
            # The site chose that a late study does not wait for its scores: nobody looked, and the record says so. What
            # its sender was told is refused is held all the same.
            late = Fault(Reason.OVERDUE, "not screened: study.deadline_s had passed")
            examined = [Examined(instance, late) for instance in plain if not instance.receipt.fault]
            plain = [instance for instance in plain if instance.receipt.fault]
        left = [instance for instance in plain if instance.path not in self._ahead]
        fresh = {one.instance.path: one for one in self._examiner.examine(left)} if left else {}
        examined += [self._ahead.get(instance.path) or fresh[instance.path] for instance in plain]
        conflict = Fault(Reason.UID_CONFLICT, "another data set with this SOP Instance UID was received before")
        return examined + [Examined(i, conflict) for i in instances if i in conflicts]

    def _keep_evidence(self, claim: Claim, decision: Decision, examined: list[Examined]) -> None:
        if decision.disposition is not Disposition.QUARANTINE:
            return
        try:
            for name, content in evidence.collect(decision, examined, self._examiner, self._rules.policy):
                self._spool.write_evidence(claim, decision.decision_id, name, content)
        except Exception:  # noqa: BLE001  # held either way; a picture that cannot be drawn must not cost a strike
            _log.exception("The evidence of decision %s is incomplete.", decision.decision_id)

    def _announce(self, decision: Decision) -> None:
        """Events that a person must hear of, beside the decision itself."""
        uid = decision.study_instance_uid
        _log.info(
            "Study %s, version %d: %s, %s%s.",
            uid,
            decision.version,
            decision.verdict.value,
            decision.disposition.value,
            f" ({', '.join(decision.reasons)})" if decision.reasons else "",
        )
        if Reason.UID_CONFLICT in decision.reasons:
            uids = [i.sop_instance_uid for i in decision.instances]
            self._alarms.sound(EventKind.UID_CONFLICT, uid, {"decision_id": decision.decision_id, "instances": uids})
        is_doubted = decision.verdict in {Verdict.SUSPECT, Verdict.INCONCLUSIVE}
        if is_doubted and decision.version > 1 and REFUSED.isdisjoint(decision.reasons):
            released = {review.decision_id for review in self._ledger.reviews() if review.action == "release"}
            forwarded = [
                earlier.decision_id
                for earlier in self._ledger.decisions(study_uid=uid)
                if earlier.version < decision.version
                and (earlier.disposition is Disposition.FORWARD or earlier.decision_id in released)
            ]
            if forwarded:
                detail = {"decision_id": decision.decision_id, "forwarded_before": forwarded}
                self._alarms.sound(EventKind.DOUBT_AFTER_FORWARD, uid, detail)

    def _route(self, claim: Claim, decision: Decision) -> None:
        names = [instance.file_name for instance in decision.instances]
        if decision.disposition is Disposition.QUARANTINE:
            self._spool.hold(claim, decision.decision_id, names)
            return
        self._spool.forward(claim, decision.decision_id, names, decision.destinations)
