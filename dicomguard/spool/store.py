"""The spool: the only code that moves files. The folder says *where* an instance is; the ledger says *why*.

    receiving/              being received, never looked at by anybody else
    incoming/<study>/       received and durable, waiting for the study to fall quiet
    claimed/<study>.<claim>.<attempt>/        being screened
    outbound/<destination>/<decision>/        to be sent (hard links)
    undeliverable/<destination>/<decision>/   refused for good; waits for a person
    store/<decision>/       forwarded; kept until the retention period ends
    quarantine/<decision>/  held for a person, with its evidence
    rejected/<decision>/    a person said no
    failed/<study>.<claim>/ could not be screened three times; waits for a person
    journal/                association events on their way to the ledger

Every move is a rename or a link within one volume, done again harmlessly after a crash: what has moved is skipped.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dicomguard.errors import EnvelopeError, NotFoundError, SpoolError, is_of_the_host, is_shortage
from dicomguard.spool import envelope
from dicomguard.spool.incoming import SUFFIX, Incoming, fsync_folder
from dicomguard.study import Instance, Quiet, StudyKey, is_overdue, is_settled, observe

_FOLDERS = (
    "receiving",
    "incoming",
    "claimed",
    "outbound",
    "undeliverable",
    "store",
    "quarantine",
    "rejected",
    "failed",
    "journal",
    "locks",
)
EVIDENCE = "evidence"
_BEGUN = "begun."
_CLAIM = re.compile(r"(?:[0-9a-f]{32}|unidentified)\.[0-9a-f]{32}(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Claim:
    """What the screener took: the files that it moved itself.

    `strangers` are files without a receipt of ours; `unreadable` are those that the machine fails to read just now.
    """

    claim_id: str
    study_key: StudyKey
    attempt: int
    folder: Path
    instances: tuple[Instance, ...]
    strangers: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*(instance.path for instance in self.instances), *self.strangers, *self.unreadable)


@dataclass(frozen=True, slots=True)
class Due:
    """A study whose turn it is. `is_late`: it has waited for longer than the deadline, which raises an alarm.

    `is_endless`: because it did not fall quiet in time, and not because the screener was behind. Only then does
    `policy.overdue` act: what merely waited in our own queue is screened like everything else.
    """

    study_key: StudyKey
    is_late: bool
    is_endless: bool


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One instance that waits for one destination."""

    destination: str
    decision_id: str
    instance: Instance


class Spool:
    """The folders under `root`, all on one volume."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the folders, readable by this user only. Raises SpoolError where that fails or volumes differ."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SpoolError(
                f"The spool folder {self.root} cannot be used: {error.strerror}.",
                advice="Give this user write access to data_dir, or set another data_dir.",
            ) from error
        devices = {(self.root / name).stat().st_dev for name in _FOLDERS}
        if len(devices) > 1:
            raise SpoolError(
                f"The folders under {self.root} lie on different volumes, so that a rename is not atomic.",
                advice="Mount one volume on data_dir, not on a folder below it.",
            )

    @contextmanager
    def exclusive(self, part: str) -> Iterator[None]:
        """Hold the lock of a part of the node. Raises SpoolError when another process holds it."""
        with (self.root / "locks" / part).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SpoolError(
                    f"Another '{part}' process works on this data_dir.",
                    advice="Stop it first, or use another data_dir.",
                ) from error
            yield

    def incoming(self, *, reserve_bytes: int) -> Incoming:
        """The receiving end, and nothing else."""
        return Incoming(self.root, reserve_bytes=reserve_bytes)

    def sweep_parts(self, older_than_s: float = 0.0) -> int:
        """Remove parts that nobody finished: at start all of them, later those untouched for `older_than_s`."""
        horizon = time.time() - older_than_s
        stale = [path for path in (self.root / "receiving").glob("*.part") if _mtime(path) <= horizon]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    # --- from incoming to claimed

    def arrivals(self) -> dict[StudyKey, frozenset[str]]:
        """File names per study in `incoming/`."""
        found = {}
        for folder in _folders(self.root / "incoming"):
            try:
                found[StudyKey(folder.name)] = frozenset(entry.name for entry in folder.iterdir())
            except FileNotFoundError:
                continue
        return found

    def waiting(self, key: StudyKey) -> list[Instance]:
        """The instances of one study in `incoming/`, in order of receipt."""
        return _files_of(self.root / "incoming" / key).instances

    def claim(self, key: StudyKey) -> Claim | None:
        """Move a study's files, one by one, into a new claim, which holds just what was moved here. None if nothing.

        Raises OSError or SpoolError; what was moved by then stays in `claimed/`, to be found by `claims`.
        """
        source = self.root / "incoming" / key
        claim_id = uuid.uuid4().hex
        folder = self.root / "claimed" / f"{key}.{claim_id}.1"
        try:
            names = sorted(entry.name for entry in source.iterdir())
        except FileNotFoundError:
            return None
        folder.mkdir(mode=0o700)
        try:
            fsync_folder(folder.parent)
            moved = [name for name in names if _move(source / name, folder / name)]
            _remove_if_empty(source)
            if moved:
                fsync_folder(folder)
        finally:
            _remove_if_empty(folder)
        return _open_claim(folder) if moved else None

    def claims(self) -> list[Claim]:
        """Claims that a former run left behind, oldest first."""
        return _open_claims(self.root / "claimed")

    def reopen(self, claim: Claim) -> Claim | None:
        """A claim as it lies in `claimed/` now, whatever was moved meanwhile; None when it is not there any more."""
        found = sorted((self.root / "claimed").glob(f"{claim.study_key}.{claim.claim_id}.*"))
        return _open_claim(found[-1]) if found else None

    def begin(self, claims: Iterable[Claim]) -> None:
        """Note, durably, that these claims are worked on from now: what kills the process may be one of them."""
        for claim in claims:
            self._note(claim.claim_id).touch(mode=0o600)
        fsync_folder(self.root / "locks")

    def end(self, claim_id: str) -> None:
        """The process has survived the work on this claim. A note that stays behind costs an attempt, no more."""
        with suppress(OSError):
            self._note(claim_id).unlink()

    def begun(self) -> set[str]:
        """The claims that were worked on when the last process died, and perhaps some that were not."""
        return {path.name.removeprefix(_BEGUN) for path in (self.root / "locks").glob(f"{_BEGUN}*")}

    def _note(self, claim_id: str) -> Path:
        return self.root / "locks" / f"{_BEGUN}{claim_id}"

    def next_attempt(self, claim: Claim) -> Claim:
        """Count one more attempt, durably, before it is made."""
        folder = claim.folder.with_name(f"{claim.study_key}.{claim.claim_id}.{claim.attempt + 1}")
        claim.folder.rename(folder)
        fsync_folder(folder.parent)
        return _open_claim(folder)

    def fail(self, claim: Claim) -> Path:
        """Give a claim up after its last attempt: `failed/`, for a person to look at."""
        target = self._to_failed(f"{claim.study_key}.{claim.claim_id}", claim.files)
        shutil.rmtree(claim.folder / EVIDENCE, ignore_errors=True)
        _remove_if_empty(claim.folder)
        return target

    def set_aside(self, claim: Claim, strangers: Sequence[Path]) -> None:
        """Files without a readable receipt go to `failed/`: kept, never sent."""
        self._to_failed(f"{claim.study_key}.{claim.claim_id}", strangers)

    def _to_failed(self, name: str, paths: Iterable[Path]) -> Path:
        target = self.root / "failed" / name
        target.mkdir(mode=0o700, exist_ok=True)  # something of the same claim may have been set aside there already
        for path in paths:
            _move(path, target / path.name)
        fsync_folder(target)
        fsync_folder(target.parent)
        return target

    def write_evidence(self, claim: Claim, decision_id: str, name: str, content: bytes) -> None:
        """Add a file to the evidence of a decision to be; it travels with the instances into quarantine."""
        folder = claim.folder / EVIDENCE / decision_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(folder)

    # --- from claimed to where the decision says

    def forward(self, claim: Claim, decision_id: str, names: Iterable[str], destinations: Sequence[str]) -> None:
        """Queue the instances for every destination and keep them in the store."""
        self._send_out(claim.folder, decision_id, names, destinations)

    def hold(self, claim: Claim, decision_id: str, names: Iterable[str]) -> None:
        """Move the instances, and the evidence, into quarantine."""
        target = self.root / "quarantine" / decision_id
        target.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            _move(claim.folder / name, target / name)
        _move(claim.folder / EVIDENCE / decision_id, target / EVIDENCE)
        fsync_folder(target)
        fsync_folder(target.parent)

    def drop_copy(self, claim: Claim, instance: Instance, decision_id: str) -> bool:
        """Remove a repeated transfer when the first copy is still here, and whole. False: it is not.

        A copy that was damaged meanwhile is none: the repetition is what mends it. Where the transfer was refused, a
        copy that a person released is none: its repetition waits for a person again. Raises OSError and EnvelopeError
        where the machine has no descriptor or memory left to look at the first copy.
        """
        places = ("quarantine", "rejected") if instance.receipt.fault else ("store", "quarantine", "rejected")
        routed = (self.root / place / decision_id for place in places)
        decided = (f for f in (self.root / "claimed").glob(f"{claim.study_key}.*") if f != claim.folder)
        folders = itertools.chain(routed, decided)
        first = any(_is_whole(folder / instance.name, instance.receipt.sha256) for folder in folders)
        if first:
            (claim.folder / instance.name).unlink(missing_ok=True)
        return first

    def finish(self, claim: Claim) -> None:
        """Close a claim whose every instance has found its place."""
        shutil.rmtree(claim.folder / EVIDENCE, ignore_errors=True)
        try:
            claim.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            left = len(list(claim.folder.iterdir()))
            raise SpoolError(f"Claim {claim.claim_id} still holds {left} file(s) that no decision names.") from error

    # --- quarantine and its two ways out

    def quarantined(self, decision_id: str) -> list[Instance]:
        """The instances of one quarantined decision; empty when it is not (or no longer) in quarantine."""
        return _files_of(self.root / "quarantine" / decision_id).instances

    def left_in_quarantine(self, decision_id: str) -> int:
        """How many files a quarantined decision has there: its instances, and what cannot be read as one."""
        try:
            return sum(entry.name != EVIDENCE for entry in (self.root / "quarantine" / decision_id).iterdir())
        except FileNotFoundError:
            return 0

    def evidence(self, decision_id: str) -> Path | None:
        """The folder with the evidence of a decision that is or was held; None when there is none."""
        for place in ("quarantine", "store", "rejected"):
            folder = self.root / place / decision_id / EVIDENCE
            if folder.is_dir():
                return folder
        return None

    def release(self, decision_id: str, destinations: Sequence[str]) -> int:
        """From quarantine to the destinations and the store. Returns how many instances moved now.

        A file without a readable receipt stays: see `set_aside_released`.
        """
        folder = self.root / "quarantine" / decision_id
        names = [instance.name for instance in self.quarantined(decision_id)]
        self._send_out(folder, decision_id, names, destinations)
        _move_evidence(folder, self.root / "store" / decision_id)
        _remove_if_empty(folder)
        return len(names)

    def set_aside_released(self, decision_id: str, key: StudyKey) -> int:
        """What was released and is no instance any more goes to `failed/`. Returns how many files."""
        strangers = _files_of(self.root / "quarantine" / decision_id).strangers
        if strangers:
            self._to_failed(f"{key}.{decision_id}", strangers)
            _remove_if_empty(self.root / "quarantine" / decision_id)
        return len(strangers)

    def reject(self, decision_id: str) -> int:
        """From quarantine to `rejected/`: kept, never sent. Returns how many instances moved now.

        One by one, into a folder that may hold some of them already: a ruling can be quicker than our own `hold`.
        """
        source, target = self.root / "quarantine" / decision_id, self.root / "rejected" / decision_id
        found = _files_of(source)
        if not any(found):
            return 0
        instances = found.instances
        target.mkdir(mode=0o700, exist_ok=True)
        # The instances last: as long as one is left, whoever finishes the ruling comes back for the rest.
        _move_evidence(source, target)
        for path in (*found.strangers, *found.unreadable, *(instance.path for instance in instances)):
            _move(path, target / path.name)
        for folder in (target, target.parent):
            fsync_folder(folder)
        _remove_if_empty(source)
        return len(instances)

    def _send_out(self, source: Path, decision_id: str, names: Iterable[str], destinations: Sequence[str]) -> None:
        kept = self.root / "store" / decision_id
        kept.mkdir(mode=0o700, exist_ok=True)
        queues = [self.root / "outbound" / destination / decision_id for destination in destinations]
        for name in names:  # what is not here was moved before a crash, links first
            for queue in queues:
                _queue(source / name, queue)
            _move(source / name, kept / name)
        for folder in (*queues, *(queue.parent for queue in queues), kept, kept.parent):
            # The courier may have emptied and removed a queue already: then it needs no sync.
            with suppress(FileNotFoundError):
                fsync_folder(folder)

    # --- outbound

    def queues(self) -> tuple[list[str], list[str]]:
        """Destinations that something waits for, and the names of what lies among their folders and is none."""
        entries = sorted((self.root / "outbound").iterdir())
        queued = [entry.name for entry in entries if entry.is_dir() and _folders(entry)]
        return queued, [entry.name for entry in entries if not entry.is_dir()]

    def outgoing(self, destination: str) -> Iterator[Outgoing]:
        """What waits for a destination, oldest decision first. Items may vanish while you look."""
        for folder in sorted(_folders(self.root / "outbound" / destination), key=_mtime):
            for instance in _files_of(folder).instances:
                yield Outgoing(destination, folder.name, instance)
            _remove_if_empty(folder)

    def delivered(self, item: Outgoing) -> None:
        """Take an instance off its destination's queue; the stored copy stays."""
        item.instance.path.unlink(missing_ok=True)

    def give_up(self, item: Outgoing) -> None:
        """Put an instance that a destination refused for good where a person finds it."""
        folder = self.root / "undeliverable" / item.destination / item.decision_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _move(item.instance.path, folder / item.instance.name)
        fsync_folder(folder)

    def undeliverable(self) -> Iterator[Outgoing]:
        """What was refused for good, for every destination."""
        for destination in _folders(self.root / "undeliverable"):
            for folder in sorted(_folders(destination), key=_mtime):
                for instance in _files_of(folder).instances:
                    yield Outgoing(destination.name, folder.name, instance)
                _remove_if_empty(folder)

    def send_again(self, item: Outgoing) -> None:
        """Put an undeliverable instance back into its destination's queue."""
        queue = self.root / "outbound" / item.destination / item.decision_id
        if _queue(item.instance.path, queue):
            item.instance.path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            fsync_folder(queue)

    def waits_for_delivery(self, decision_id: str, name: str) -> bool:
        """True while some destination has not got this instance yet."""
        queues = (self.root / place for place in ("outbound", "undeliverable"))
        return any((folder / decision_id / name).exists() for queue in queues for folder in _folders(queue))

    # --- the store and what failed

    def stored(self) -> Iterator[tuple[str, Instance]]:
        """Forwarded instances that are still kept: decision id and instance."""
        for folder in sorted(_folders(self.root / "store"), key=_mtime):
            for instance in _files_of(folder).instances:
                yield folder.name, instance

    def remove_stored(self, decision_id: str, instance: Instance) -> None:
        """Remove a kept instance whose retention has ended, and with the last one the decision's folder."""
        instance.path.unlink(missing_ok=True)
        folder = self.root / "store" / decision_id
        if not any(folder.glob(f"*{SUFFIX}")):
            shutil.rmtree(folder, ignore_errors=True)

    def failed(self) -> list[Claim]:
        """Claims that were given up."""
        return _open_claims(self.root / "failed")

    def requeue(self, claim: Claim) -> int:
        """Put a failed claim's instances back into `incoming/`, to be screened as if they had just come."""
        target = self.root / "incoming" / claim.study_key
        moved = 0
        for instance in claim.instances:
            target.mkdir(mode=0o700, exist_ok=True)
            moved += _move(instance.path, target / instance.name)
        shutil.rmtree(claim.folder / EVIDENCE, ignore_errors=True)
        if moved:
            fsync_folder(target)
        _remove_if_empty(claim.folder)
        return moved

    # --- what people ask for

    def send_stored(self, decision_id: str, names: Iterable[str], destination: str) -> int:
        """Queue kept instances for a destination once more. Returns how many are there; what is gone is left out."""
        queue = self.root / "outbound" / destination / decision_id
        kept = self.root / "store" / decision_id
        count = sum(_queue(kept / name, queue) for name in names)
        for folder in (queue, queue.parent):
            with suppress(FileNotFoundError):
                fsync_folder(folder)
        return count

    def damaged_outgoing(self, destination: str) -> Iterator[tuple[str, Path, bool]]:
        """Files in a destination's queue without a readable receipt: decision id, path, and whether that is for good.

        It is not where the machine fails to read them just now.
        """
        for folder in _folders(self.root / "outbound" / destination):
            found = _files_of(folder)
            yield from ((folder.name, path, True) for path in found.strangers)
            yield from ((folder.name, path, False) for path in found.unreadable)

    def purge_rejected(self, decision_id: str) -> int:
        """Remove the files of a rejected decision, for good. Returns how many instances went. Raises SpoolError."""
        folder = self.root / "rejected" / decision_id
        return _purge(folder, len(list(folder.glob(f"*{SUFFIX}"))))

    def purge_failed(self, claim: Claim) -> int:
        """Remove the files of a failed claim, for good. Returns how many went. Raises SpoolError."""
        return _purge(self.root / "failed" / claim.folder.name, len(claim.files))


class Settling:
    """Watches `incoming/` with a monotonic clock and names the studies whose turn it is.

    Whether a study fell quiet is told by a second clock, of the time that somebody looked: while the screener is busy
    for longer, or the ledger away, it stands still, so that nobody takes what came unseen for a study without end.
    """

    def __init__(self, spool: Spool, *, quiet_s: float, deadline_s: float) -> None:
        self._spool = spool
        self._quiet_s = quiet_s
        self._deadline_s = deadline_s
        self._seen: dict[StudyKey, Quiet] = {}
        self._first_s: dict[StudyKey, float] = {}
        self._looked_s: float | None = None
        self._watched_s = 0.0

    def due(self, now_s: float) -> list[Due]:
        """Studies with nothing new for `quiet_s`, and those that never get there within `deadline_s`.

        Longest waiting first. The timers start over with the process: time that the node was down does not count.
        """
        arrivals = self._spool.arrivals()
        # Twice, so that what has not changed over a longer interval counts as quiet however the sums are rounded.
        self._watched_s += min(now_s - (now_s if self._looked_s is None else self._looked_s), 2 * self._quiet_s)
        self._looked_s = now_s
        self._first_s = {key: self._first_s.get(key, now_s) for key in arrivals}
        self._seen = {key: observe(self._seen.get(key), names, self._watched_s) for key, names in arrivals.items()}
        found = []
        for key, quiet in self._seen.items():
            has_settled = is_settled(quiet, self._watched_s, self._quiet_s)
            is_restless = is_overdue(quiet, self._watched_s, self._deadline_s)
            is_late = now_s - self._first_s[key] > self._deadline_s
            if has_settled or is_restless or is_late:
                in_time = quiet.since_s + self._quiet_s <= quiet.first_s + self._deadline_s
                due = Due(key, is_late=is_late, is_endless=is_restless and not in_time)
                found.append((self._first_s[key], due))
        return [due for _, due in sorted(found, key=lambda pair: pair[0])]

    def forget(self, key: StudyKey) -> None:
        """What was there is claimed: what comes from now on is timed by itself."""
        self._seen.pop(key, None)
        self._first_s.pop(key, None)


def find_failed(spool: Spool, claim_id: str) -> Claim:
    """The failed claim whose id begins with `claim_id`. Raises NotFoundError."""
    matches = [claim for claim in spool.failed() if claim.claim_id.startswith(claim_id)]
    if len(matches) != 1:
        raise NotFoundError(
            f"{len(matches) or 'No'} failed claim(s) begin with '{claim_id}'.", advice="See 'dicomguard failed list'."
        )
    return matches[0]


def _open_claims(parent: Path) -> list[Claim]:
    """Oldest first; folders that are no claims of ours are left alone."""
    return [_open_claim(folder) for folder in sorted(_folders(parent), key=_mtime) if _CLAIM.fullmatch(folder.name)]


def _open_claim(folder: Path) -> Claim:
    key, _, rest = folder.name.partition(".")
    claim_id, _, attempt = rest.partition(".")
    found = _files_of(folder)
    return Claim(
        claim_id,
        StudyKey(key),
        int(attempt or "0"),
        folder,
        tuple(found.instances),
        tuple(found.strangers),
        tuple(found.unreadable),
    )


def _purge(folder: Path, count: int) -> int:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise SpoolError(f"{folder} cannot be removed: {error.strerror}.", advice="Then say the same again.") from error
    fsync_folder(folder.parent)
    return count


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        instance = envelope.read(path)
        return instance.receipt.sha256 == sha256 == envelope.data_sha256(instance)
    except (EnvelopeError, OSError) as error:
        if is_shortage(error):
            raise
        return False  # also where the disk fails: a copy too many does no harm


class _Files(NamedTuple):
    """What lies in a folder: instances in order of receipt, files that are none, and what a disk fails to give us."""

    instances: list[Instance]
    strangers: list[Path]
    unreadable: list[Path]


def _files_of(folder: Path) -> _Files:
    """Raises OSError, and EnvelopeError where the machine has no descriptor or memory left to look."""
    found = _Files([], [], [])
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name != EVIDENCE)
    except FileNotFoundError:
        return found
    for path in entries:
        try:
            found.instances.append(envelope.read(path))
        except EnvelopeError as error:
            if is_shortage(error):
                raise  # that is not what makes a file a stranger
            if is_of_the_host(error):
                found.unreadable.append(path)
            elif path.exists():
                found.strangers.append(path)
    found.instances.sort(key=lambda instance: (instance.receipt.received_at, instance.name))
    return found


def _folders(parent: Path) -> list[Path]:
    try:
        return [entry for entry in parent.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _move(source: Path, target: Path) -> bool:
    """Rename; False when the source is gone (moved before a crash, or by its owner)."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def _move_evidence(source: Path, target: Path) -> None:
    """The evidence of a decision, file by file: a part of it may lie there already."""
    if not (source / EVIDENCE).is_dir():
        return
    (target / EVIDENCE).mkdir(mode=0o700, exist_ok=True)
    for path in sorted((source / EVIDENCE).iterdir()):
        _move(path, target / EVIDENCE / path.name)
    fsync_folder(target / EVIDENCE)
    _remove_if_empty(source / EVIDENCE)


def _queue(source: Path, queue: Path) -> bool:
    """Link a file into a destination's queue, once; False when there is no such file."""
    while source.exists():
        queue.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The courier removes a queue that it has emptied: between our mkdir and our link it may be gone again.
        with suppress(FileNotFoundError):
            with suppress(FileExistsError):
                os.link(source, queue / source.name)
            return True
    return False


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # not empty, or gone
