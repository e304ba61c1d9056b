"""The receiving end of the spool: the only part of it that the receiver is handed.

An instance is written to `receiving/`, sealed with its receipt, fsynced, linked into `incoming/<study>/` and the
folder fsynced; only then may the receiver answer 0x0000. No partial file ever stands under a final name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dicomguard.errors import OutOfSpaceError, SpoolError
from dicomguard.spool import envelope
from dicomguard.study import Instance, Receipt, key_of, study_key

SUFFIX = ".dcm"
_KNOWN_FOLDERS = 4096
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@contextmanager
def _space_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutOfSpaceError(f"The spool's volume cannot take more: {error.strerror}.") from error
        raise SpoolError(f"The spool cannot be written: {error.strerror}.") from error


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _DurableFolders:
    """Which study folders are known to be durable themselves, so that `incoming/` is not synced for every instance.

    A folder that was removed and made again is another one: it is known by its inode. Thread-safe enough: at worst a
    folder is synced twice.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._known: dict[str, int] = {}

    def ensure(self, folder: Path) -> None:
        """Raises FileNotFoundError when the folder is gone."""
        inode = folder.stat().st_ino
        if self._known.get(folder.name) != inode:
            fsync_folder(self._parent)
            if len(self._known) >= _KNOWN_FOLDERS:
                self._known.clear()
            self._known[folder.name] = inode


class Part:
    """An instance while it is being received. Not thread-safe; one association writes one part at a time.

    After `commit` or `discard` the object is spent. `size_bytes` and `sha256` are those of the data set so far.
    """

    def __init__(
        self, path: Path, descriptor: int, head: bytes, slot_offset: int, incoming: Path, durable: _DurableFolders
    ) -> None:
        self.path = path
        self.data_offset = len(head)
        self.size_bytes = 0
        self._descriptor = descriptor
        self._slot_offset = slot_offset
        self._incoming = incoming
        self._durable = durable
        self._digest = hashlib.sha256()

    @property
    def descriptor(self) -> int:
        """The open file, for a look at the head of the data set with `os.pread`."""
        return self._descriptor

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append data set bytes. Raises OutOfSpaceError or SpoolError; the caller then discards."""
        view = memoryview(data)
        self._digest.update(view)
        self.size_bytes += len(view)
        with _space_errors():
            _write_all(self._descriptor, view)

    def commit(self, receipt: Receipt) -> Instance:
        """Seal, make durable and show the instance. Returns it under its final name, then and only then it is ours.

        `receipt.sha256` and `receipt.size_bytes` are filled in here. The same bytes of the same instance get the same
        name, so a repeated transfer leaves one copy. Raises OutOfSpaceError or SpoolError; the caller then discards.
        """
        receipt = replace(receipt, sha256=self._digest.hexdigest(), size_bytes=self.size_bytes)
        # What is one file must be the same in everything that matters: the bytes, what they are said to be, and whether
        # they were refused. Else a later transfer would change the standing of one that is acknowledged.
        said = (receipt.sop_instance_uid, receipt.sop_class_uid, receipt.transfer_syntax_uid, receipt.fault)
        folder = self._incoming / study_key(receipt.study_instance_uid)
        target = folder / f"{key_of(chr(0).join(said))}-{receipt.sha256[:32]}{SUFFIX}"
        with _space_errors():
            slot = envelope.slot(receipt)
            if os.pwrite(self._descriptor, slot, self._slot_offset) != len(slot):
                raise SpoolError(f"The receipt of {self.path.name} was not written whole.")
            if os.fstat(self._descriptor).st_size != self.data_offset + self.size_bytes:
                raise SpoolError(f"{self.path.name} is not as long as what was received.")
            os.fsync(self._descriptor)
            self._show(folder, target)
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1
        return Instance(target, self.data_offset, receipt)

    def _show(self, folder: Path, target: Path) -> None:
        # The screener removes a study's folder once it is empty: between our mkdir and our link it may be gone again.
        for _ in range(100):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            try:
                self._durable.ensure(folder)
                os.link(self.path, target)
            except FileExistsError:
                pass  # the same transfer again; the first is synced, and so will its folder be
            except FileNotFoundError as error:
                if self.path.exists():
                    continue
                # Nobody but us may touch a part; what is not there must not be acknowledged.
                raise SpoolError(f"{self.path.name} was removed while it was being received.") from error
            try:
                fsync_folder(folder)
            except FileNotFoundError:
                # Claimed by the screener before the folder could be synced. Syncing its parent commits the renames
                # before it on a journalling file system.
                fsync_folder(self._incoming)
            return
        raise SpoolError(f"{folder.name} in the spool keeps disappearing.", advice="Is a second screener running?")

    def discard(self) -> None:
        """Remove what was received. Safe to call twice, and after `commit` (then it does nothing)."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.unlink(missing_ok=True)


def _write_all(descriptor: int, view: memoryview) -> None:
    # A volume or a quota with little room left takes a part of what it is given, and says so by no error.
    while view:
        view = view[os.write(descriptor, view) :]


class Incoming:
    """Where the receiver puts instances. `reserve_bytes` of the volume are never used for new ones."""

    def __init__(
        self,
        root: Path,
        *,
        reserve_bytes: int,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self._receiving = root / "receiving"
        self._incoming = root / "incoming"
        self._durable = _DurableFolders(self._incoming)
        self._reserve_bytes = reserve_bytes
        self._free_bytes = free_bytes

    def check_space(self) -> None:
        """Raises OutOfSpaceError when the volume is down to its reserve."""
        if self._free_bytes(self._receiving) < self._reserve_bytes:
            raise OutOfSpaceError(
                f"The spool's volume has less than {self._reserve_bytes // 2**20} MiB left.",
                advice="Free some; 'dicomguard quarantine purge' and 'failed purge' remove what nobody needs.",
            )

    def begin(self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str) -> Part:
        """Open a new part. Raises OutOfSpaceError or SpoolError."""
        head, slot_offset = envelope.header(sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae)
        path = self._receiving / f"{uuid.uuid4().hex}.part"
        with _space_errors():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        part = Part(path, descriptor, head, slot_offset, self._incoming, self._durable)
        try:
            with _space_errors():
                _write_all(descriptor, memoryview(head))
        except SpoolError:
            part.discard()
            raise
        return part
