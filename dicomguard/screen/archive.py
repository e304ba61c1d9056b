"""A zip file that is the same for the same contents, and is read without trusting it.

Stored, not compressed: then no other version of a compressor gives other bytes, and no file is larger unpacked than it
is. Every file stands in `manifest.json` with its SHA-256; nothing is ever written under a name from the archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dicomguard.errors import DicomguardError

MANIFEST: Final = "manifest.json"
FORMAT: Final = "dicomguard evidence 1"
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows: when it was packed says nothing
_TEXT_MAX_BYTES: Final = 256 * 2**20
_FILES_MAX: Final = 200_000
_DEPTH_MAX: Final = 40  # what is written here is six deep; whatever walks through it later can rely on this
_CHUNK_BYTES: Final = 2**20
# What the zip module raises on a file that was damaged, or made by hand.
_DAMAGED: Final = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)
_ASK_AGAIN: Final = "Ask whoever sent it for another copy; compare its SHA-256 with what 'evidence export' printed."


class EvidenceError(DicomguardError):
    """An archive of evidence that cannot be written, or not be believed."""


def write(
    path: Path, about: Mapping[str, Any], files: Mapping[str, bytes | Path], record: Callable[[str], None]
) -> str:
    """Write the archive and its manifest, durably and all at once; returns its SHA-256. Readable by this user only.

    `about` is what the manifest says beside the list of files. `record` is called with the SHA-256 before there is a
    file at `path`; what it raises passes. Raises EvidenceError; then, too, there is no file at `path`.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            if os.path.lexists(path):
                raise FileExistsError(path)
            _pack(part, about, files)
            digest = _digest(part)
            record(digest)
            os.link(part, path)  # unlike a rename, never over a file that is there
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError as error:
        raise EvidenceError(f"{path} exists already.", advice="Name a new file with --out.") from error
    except OSError as error:
        raise EvidenceError(
            f"{path} cannot be written: {error.strerror}.",
            advice="Check the folder, its permissions and its space; an instance may have moved: say it again.",
        ) from error
    return digest


def _pack(part: Path, about: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> None:
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w+b") as file:
        listed = {}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in sorted(files.items()):
                listed[name] = _add(archive, name, content)
            manifest = {"format": FORMAT, **about, "files": listed}
            _add(archive, MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        file.flush()
        os.fsync(file.fileno())


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    info = zipfile.ZipInfo(name, _NO_TIME)
    info.create_system = 3  # Unix, on whatever it is packed: the byte stands in the file
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    with archive.open(info, "w", force_zip64=True) as target:
        if isinstance(content, bytes):
            chunks = iter([content])
        else:
            source = content.open("rb")
            chunks = iter(lambda: source.read(_CHUNK_BYTES), b"")
        try:
            for chunk in chunks:
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        finally:
            if not isinstance(content, bytes):
                source.close()
    return {"sha256": digest.hexdigest(), "size_bytes": size}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Archive:
    """An archive that is being read; a context manager. Opening it checks its form, reading a file its SHA-256."""

    def __init__(self, path: Path) -> None:
        """Raises EvidenceError."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise EvidenceError(f"{path} cannot be opened: {error.strerror}.") from error
        except _DAMAGED as error:
            raise EvidenceError(f"{path} is no zip file, or is cut off.", advice=_ASK_AGAIN) from error
        try:
            self._sizes = self._check_names(self._zip.infolist())
            self.manifest = self._read_manifest()
        except EvidenceError:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    @property
    def names(self) -> Sequence[str]:
        """The files that the manifest lists, sorted."""
        return sorted(self.manifest["files"])

    def json(self, name: str) -> Any:
        """The JSON in a file, nested as deeply as such a file can be. Raises EvidenceError."""
        try:
            return _parsed(self._content(name))
        except (ValueError, RecursionError) as error:
            raise self._broken(name, "is no JSON that can be read") from error

    def check(self) -> None:
        """Read every file once, against the manifest. Raises EvidenceError naming the first that is not as listed."""
        for name in self.names:
            self._copy(name, None)

    def extract(self, name: str, target: Path) -> None:
        """Copy one file to `target`, a name of the caller's. Raises EvidenceError."""
        self._copy(name, target)

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = _parsed(self._raw(MANIFEST))
            form, files = manifest["format"], manifest["files"]
            is_sound = all(isinstance(f["sha256"], str) and isinstance(f["size_bytes"], int) for f in files.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._broken(MANIFEST, "is missing or damaged") from error
        if form != FORMAT or not is_sound:
            raise EvidenceError(
                f"{self.path} is not of the form '{FORMAT}'.", advice="Use the version of dicomguard that wrote it."
            )
        strangers = {*self._sizes} - {*files, MANIFEST}
        missing = {*files} - {*self._sizes}
        if strangers or missing:
            raise self._broken(min(strangers | missing), "stands in the archive or in its manifest, not in both")
        return dict(manifest)

    def _check_names(self, infos: Sequence[zipfile.ZipInfo]) -> dict[str, int]:
        """Nothing is written under these names; a name that would lead out of a folder says who packed the file."""
        sizes: dict[str, int] = {}
        for info in infos:
            parts = info.filename.split("/")
            if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in info.filename:
                raise EvidenceError(
                    f"{self.path} holds a name that leads out of its folder.",
                    advice="Nothing was unpacked. 'evidence export' writes no such file: find out who did.",
                )
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise EvidenceError(
                    f"{self.path} was packed again (compressed or encrypted).",
                    advice="Use the file as 'evidence export' wrote it.",
                )
            if info.filename in sizes or len(sizes) >= _FILES_MAX:
                raise EvidenceError(f"{self.path} holds one name twice, or too many files.", advice=_ASK_AGAIN)
            sizes[info.filename] = info.file_size
        if sum(sizes.values()) > self.path.stat().st_size:
            raise EvidenceError(f"{self.path} holds files that lie over one another.", advice=_ASK_AGAIN)
        return sizes

    def _content(self, name: str) -> bytes:
        content = self._raw(name)
        listed = self.manifest["files"].get(name, {})
        if hashlib.sha256(content).hexdigest() != listed.get("sha256"):
            raise self._broken(name, "is not what the manifest lists")
        return content

    def _raw(self, name: str) -> bytes:
        if self._sizes.get(name, 0) > _TEXT_MAX_BYTES:
            raise self._broken(name, "is larger than such a file can be")
        try:
            return self._zip.read(name)
        except (OSError, *_DAMAGED) as error:
            raise self._broken(name, "is missing or damaged") from error

    def _copy(self, name: str, target: Path | None) -> None:
        digest = hashlib.sha256()
        try:
            with self._zip.open(name) as source, (target or Path(os.devnull)).open("wb") as file:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        except OSError as error:
            raise EvidenceError(f"{name} of {self.path} cannot be unpacked: {error.strerror}.") from error
        except _DAMAGED as error:
            raise self._broken(name, "is missing or damaged") from error
        listed = self.manifest["files"].get(name, {})
        if digest.hexdigest() != listed.get("sha256"):
            raise self._broken(name, "is not what the manifest lists")

    def _broken(self, name: str, what: str) -> EvidenceError:
        return EvidenceError(f"In {self.path}, {name[:80]!r} {what}.", advice=_ASK_AGAIN)


def _parsed(content: bytes) -> Any:
    """Raises ValueError, or RecursionError, for what no part of this package would have written."""
    value = json.loads(content)
    level = [value]
    for _ in range(_DEPTH_MAX):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
