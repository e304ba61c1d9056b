"""Sends DICOM files to a node as they are: a tool for researchers and for trying things out.

Data sets go out byte for byte, each in the transfer syntax of its file. Labels in a manifest are carried along, so that
what a node decided can be held against what was true. Nothing is kept, and nothing is tried twice.
"""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydicom.datadict import keyword_for_tag

from dicomguard.errors import DeliveryError, DicomguardError, HostError
from dicomguard.scu import AlteredError, Association, Timeouts
from dicomguard.scu.association import MAX_CONTEXTS
from dicomguard.study import AeTitle, Peer, Uid

_PREFIX: Final = b"DICM"
_META_MAX_BYTES: Final = 1 << 20
_STORED: Final = frozenset({0x0000, 0xB000, 0xB006, 0xB007, 0x0111})
_NEEDED: Final = {0x0002: "sop_class_uid", 0x0003: "sop_instance_uid", 0x0010: "transfer_syntax_uid"}
_LONG_VRS: Final = frozenset(
    {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one file. `status` is None where nothing came back, or nothing was sent; `error` says why."""

    path: Path
    sop_instance_uid: str
    status: int | None
    error: str = ""

    @property
    def is_stored(self) -> bool:
        """True when the peer says that it has the instance, warnings included."""
        return self.status in _STORED

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON, the status as `0x0000`."""
        status = None if self.status is None else f"0x{self.status:04X}"
        return {**asdict(self), "path": str(self.path), "status": status, "is_stored": self.is_stored}


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    data_offset: int
    sop_class_uid: Uid
    sop_instance_uid: Uid
    transfer_syntax_uid: Uid

    @property
    def syntaxes(self) -> tuple[str, str]:
        return self.sop_class_uid, self.transfer_syntax_uid


def send(
    paths: Iterable[Path],
    to: Peer,
    *,
    calling: AeTitle,
    manifest: Path | None = None,
    progress: Progress | None = None,
    timeouts: Timeouts | None = None,
) -> list[Sent]:
    """Send files, and everything in folders, in order of their names. One entry for each file, sent or not.

    `manifest` (JSON lines, or CSV with a header line) names files or SOP Instance UIDs under `path`, `uid` or
    `sop_instance_uid`; a copy with all that it says and what was sent goes to `<name>.sent<suffix>` beside it. Without
    `paths` the files that it lists go out, in its order; a `path` is relative to the manifest, an empty one says that
    there is no file. `progress(done, total)`.

    Raises:
        DicomguardError: the manifest cannot be read, lists no file, or its copy cannot be written.
        DeliveryError: no association could be made at all.

    """
    labels = None if manifest is None else _read_manifest(manifest)
    given = list(paths)
    files = list(_files(given))
    if not given and manifest is not None and labels is not None:
        files = list(_listed(manifest, labels))
    report = progress or (lambda _done, _total: None)
    report(0, len(files))
    sent: list[Sent] = []
    readable: list[_File] = []
    for path in files:
        found = _open(path)
        if isinstance(found, Sent):
            sent.append(found)
        else:
            readable.append(found)
    done = len(sent)
    for batch in _batches(readable):
        for result in _send_batch(batch, to, calling, timeouts, is_first=done == len(files) - len(readable)):
            sent.append(result)
            done += 1
            report(done, len(files))
    order = {path: index for index, path in enumerate(files)}
    sent.sort(key=lambda result: order[result.path])
    if manifest is not None and labels is not None:
        _write_manifest(manifest, labels, sent)
    return sent


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            if file not in seen:
                seen.add(file)
                yield file


def _listed(manifest: Path, labels: Iterable[Mapping[str, Any]]) -> Iterator[Path]:
    named = dict.fromkeys(manifest.parent / str(label["path"]) for label in labels if label.get("path"))
    if not named:
        raise DicomguardError(f"The manifest {manifest} lists no file.", advice="Name the files or folders to send.")
    yield from named


def _open(path: Path) -> _File | Sent:
    """Where the data set of a Part 10 file starts, and what it is (PS3.10 section 7.1)."""
    try:
        with path.open("rb") as file:
            head = file.read(_META_MAX_BYTES)
    except OSError as error:
        return Sent(path, "", None, f"cannot be read: {error.strerror}")
    if head[128:132] != _PREFIX:
        return Sent(path, "", None, "skipped: no DICOM file (no DICM after the preamble)")
    values: dict[str, str] = {}
    position = 132
    try:
        while position < len(head) and struct.unpack_from("<H", head, position)[0] == 0x0002:
            _, element, vr, length = struct.unpack_from("<HH2sH", head, position)
            position += 8
            if vr in _LONG_VRS:
                (length,) = struct.unpack_from("<I", head, position)
                position += 4
            if element in _NEEDED:
                values[_NEEDED[element]] = head[position : position + length].rstrip(b"\0 ").decode("ascii", "replace")
            position += length
    except struct.error:
        return Sent(path, "", None, "skipped: its file meta information is cut off")
    missing = [keyword_for_tag((0x0002 << 16) | tag) for tag, name in _NEEDED.items() if not values.get(name)]
    if missing:
        return Sent(path, values.get("sop_instance_uid", ""), None, f"skipped: it lacks {', '.join(missing)}")
    if position > path.stat().st_size:
        return Sent(path, values["sop_instance_uid"], None, "skipped: its file meta information is cut off")
    return _File(path, position, *(Uid(values[name]) for name in _NEEDED.values()))


def _batches(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Runs of files, in order, whose presentation contexts fit one association."""
    batch: list[_File] = []
    contexts: set[tuple[str, str]] = set()
    for file in files:
        if file.syntaxes not in contexts and len(contexts) == MAX_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.append(file)
        contexts.add(file.syntaxes)
    if batch:
        yield batch


def _send_batch(
    batch: Sequence[_File], to: Peer, calling: AeTitle, timeouts: Timeouts | None, *, is_first: bool
) -> Iterator[Sent]:
    """Over one association, and a new one after each instance that ended the last.

    Raises DeliveryError where the very first association fails; later, what is left is reported as not sent.
    """
    contexts = list(dict.fromkeys(file.syntaxes for file in batch))
    left = list(batch)
    while left:
        try:
            association = Association(
                to.host, to.port, calling_ae=calling, called_ae=to.ae_title, contexts=contexts, timeouts=timeouts
            )
        except DeliveryError as error:
            if is_first and len(left) == len(batch):
                raise
            yield from (Sent(file.path, file.sop_instance_uid, None, error.message) for file in left)
            return
        with association:
            is_whole = True
            while left and is_whole:
                result, is_whole = _send_one(association, left.pop(0))
                yield result


def _send_one(association: Association, file: _File) -> tuple[Sent, bool]:
    """The result, and whether the association still stands."""
    if file.syntaxes not in association.accepted:
        message = f"the peer accepts no context for {file.sop_class_uid} in {file.transfer_syntax_uid}"
        return Sent(file.path, file.sop_instance_uid, None, message), True
    try:
        outcome = association.store(
            file.path, file.data_offset, syntaxes=file.syntaxes, sop_instance_uid=file.sop_instance_uid
        )
    except (DeliveryError, AlteredError, HostError) as error:
        return Sent(file.path, file.sop_instance_uid, None, error.message), False
    said = "" if outcome.status == 0 else f"status 0x{outcome.status:04X} {outcome.comment}".strip()
    return Sent(file.path, file.sop_instance_uid, outcome.status, said), True


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                return list(csv.DictReader(file))
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise DicomguardError(
            f"The manifest {path} cannot be read: {error}.", advice="Write JSON lines, or CSV with a header line."
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise DicomguardError(f"The manifest {path} has a line that is no JSON object.")
    return rows


def _write_manifest(manifest: Path, labels: Sequence[Mapping[str, Any]], sent: Sequence[Sent]) -> None:
    """The manifest's rows with `sop_instance_uid`, `status`, `is_stored` and `error` of what was sent for them."""
    by_uid = {result.sop_instance_uid: result for result in sent if result.sop_instance_uid}
    by_path = {_absolute(result.path): result for result in sent}
    rows = []
    for label in labels:
        uid = label.get("sop_instance_uid") or label.get("uid") or ""
        named = label.get("path") or ""
        # By path first: a clean and an attacked file may bear the same UID.
        found = (by_path.get(_absolute(manifest.parent / named)) if named else None) or by_uid.get(uid)
        outcome = {"sop_instance_uid": uid, "status": None, "is_stored": False, "error": "not among the files sent"}
        if found is not None:
            outcome = {name: value for name, value in found.to_json().items() if name != "path"}
        rows.append({**label, **outcome})
    target = manifest.with_name(f"{manifest.stem}.sent{manifest.suffix}")
    partial = target.with_name(f"{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            if manifest.suffix.lower() == ".csv":
                writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        partial.replace(target)
    except OSError as error:
        raise DicomguardError(f"The copy of the manifest, {target}, cannot be written: {error.strerror}.") from error


def _absolute(path: Path) -> str:
    return os.path.realpath(path)
