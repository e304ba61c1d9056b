"""Clean files as the node would take them in: read in the sandbox, sorted into studies, refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dicomguard.decision import Fault
from dicomguard.errors import DicomguardError
from dicomguard.pixels.header import Header
from dicomguard.pixels.image import Image
from dicomguard.pixels.sandbox import DecodeWorker

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Refused:
    """A clean file that nothing is forged from, and why."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Source:
    """One clean image file: where its data set starts, and what its header says."""

    path: Path
    data_offset: int
    header: Header

    def images(self, worker: DecodeWorker, start: int, count: int) -> list[Image]:
        """Frames `start` to `start + count` as the node sees them. Raises DicomguardError where it could not."""
        syntax = self.header.transfer_syntax_uid
        found = worker.frames(self.path, self.data_offset, syntax, start=start, count=count)
        if isinstance(found, Fault):
            raise DicomguardError(f"{found.reason.value}: {found.detail}")
        return found


@dataclass(frozen=True, slots=True)
class Sources:
    """Clean studies, in the order of their first file: Study Instance UID -> its images."""

    studies: dict[str, list[Source]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)

    def first(self, limit: int | None) -> list[Source]:
        """The images of the first so many studies, study by study."""
        return [source for study in list(self.studies.values())[:limit] for source in study]


def opened(path: Path, worker: DecodeWorker, keywords: Sequence[str] = ()) -> Source:
    """One file. Raises DicomguardError saying what the node would say of it."""
    path = path.absolute()  # the sandbox works in a folder of its own
    located = worker.locate(path)
    if isinstance(located, Fault):
        raise DicomguardError(f"{located.reason.value}: {located.detail}")
    offset, syntax = located
    header = worker.header(path, offset, syntax, list(keywords))
    if isinstance(header, Fault):
        raise DicomguardError(f"{header.reason.value}: {header.detail}")
    return Source(path, offset, header)


def find(folder: Path, worker: DecodeWorker, match: Mapping[str, Sequence[str]], tick: Tick) -> Sources:
    """Every image under `folder` that `match` (DICOM keyword -> accepted values) lets through.

    Raises:
        DicomguardError: there is none; the message says what kept the first one out.

    """
    paths = list(_files(folder))
    found = Sources()
    seen: dict[str, Path] = {}
    for done, path in enumerate(paths, 1):
        try:
            source = opened(path, worker, sorted(match))
            _check(source, match, seen)
        except DicomguardError as error:
            found.refused.append(Refused(path, error.message))
        else:
            seen[source.header.sop_instance_uid] = path
            found.studies.setdefault(source.header.study_instance_uid, []).append(source)
        tick("read clean files", done, len(paths))
    if not found.studies:
        why = f" The first one: {found.refused[0].path.name}, {found.refused[0].why}." if found.refused else ""
        raise DicomguardError(
            f"None of the {len(paths)} files in {folder} is an image that this bundle is for.{why}",
            advice="Give a folder of clean DICOM images; --match must fit them.",
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    else:
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _check(source: Source, match: Mapping[str, Sequence[str]], seen: Mapping[str, Path]) -> None:
    header = source.header
    if not header.is_image:
        raise DicomguardError("it is no image")
    if not header.sop_instance_uid or not header.study_instance_uid:
        raise DicomguardError("it has no SOP Instance UID or no Study Instance UID")
    for keyword, accepted in match.items():
        value = header.attributes.get(keyword, "")
        values = [value] if isinstance(value, str) else value
        if set(accepted).isdisjoint(values):
            raise DicomguardError(f"its {keyword} is none of {', '.join(accepted)}")
    if header.sop_instance_uid in seen:
        raise DicomguardError(f"its SOP Instance UID is that of {seen[header.sop_instance_uid].name}")
