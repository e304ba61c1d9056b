"""Sets of forged studies: clean files attacked with a bundle as it stands, written as DICOM that the node will take.

Every file is written under another name, read back in the sandbox and answered by the bundle before it counts: an
attack that died in rounding is in the manifest, as not flipped. What was made is remembered file by file, so that the
same command goes on where it was stopped; the manifest is replaced in one step at the end.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.forge import forge
from dicomguard.attacks.native import native_margins
from dicomguard.attacks.rounded import rounded
from dicomguard.attacks.suite import Attack
from dicomguard.errors import DicomguardError
from dicomguard.lab import whole
from dicomguard.lab.live import manifest
from dicomguard.lab.live.attacks import SOURCES, folder_of, settings_of
from dicomguard.lab.live.identity import Identity, mark_as_copy, refer_to_source
from dicomguard.lab.live.manifest import Row
from dicomguard.lab.live.sources import Refused, Source, Sources, Tick, opened
from dicomguard.lab.measure import Journal, name_of, source_digest
from dicomguard.pixels.image import Image
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.scoring import head
from dicomguard.scoring.scorer import Scorer

_log = logging.getLogger(__name__)

FILES: Final = "dicom"
_SET: Final = "set.json"
_JOURNAL: Final = "made.jsonl"
_CLEAN: Final = "clean"
_FRAMES: Final = 8  # attacked together
_PIXELS: Final = 1 << 24  # of all of them: an attack holds several copies of each
# What pydicom raises over elements that it cannot read or write again.
_UNWRITABLE: Final = (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, RuntimeError, IndexError)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to forge. `attacks`: name -> attack. `limit`: at most so many studies of the clean ones."""

    attacks: Mapping[str, Attack]
    seed: int = 0
    limit: int | None = None
    with_clean: bool = False
    keep_failed: bool = False


@dataclass(frozen=True, slots=True)
class Forged:
    """What came of it. `rows`: all of the set, of earlier commands too. `refused`: what nothing was forged from."""

    manifest: Path
    rows: Sequence[Row]
    refused: Sequence[Refused]


@dataclass(slots=True)
class _Making:
    """One file on its way: the data set so far, and by frame whether the attacked pixels had another answer."""

    source: Source
    dataset: Dataset
    clean: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)


class Forge:
    """One bundle, one folder. The folder belongs to one set: a bundle, a seed, and what is kept."""

    def __init__(self, scorer: Scorer, worker: DecodeWorker, out: Path, wishes: Wishes, tick: Tick) -> None:
        self._scorer = scorer
        self._worker = worker
        self._out = out
        self._wishes = wishes
        self._tick = tick
        self._refused: list[Refused] = []
        self._rows: dict[str, Row] = {}
        self._facts = {
            "bundle": scorer.name,
            "fingerprint": scorer.fingerprint,
            "seed": wishes.seed,
            "keep_failed": wishes.keep_failed,
            "attacks_sha256": source_digest(*SOURCES),
        }
        self._name = name_of(self._facts)
        self._journal = self._opened()

    def _opened(self) -> Journal:
        """What this set has already. Raises DicomguardError where the folder holds something else."""
        path, facts = self._out / _SET, self._facts
        try:
            known = json.loads(path.read_text("utf-8")) if path.exists() else None
            strange = known is None and self._out.is_dir() and any(self._out.iterdir())
        except (OSError, ValueError) as error:
            raise DicomguardError(f"{path} cannot be read.", advice="Choose another --out.") from error
        if strange:
            raise DicomguardError(
                f"{self._out} holds something that is no forged set.", advice="Choose an empty folder."
            )
        if known is not None and known != facts:
            changed = ", ".join(sorted(name for name, value in facts.items() if known.get(name) != value))
            raise DicomguardError(
                f"{self._out} holds another forged set; this one differs in {changed}.", advice="Choose another --out."
            )
        try:
            return Journal(self._out / _JOURNAL, self._name)
        except OSError as error:
            raise whole.not_written(self._out, error) from error

    def make(self, sources: Sources) -> Forged:
        """Forge all that is not there yet, then replace the manifest. Raises DicomguardError when nothing came of it.

        What cannot be forged (no way back from pixels to stored values, an element that cannot be written) is refused
        file by file.
        """
        whole.write_json(self._out / _SET, self._facts)
        chosen = sources.first(self._wishes.limit)
        studies = {uid: [source.header for source in study] for uid, study in sources.studies.items()}
        # Clean ones first, then attack by attack and study by study: replay sends in this order.
        for kind in ([_CLEAN] if self._wishes.with_clean else []) + list(self._wishes.attacks):
            names = {uid: Identity(f"{self._name}/{kind}", headers) for uid, headers in studies.items()}
            done = 0
            for group in _groups(chosen):
                self._take(kind, group, names)
                done += len(group)
                self._tick(kind, done, len(chosen))
        path = self._out / manifest.NAME
        before = {_key_of(row): row for row in manifest.read(path)} if path.exists() else {}
        rows = list((before | self._rows).values())
        if not rows:
            raise DicomguardError(
                f"Nothing could be forged. The first of {len(self._refused)}: {self._refused[0].path.name},"
                f" {self._refused[0].why}",
                advice="Use grayscale images with a linear window or none, or RGB images.",
            )
        manifest.write(path, rows)
        return Forged(path, rows, [*sources.refused, *_once(self._refused)])

    def _take(self, kind: str, group: Sequence[Source], names: Mapping[str, Identity]) -> None:
        """Everything of one group that is not made yet; what one file's trouble is must not become the others'."""
        todo = []
        for source in group:
            row = self._made(kind, source)
            if row is None:
                todo.append(source)
            else:
                self._rows[_key_of(row)] = row
        if not todo:
            return
        try:
            self._make(kind, todo, names)
        except (DicomguardError, *_UNWRITABLE) as error:
            if isinstance(error, DicomguardError) and isinstance(error.__cause__, OSError):
                raise  # the disk's trouble is everybody's
            if len(todo) > 1:
                for source in todo:
                    self._take(kind, [source], names)
                return
            # The text of pydicom's errors may quote the data set.
            why = error.message if isinstance(error, DicomguardError) else f"{type(error).__name__} in its header"
            _log.debug("Refused %s.", todo[0].path, exc_info=True)
            self._refused.append(Refused(todo[0].path, why))

    def _made(self, kind: str, source: Source) -> Row | None:
        key = _key(kind, source)
        if key not in self._journal:
            return None
        row = Row.from_json(self._journal[key]["row"])
        return row if row.path is None or self._is_whole(self._out / row.path, row) else None

    def _is_whole(self, path: Path, row: Row) -> bool:
        """Whether a file of the set is still what was written: a full disk or a copy may have cut it short."""
        try:
            return path.is_file() and opened(path, self._worker).header.sha256 == row.sha256
        except DicomguardError:
            return False

    def _make(self, kind: str, group: Sequence[Source], names: Mapping[str, Identity]) -> None:
        for making in self._copied(group) if kind == _CLEAN else self._attacked(kind, group):
            identity = names[making.source.header.study_instance_uid]
            row = self._stored(kind, making, identity)
            try:
                self._journal.put(_key(kind, making.source), {"row": row.to_json()})
            except OSError as error:
                raise whole.not_written(self._out / _JOURNAL, error) from error
            self._rows[_key_of(row)] = row

    # Making ----------------------------------------------------------------------------------------------------------

    def _copied(self, group: Sequence[Source]) -> Iterator[_Making]:
        for source in group:
            dataset = _read(source.path)
            mark_as_copy(dataset, "Clean test object of dicomguard: a copy under new UIDs, pixels unchanged")
            yield _Making(source, dataset)

    def _attacked(self, name: str, group: Sequence[Source]) -> Iterator[_Making]:
        making = [_Making(source, _read(source.path)) for source in group]
        for part in self._parts(making):
            images = [image for _, image in part]
            found = self._attack(name, part)
            words = f"{name}, adversarial test object"
            looked = zip(part, self._answers(images), self._answers_to(found.pixels), strict=True)
            for place, ((one, image), clean, before) in enumerate(looked):
                pixels = found.pixels[place].numpy()
                one.dataset = forge(one.dataset, image, pixels, description=words)
                one.clean.append(clean)
                one.before.append(before)
                one.strengths.append(float(found.strength[place]))
        for one in making:
            # `forge` derives each frame from what it was given; all of them came from the source.
            one.dataset.SOPInstanceUID = UID(one.source.header.sop_instance_uid)
            yield one

    def _parts(self, making: Sequence[_Making]) -> Iterator[list[tuple[_Making, Image]]]:
        """Frames of one shape, in order, as many as are attacked together. Raises where there is no way back."""
        part: list[tuple[_Making, Image]] = []
        for one in making:
            for start in range(0, one.source.header.frames, _FRAMES):
                for image in one.source.images(self._worker, start, _FRAMES):
                    rounded(image, image.pixels)  # before minutes are spent on what cannot be stored
                    if part and not _fits(part, image):
                        yield part
                        part = []
                    part.append((one, image))
        if part:
            yield part

    def _attack(self, name: str, part: Sequence[tuple[_Making, Image]]) -> Attacked:
        pixels = torch.from_numpy(np.stack([image.pixels for _, image in part]))
        seeds = [self._seed(name, one.source, image.frame) for one, image in part]
        return self._wishes.attacks[name](native_margins(self._scorer, pixels), pixels, seeds)

    def _seed(self, name: str, source: Source, frame: int) -> int:
        text = f"{self._wishes.seed}/{name}/{source.header.sop_instance_uid}/{frame}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def _answers(self, images: Sequence[Image]) -> list[str]:
        return self._named(self._scorer.prepare(images).pixels)

    def _answers_to(self, pixels: torch.Tensor) -> list[str]:
        with torch.inference_mode():
            return self._named(torch.stack([self._scorer.preprocess(one) for one in pixels]))

    def _named(self, prepared: torch.Tensor) -> list[str]:
        return [self._scorer.head.name(head.answer(odds)) for odds in self._scorer.answer(prepared).log_odds]

    # Storing ---------------------------------------------------------------------------------------------------------

    def _stored(self, kind: str, making: _Making, identity: Identity) -> Row:
        """Write the file, read it back as the node will, and keep it if it is to be sent."""
        source, dataset = making.source, making.dataset
        identity.give(dataset)
        if kind != _CLEAN:
            refer_to_source(dataset, source.header)
        uid = str(dataset.SOPInstanceUID)
        folder = self._out / FILES / folder_of(kind) / _short(str(dataset.StudyInstanceUID))
        path = folder / f"{_short(uid)}.dcm"
        partial = self._out / f"{_short(uid)}.partial"
        try:
            dcmwrite(partial, dataset, enforce_file_format=True)
            row = self._looked_at(kind, making, partial)
            if kind == _CLEAN or row.flipped or self._wishes.keep_failed:
                folder.mkdir(parents=True, exist_ok=True)
                partial.replace(path)
                return replace(row, path=path.relative_to(self._out).as_posix())
        except OSError as error:
            raise whole.not_written(path, error) from error
        else:
            return row
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _looked_at(self, kind: str, making: _Making, path: Path) -> Row:
        source, made = making.source, opened(path, self._worker)
        clean, after, moved = making.clean, [], 0.0
        is_copy = kind == _CLEAN
        if is_copy:
            clean = []
        for start in range(0, source.header.frames, _FRAMES):
            images = made.images(self._worker, start, _FRAMES)
            after += self._answers(images)
            was = source.images(self._worker, start, _FRAMES)
            moved = max(moved, *(_distance(a.pixels, b.pixels) for a, b in zip(images, was, strict=True)))
            if is_copy:
                clean += self._answers(was)
        flipped = [a != b for a, b in zip(clean, after, strict=True)]
        if is_copy and (moved or any(flipped)):
            raise DicomguardError("its copy does not show the same pixels")
        before = making.before or clean
        hits = [n for n, flip in enumerate(flipped) if flip] or [
            n for n, (a, b) in enumerate(zip(clean, before, strict=True)) if a != b
        ]
        place = hits[0] if hits else 0
        strengths = [s for s, flip in zip(making.strengths, flipped, strict=True) if flip] if not is_copy else []
        finite = [s for s in strengths if np.isfinite(s)]
        header = made.header
        return Row(
            sop_instance_uid=header.sop_instance_uid,
            truth="clean" if is_copy else "attacked",
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            source_sop_instance_uid=source.header.sop_instance_uid,
            source_study_instance_uid=source.header.study_instance_uid,
            attack=None if is_copy else kind,
            settings={} if is_copy else settings_of(self._wishes.attacks[kind]),
            # Strengths are single precision; 0.002 must read as that.
            eps=round(max(finite), 6) if finite else None,
            moved=round(moved, 6),
            seed=self._wishes.seed,
            answer_clean=clean[place],
            answer_before_rounding=before[place],
            answer_after_rounding=after[place],
            flipped_before_rounding=any(a != b for a, b in zip(clean, before, strict=True)),
            flipped=any(flipped),
            frames=len(after),
            flipped_frames=sum(flipped),
            bundle=self._scorer.name,
            fingerprint=self._scorer.fingerprint,
            sha256=header.sha256,
        )


def _read(path: Path) -> Dataset:
    try:
        return dcmread(path, force=True)
    except OSError as error:
        raise DicomguardError(f"it cannot be read: {error.strerror}") from None


def _groups(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Consecutive files whose frames are attacked together; a file with many frames stands alone."""
    group: list[Source] = []
    frames = 0
    for source in sources:
        if group and frames + source.header.frames > _FRAMES:
            yield group
            group, frames = [], 0
        group.append(source)
        frames += source.header.frames
    if group:
        yield group


def _fits(part: Sequence[tuple[_Making, Image]], image: Image) -> bool:
    first = part[0][1].pixels
    return len(part) < _FRAMES and first.shape == image.pixels.shape and (len(part) + 1) * image.pixels.size <= _PIXELS


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max())


def _key(kind: str, source: Source) -> str:
    return f"{kind}/{source.header.sop_instance_uid}/{source.header.sha256}"


def _key_of(row: Row) -> str:
    return row.sop_instance_uid


def _short(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def _once(refused: Sequence[Refused]) -> list[Refused]:
    """One entry for each file, however many attacks it was refused for."""
    return list({item.path: item for item in refused}.values())
