"""The ledger as the parts of the node use it. Each process opens its own, under its own writer name.

Writes are durable when the call returns. Nothing is ever changed or removed. Every call raises `LedgerError`, with
advice, when the database cannot do what was asked; then nothing of that call was recorded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url

from dicomguard.association import AssociationEvent
from dicomguard.decision import REFUSED, Decision, Disposition, Reason
from dicomguard.errors import LedgerError, NotFoundError, ReviewError
from dicomguard.ledger import excerpt, rows, store, tables
from dicomguard.ledger import verify as verification
from dicomguard.ledger.chain import ChainKey, Extension, key_check, subkey
from dicomguard.ledger.draws import Draw, DrawGroup, Tally, drawn_from
from dicomguard.ledger.heads import Heads
from dicomguard.ledger.kinds import ALARMS, EventKind
from dicomguard.ledger.records import (
    Delivery,
    DeliveryState,
    Event,
    KnownInstance,
    Problem,
    Review,
    RuledAction,
)
from dicomguard.study import Receipt, Uid, key_of, utc_now

_log = logging.getLogger(__name__)

_PAGE_ROWS: Final = 200
_FIRST_HEAD_S: Final = 0.5
_LOGGED_CHARACTERS: Final = 500  # an alarm about a study of thousands of images must not fill the log
_WRITER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Ledger:
    """An open ledger. Thread-safe; a context manager. Made by `open`."""

    def __init__(self, engine: Engine, name: str, key: ChainKey, writer: str, heads: Heads | None) -> None:
        self._engine = engine
        self._name = name
        self._key = key
        self._writer = writer
        self._heads = heads

    @classmethod
    def open(cls, url: str, chain_key: bytes, writer: str, *, heads: Path | None, busy_timeout_s: float = 10.0) -> Self:
        """Open the ledger at an SQLAlchemy URL; make or upgrade its tables where that is needed.

        `chain_key` is 32 bytes that stay outside the database; `writer` names this part's chain (two processes may
        share one); `heads` is the file that keeps the chains' tips, best beside the key, None for none. A writer waits
        `busy_timeout_s` for another one.

        Raises:
            LedgerError: it cannot be opened, is of a newer version, or was begun with another key.

        """
        if len(chain_key) != 32 or not _WRITER.fullmatch(writer):
            raise LedgerError("A ledger needs a chain key of 32 bytes and a plain writer name (letters, digits, ._-).")
        engine = store.open_engine(url, busy_timeout_s=busy_timeout_s)
        name = make_url(url).render_as_string(hide_password=True)
        try:
            with store.speaking_plainly(name):
                ledger_id = _identify(engine, chain_key, name)
        except LedgerError:
            engine.dispose()
            raise
        tips = None if heads is None else Heads(heads, subkey(chain_key, "heads"))
        return cls(engine, name, ChainKey(chain_key, ledger_id), writer, tips)

    @staticmethod
    def is_there(url: str) -> bool:
        """False when `url` is an SQLite file that does not exist yet. Makes nothing. Raises LedgerError."""
        return store.is_there(url)

    @staticmethod
    def has_content(url: str) -> bool:
        """True when `url` is an SQLite file that was begun. False for a server, which is not asked. Makes nothing."""
        return store.has_content(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections. Safe to call twice."""
        self._engine.dispose()

    # Decisions -------------------------------------------------------------------------------------------------------

    def record_decisions(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Record all of them in one transaction, and return what now stands recorded for their claims.

        A claim is recorded once: decisions of a claim that has any already are not recorded again, and what was
        decided first is returned instead. So a crash after this call never leads to a second, different decision.
        What a decision forwards is recorded as queued for its destinations in the same transaction, and so is what is
        drawn from it for the drift watch: once for a study and a bundle, however many versions the study has.
        """
        claims = list(dict.fromkeys(decision.claim_id for decision in decisions))
        with self._writing() as (connection, chain):
            for claim in claims:
                if _first(connection, tables.decisions.c.id, tables.decisions.c.claim_id == claim) is not None:
                    continue
                for decision in decisions:
                    if decision.claim_id == claim:
                        row, instances = rows.from_decision(decision)
                        chain.append(tables.decisions, row, instances)
                        if decision.disposition is Disposition.FORWARD:
                            _queue(chain, decision, decision.destinations)
                        _add_draws(connection, chain, decision)
        return [recorded for claim in claims for recorded in self.decisions_of_claim(claim)]

    def decisions_of_claim(self, claim_id: str) -> list[Decision]:
        """What was decided about a claim; empty where nothing was."""
        return list(self._decisions(tables.decisions.c.claim_id == claim_id))

    def decision(self, decision_id: str) -> Decision:
        """One decision by its id, or by the beginning of its id where that names one only.

        Raises:
            NotFoundError: there is none, or several.

        """
        column = tables.decisions.c.decision_id
        with self._reading() as connection:
            exact = sa.select(column).where(column == decision_id)
            like = sa.select(column).where(column.startswith(decision_id, autoescape=True)).limit(2)
            found = [*connection.scalars(exact)] or ([*connection.scalars(like)] if decision_id else [])
        if len(found) != 1:
            what = "More than one decision begins with" if found else "There is no decision"
            raise NotFoundError(f"{what} {decision_id!r}.", advice="'dicomguard decisions' lists them.")
        return next(self._decisions(column == found[0]))

    def decisions(
        self,
        study_uid: str | None = None,
        disposition: Disposition | None = None,
        limit: int | None = None,
        *,
        skip: Callable[[LedgerError], None] | None = None,
    ) -> Iterator[Decision]:
        """Decisions, oldest first; with `limit` the newest so many of them. Reads page by page and holds no lock.

        One whose rows cannot be read is passed over where `skip` is there to be told of it; otherwise it is raised.
        """
        conditions = []
        if study_uid is not None:
            conditions.append(tables.decisions.c.study_key == key_of(study_uid))
        if disposition is not None:
            conditions.append(tables.decisions.c.disposition == disposition.value)
        if limit is not None:
            newest = sa.select(tables.decisions.c.id).where(*conditions).order_by(tables.decisions.c.id.desc())
            with self._reading() as connection:
                ids = [*connection.scalars(newest.limit(max(limit, 0)))]
            if not ids:
                return
            conditions.append(tables.decisions.c.id >= ids[-1])
        yield from self._decisions(*conditions, skip=skip)

    def decision_ids(self, since: datetime | None = None, limit: int | None = None) -> list[str]:
        """Ids of decisions made at `since` (aware) or later, oldest first; with `limit` the newest so many of them."""
        table = tables.decisions
        query = sa.select(table.c.decision_id).order_by(table.c.id.desc()).limit(limit)
        if since is not None:
            query = query.where(table.c.decided_at >= tables.to_stamp(since))
        with self._reading() as connection:
            return [*connection.scalars(query)][::-1]

    def next_version(self, study_uid: str) -> int:
        """The version that the study's next decision carries, from 1."""
        query = sa.select(sa.func.max(tables.decisions.c.version))
        with self._reading() as connection:
            last = connection.scalar(query.where(tables.decisions.c.study_key == key_of(study_uid)))
        return int(last or 0) + 1

    def is_held(self, study_uid: str) -> bool:
        """True while the study is in quarantine; see `hold_reasons`."""
        return bool(self.hold_reasons(study_uid))

    def hold_reasons(self, study_uid: str) -> frozenset[Reason]:
        """Why the study is in quarantine: the reasons of its quarantine decisions that nobody released.

        Empty when it is not. A rejected study stays held. What its sender was told is refused holds nothing but itself,
        and instances without a study have nothing in common.
        """
        if not study_uid:
            return frozenset()
        decisions, reviews = tables.decisions, tables.reviews
        released = sa.select(reviews.c.decision_id).where(reviews.c.action == "release")
        query = sa.select(decisions.c.reasons).where(
            decisions.c.study_key == key_of(study_uid),
            decisions.c.disposition == Disposition.QUARANTINE.value,
            decisions.c.decision_id.not_in(released),
        )
        with self._reading() as connection:
            found = [frozenset(map(Reason, json.loads(text))) for text in connection.scalars(query)]
        return frozenset().union(*(reasons for reasons in found if not reasons <= REFUSED))

    def known_instances(self, sop_instance_uid: str) -> list[KnownInstance]:
        """Every data set accepted under this SOP Instance UID, oldest first.

        What its sender was told is refused does not count: a UID that was claimed wrongly once stays free.
        """
        return [known for known, reasons in self._instances_under(sop_instance_uid) if REFUSED.isdisjoint(reasons)]

    def refused_instances(self, receipt: Receipt) -> list[KnownInstance]:
        """The very same transfer, refused for the same fault before, oldest first."""
        of_the_bytes = tables.decision_instances.c.sha256 == receipt.sha256
        return [
            known
            for known, reasons in self._instances_under(receipt.sop_instance_uid, of_the_bytes)
            if Reason(receipt.fault) in reasons and known.transfer_syntax_uid == receipt.transfer_syntax_uid
        ]

    # Reviews ---------------------------------------------------------------------------------------------------------

    def record_review(
        self,
        decision_id: str,
        action: RuledAction,
        actor: str,
        reason: str,
        destinations: Sequence[str] | None = None,
    ) -> Review:
        """Record a person's ruling on a quarantine decision; a release queues its instances for `destinations`.

        None: those that the decision recorded. What is queued here is what the release stands for from now on: whoever
        finishes an interrupted one reads it back with `deliveries`.

        Raises:
            NotFoundError: there is no such decision.
            ReviewError: no actor, no reason, the decision is no quarantine, or it was ruled on already.

        """
        actor, reason = actor.strip(), reason.strip()
        if action not in get_args(RuledAction):
            raise ReviewError(f"A quarantined study can be released or rejected, not {action!r}.")
        if not actor or not reason:
            raise ReviewError("A review needs an actor and a reason.", advice="Give both; they are recorded.")
        decision = self.decision(decision_id)
        if decision.disposition is not Disposition.QUARANTINE:
            raise ReviewError(f"Decision {decision.decision_id} is no quarantine; there is nothing to rule on.")
        review = Review(
            uuid.uuid4().hex, decision.decision_id, decision.study_instance_uid, action, actor, reason, utc_now()
        )
        with self._writing() as (connection, chain):
            before = connection.execute(
                sa.select(tables.reviews).where(tables.reviews.c.decision_id == decision.decision_id)
            ).mappings().first()  # fmt: skip
            if before is not None:
                earlier = rows.to_review(dict(before))
                raise ReviewError(
                    f"Decision {decision.decision_id} was ruled on already: {earlier.action} by {earlier.actor} "
                    f"at {earlier.at.isoformat(timespec='seconds')}.",
                    advice="A ruling stands; it is not taken back.",
                )
            chain.append(tables.reviews, rows.from_review(review))
            if action == "release":
                _queue(chain, decision, decision.destinations if destinations is None else destinations)
        return review

    def reviews(self, decision_id: str | None = None) -> list[Review]:
        """Rulings, oldest first; of one decision where its id is given."""
        conditions = [] if decision_id is None else [tables.reviews.c.decision_id == decision_id]
        return [rows.to_review(row) for row in self._rows(tables.reviews, *conditions)]

    # Deliveries ------------------------------------------------------------------------------------------------------

    def record_delivery(self, delivery: Delivery) -> None:
        """Record one step of one instance towards one destination."""
        self.record_deliveries([delivery])

    def record_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """The same for several, in one transaction."""
        if not deliveries:
            return
        with self._writing() as (_, chain):
            for delivery in deliveries:
                chain.append(tables.deliveries, rows.from_delivery(delivery))

    def deliveries(
        self,
        state: DeliveryState | None = None,
        study_uid: str | None = None,
        *,
        decision_id: str | None = None,
        destination: str | None = None,
    ) -> list[Delivery]:
        """Where each (decision, instance, destination) stands now, in the order of the last change."""
        table = tables.deliveries
        conditions: list[sa.ColumnElement[bool]] = []
        if study_uid is not None:
            conditions.append(table.c.study_key == key_of(study_uid))
        if decision_id is not None:
            conditions.append(table.c.decision_id == decision_id)
        if destination is not None:
            conditions.append(table.c.destination == destination)
        # Two data sets under one SOP Instance UID (a uid_conflict) are two instances: the digest tells them apart.
        item = (table.c.decision_id, table.c.sop_key, table.c.sha256, table.c.destination)
        latest = sa.select(sa.func.max(table.c.id)).where(*conditions).group_by(*item)
        narrowed = [table.c.id.in_(latest)] + ([] if state is None else [table.c.state == state.value])
        return [rows.to_delivery(row) for row in self._rows(table, *narrowed)]

    def delivery_history(
        self, sop_instance_uid: str | None = None, destination: str | None = None, *, decision_id: str | None = None
    ) -> list[Delivery]:
        """Every step, oldest first, of one instance, one destination or one decision."""
        table = tables.deliveries
        conditions = []
        if sop_instance_uid is not None:
            conditions.append(table.c.sop_key == key_of(sop_instance_uid))
        if destination is not None:
            conditions.append(table.c.destination == destination)
        if decision_id is not None:
            conditions.append(table.c.decision_id == decision_id)
        return [rows.to_delivery(row) for row in self._rows(table, *conditions)]

    # Associations and events -----------------------------------------------------------------------------------------

    def record_associations(self, source: str, events: Sequence[AssociationEvent]) -> None:
        """Take in a finished journal file under its name; a second time does nothing."""
        with self._writing() as (connection, chain):
            table = tables.associations
            if _first(connection, table.c.id, table.c.source_key == key_of(source)) is None:
                for position, happened in enumerate(events):
                    chain.append(table, rows.from_association(source, position, happened))

    def associations(self, limit: int | None = None) -> list[AssociationEvent]:
        """Association events in the order of recording; with `limit` the newest so many of them."""
        return [rows.to_association(row) for row in self._rows(tables.associations, limit=limit)]

    def record_event(self, kind: EventKind, subject_uid: str, detail: Mapping[str, Any]) -> None:
        """Record an alarm, a removal, a failure. `detail` must be JSON-ready and hold no patient data.

        An alarm (`kinds.ALARMS`) is logged as an error too, so that what watches the log hears of it.
        """
        with self._writing() as (_, chain):
            chain.append(tables.events, _event_row(kind, subject_uid, detail))
        _log_alarm(kind, subject_uid, detail)

    def record_turn(
        self,
        kind: EventKind,
        subject_uid: str,
        detail: Mapping[str, Any],
        *,
        kinds: Collection[EventKind],
        is_news: Callable[[Event | None], bool],
    ) -> bool:
        """Record an event about a subject whose state turned, if that is still news. Returns whether it was.

        `kinds` are the events that tell of this state. `is_news` is asked about the last of them, None where there is
        none, under the write lock: of several processes that see the same turn, one records it.
        """
        with self._writing() as (connection, chain):
            if not is_news(_last_event(connection, kinds, subject_uid)):
                return False
            chain.append(tables.events, _event_row(kind, subject_uid, detail))
        _log_alarm(kind, subject_uid, detail)
        return True

    def last_event(self, kinds: Collection[EventKind], subject_uid: str) -> Event | None:
        """The newest event of these kinds about a subject, None where there is none."""
        with self._reading() as connection:
            return _last_event(connection, kinds, subject_uid)

    def events(
        self, kind: str | None = None, limit: int | None = None, *, since: datetime | None = None
    ) -> list[Event]:
        """Events recorded at `since` (aware) or later, oldest first; with `limit` the newest so many of them."""
        conditions = [] if kind is None else [tables.events.c.kind == kind]
        if since is not None:
            conditions.append(tables.events.c.at >= tables.to_stamp(since))
        return [rows.to_event(row) for row in self._rows(tables.events, *conditions, limit=limit)]

    # Draws -----------------------------------------------------------------------------------------------------------

    def draws(self, after: int = 0) -> list[Draw]:
        """P-values drawn for the drift watch with numbers over `after`, in the order of recording."""
        return [rows.to_draw(row) for row in self._rows(tables.draws, tables.draws.c.id > after)]

    def newest_draws(self, group: DrawGroup, limit: int, *, through: int) -> list[Draw]:
        """The newest `limit` draws of a group with numbers up to `through`, in the order of recording."""
        conditions = [*_in_group(group), tables.draws.c.id <= through]
        return [rows.to_draw(row) for row in self._rows(tables.draws, *conditions, limit=limit)]

    def draw_groups(self) -> dict[DrawGroup, Tally]:
        """Every group of one sender, with its tally at one moment. The database counts; no draw is read."""
        columns = [tables.draws.c[name] for name in ("bundle", "enrolment", "images", "alpha", "sender")]
        query = sa.select(*columns, sa.func.count(), sa.func.max(tables.draws.c.id)).group_by(*columns)
        with self._reading() as connection:
            found = connection.execute(query).all()
        return {DrawGroup(*of): Tally(draws, newest) for *of, draws, newest in found}

    def count_draws(self, group: DrawGroup, *, through: int) -> int:
        """How many draws of a group have numbers up to `through`."""
        query = sa.select(sa.func.count()).select_from(tables.draws)
        with self._reading() as connection:
            return int(connection.scalar(query.where(*_in_group(group), tables.draws.c.id <= through)) or 0)

    # Trust -----------------------------------------------------------------------------------------------------------

    def verify(self) -> list[Problem]:
        """Re-check every chain, its heads and the triggers. Empty means that nothing was found. Reads only."""
        found = self._verify_once()
        if any(problem.kind == "heads" and problem.writer for problem in found):
            # A part that writes for the first time is in the tables a moment before it is in the heads file.
            time.sleep(_FIRST_HEAD_S)
            found = self._verify_once()
        return found

    def excerpt(self, decision_id: str) -> dict[str, Any]:
        """Everything recorded about one decision, row by row as its MACs cover it, and the heads; see `excerpt`."""
        tips = None if self._heads is None else verification.read_heads(self._heads)
        with self._reading() as connection:
            return excerpt.of_decision(connection, self._key, tips, decision_id)

    def _verify_once(self) -> list[Problem]:
        # The heads first: a row committed in between is then beyond its head, which is no break.
        tips = None if self._heads is None else verification.read_heads(self._heads)
        with self._reading() as connection:
            return list(verification.verify(connection, self._key, tips))

    # Inside ----------------------------------------------------------------------------------------------------------

    def _instances_under(
        self, sop_instance_uid: str, *conditions: sa.ColumnElement[bool]
    ) -> list[tuple[KnownInstance, frozenset[Reason]]]:
        """Every data set recorded under this SOP Instance UID, with its reasons, oldest first."""
        table = tables.decision_instances
        query = sa.select(
            table.c.sha256, table.c.transfer_syntax_uid, table.c.decision_id, table.c.file_name, table.c.reasons
        ).where(table.c.sop_key == key_of(sop_instance_uid), *conditions)
        with self._reading() as connection:
            found = connection.execute(query.order_by(table.c.id)).all()
        return [
            (KnownInstance(sha256, Uid(syntax), decision_id, name), frozenset(map(Reason, json.loads(reasons))))
            for sha256, syntax, decision_id, name, reasons in found
        ]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with store.speaking_plainly(self._name), store.reading(self._engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[Connection, Extension]]:
        with store.speaking_plainly(self._name), store.writing(self._engine) as connection:
            head = None if self._heads is None else self._heads.trusted().get(self._writer)
            chain = Extension(connection, self._key, self._writer, head)
            before = chain.seq
            if chain.is_cut:
                _log.critical(
                    "Alarm ledger_truncated: chain %s lost its end; run 'dicomguard verify' and keep the file.",
                    self._writer,
                )
                chain.append(
                    tables.events, _event_row(EventKind.LEDGER_TRUNCATED, "", {"writer": self._writer, "seq": before})
                )
            yield connection, chain
        # After the commit: a crash in between leaves a head that is behind, which `verify` takes as it is.
        if self._heads is not None and chain.seq > before:
            try:
                self._heads.advance(self._writer, chain.first_seq, chain.seq, chain.mac)
            except OSError as error:
                _log.error("The ledger's heads file cannot be written: %s.", error.strerror)

    def _decisions(
        self, *conditions: sa.ColumnElement[bool], skip: Callable[[LedgerError], None] | None = None
    ) -> Iterator[Decision]:
        table, parts, last = tables.decisions, tables.decision_instances, 0
        while True:
            page = sa.select(table).where(*conditions, table.c.id > last).order_by(table.c.id).limit(_PAGE_ROWS)
            with self._reading() as connection:
                found = [dict(row) for row in connection.execute(page).mappings()]
                ids = [row["decision_id"] for row in found]
                query = sa.select(parts).where(parts.c.decision_id.in_(ids)).order_by(parts.c.position)
                instances: dict[str, list[dict[str, Any]]] = {decision_id: [] for decision_id in ids}
                for part in connection.execute(query).mappings():
                    instances[part["decision_id"]].append(dict(part))
            for row in found:
                try:
                    decision = rows.to_decision(row, instances[row["decision_id"]])
                except LedgerError as error:
                    if skip is None:
                        raise
                    skip(error)
                else:
                    yield decision
            if len(found) < _PAGE_ROWS:
                return
            last = found[-1]["id"]

    def _rows(
        self, table: sa.Table, *conditions: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[dict[str, Any]]:
        query = sa.select(table).where(*conditions).order_by(table.c.id.desc())
        with self._reading() as connection:
            found = [dict(row) for row in connection.execute(query.limit(limit)).mappings()]
        return found[::-1]


def _first(connection: Connection, column: sa.ColumnElement[Any], condition: sa.ColumnElement[bool]) -> Any:
    return connection.scalar(sa.select(column).where(condition).limit(1))


def _queue(chain: Extension, decision: Decision, destinations: Sequence[str]) -> None:
    for destination in destinations:
        for instance in decision.instances:
            queued = Delivery(
                decision.decision_id,
                decision.study_instance_uid,
                instance.sop_instance_uid,
                instance.sha256,
                destination,
                DeliveryState.QUEUED,
            )
            chain.append(tables.deliveries, rows.from_delivery(queued))


def _add_draws(connection: Connection, chain: Extension, decision: Decision) -> None:
    table = tables.draws
    for draw in drawn_from(decision):
        same = sa.and_(table.c.study_key == key_of(draw.study_instance_uid), table.c.bundle == draw.bundle)
        if _first(connection, table.c.id, same) is None:
            chain.append(table, rows.from_draw(draw))


def _in_group(group: DrawGroup) -> list[sa.ColumnElement[bool]]:
    table = tables.draws
    conditions = [
        table.c.bundle == group.bundle,
        table.c.enrolment == group.enrolment,
        table.c.images == group.images,
        table.c.alpha == group.alpha,
    ]
    return conditions if group.sender is None else [*conditions, table.c.sender == group.sender]


def _last_event(connection: Connection, kinds: Collection[EventKind], subject_uid: str) -> Event | None:
    table = tables.events
    condition = (table.c.kind.in_(sorted(kinds)), table.c.subject_uid == subject_uid)
    query = sa.select(table).where(*condition).order_by(table.c.id.desc()).limit(1)
    found = connection.execute(query).mappings().first()
    return None if found is None else rows.to_event(dict(found))


def _log_alarm(kind: EventKind, subject_uid: str, detail: Mapping[str, Any]) -> None:
    if kind in ALARMS:
        about = f" for {subject_uid}" if subject_uid else ""
        _log.error("Alarm %s%s: %s", kind, about, tables.to_text(dict(detail))[:_LOGGED_CHARACTERS])


def _event_row(kind: EventKind, subject_uid: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "at": tables.to_stamp(utc_now()),
        "kind": kind,
        "subject_uid": subject_uid,
        "detail": tables.to_text(dict(detail)),
    }


def _identify(engine: Engine, chain_key: bytes, name: str) -> str:
    """The ledger's id; makes one where there is none. Raises LedgerError where it was begun with another key."""
    query = sa.select(tables.identity)
    with store.reading(engine) as connection:
        found = connection.execute(query).first()
    if found is None:
        with store.writing(engine) as connection:
            found = connection.execute(query).first()
            if found is None:
                ledger_id = uuid.uuid4().hex
                values = {
                    "ledger_id": ledger_id,
                    "key_check": key_check(chain_key, ledger_id),
                    "created_at": tables.to_stamp(utc_now()),
                }
                connection.execute(sa.insert(tables.identity), values)
                return ledger_id
    if found.key_check != key_check(chain_key, found.ledger_id):
        raise LedgerError(
            f"The ledger at {name} was begun with another site key.",
            advice="Put the key file that belongs to it back, or point 'ledger' at another database.",
        )
    return str(found.ledger_id)
