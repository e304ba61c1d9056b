"""From instances to findings: read each in the sandbox, choose its model, score all frames in batches.

Decides nothing, moves nothing, records nothing. Whatever goes wrong with one instance becomes that instance's fault.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from dicomguard.decision import REFUSED, Fault, Finding, Mode, Reason, Score, Scored
from dicomguard.errors import DicomguardError
from dicomguard.pixels.header import BYTES_AT_ONCE, Header
from dicomguard.pixels.image import Image
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.scoring import noise
from dicomguard.screen.protected import Protected, first_match
from dicomguard.study import Instance, Receipt

_log = logging.getLogger(__name__)

# Frames scored in one go: enough to keep the processor busy, small enough that a study of 2,000 slices needs no memory.
# Of large ones fewer, so that what is in memory of a study is bounded by BYTES_AT_ONCE, twice (read, and to be scored).
_BATCH_FRAMES = 8


class SeedMissingError(DicomguardError):
    """Noise cannot be drawn: whoever gave the seeds did not give this one. That says nothing about the instance."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found about one instance, with the model that looked (None: no model did)."""

    instance: Instance
    finding: Finding
    header: Header | None = None
    model: Protected | None = None


@dataclass(slots=True)
class _Open:
    """An instance whose frames are being scored."""

    instance: Instance
    header: Header
    model: Protected
    scores: list[Score] = field(default_factory=list)
    fault: Fault | None = None


class Examiner:
    """Reads and scores instances. `noise_key` seeds the noise; it never leaves this host."""

    def __init__(self, worker: DecodeWorker, models: Sequence[Protected], noise_key: bytes) -> None:
        self._worker = worker
        self._models = models
        self._noise_key = noise_key
        self._keywords = sorted({keyword for model in models for keyword in model.match})

    def examine(self, instances: Sequence[Instance]) -> list[Examined]:
        """One `Examined` for each instance, in the same order. Raises SeedMissingError where a scorer does."""
        done: dict[int, Examined] = {}
        opened: dict[int, _Open] = {}
        batches: dict[int, list[tuple[_Open, Image]]] = {}  # by model, since each has its own network
        for index, instance in enumerate(instances):
            start = self._start(instance)
            if isinstance(start, Examined):
                done[index] = start
                continue
            opened[index] = start
            batch = batches.setdefault(id(start.model), [])
            for image in self._frames(start):
                if sum(other.pixels.nbytes for _, other in batch) + image.pixels.nbytes > BYTES_AT_ONCE:
                    self._score(batch)
                    batch.clear()
                batch.append((start, image))
                if len(batch) >= _BATCH_FRAMES:
                    self._score(batch)
                    batch.clear()
        for batch in batches.values():
            self._score(batch)
        for index, item in opened.items():
            finding = item.fault or Scored(tuple(sorted(item.scores, key=lambda score: score.frame)))
            done[index] = Examined(item.instance, finding, item.header, item.model)
        return [done[index] for index in range(len(instances))]

    def saliency(self, examined: Examined, frame: int) -> tuple[Image, torch.Tensor, torch.Tensor] | None:
        """Image, prepared input (planes, H, W) and saliency (H, W) of one frame; None where it cannot be read."""
        instance, model = examined.instance, examined.model
        if model is None:
            return None
        read = self._worker.frames(
            instance.path, instance.data_offset, instance.receipt.transfer_syntax_uid, start=frame, count=1
        )
        if isinstance(read, Fault):
            return None
        pixels = model.scorer.prepare(read).pixels
        return read[0], pixels[0], torch.as_tensor(model.scorer.saliency(pixels))[0]

    def _start(self, instance: Instance) -> _Open | Examined:
        receipt = instance.receipt
        header = self._worker.header(
            instance.path, instance.data_offset, receipt.transfer_syntax_uid, keywords=self._keywords
        )
        if receipt.fault:
            # Refused when it came (PS3.4 table B.2-1); kept as evidence, never scored.
            return Examined(instance, Fault(Reason(receipt.fault), "refused when it was received"))
        if isinstance(header, Fault):
            return Examined(instance, accepted(header))
        if header.sha256 != receipt.sha256:
            return Examined(instance, Fault(Reason.ALTERED_IN_SPOOL, "the data set is not the one that was received"))
        if others := misnamed(header, receipt):
            # What was filed, queued and decided under these names is another instance for whoever reads all of it.
            detail = (
                f"read as a whole, the data set has another {' and '.join(others)} than its head, where it was filed"
            )
            return Examined(instance, Fault(Reason.IDENTITY_MISMATCH, detail), header)
        if not header.is_image:
            return Examined(instance, Fault(Reason.NON_IMAGE), header)
        model = first_match(self._models, header.attributes)
        if model is None:
            return Examined(instance, Fault(Reason.UNMATCHED), header)
        return _Open(instance, header, model)

    def _frames(self, item: _Open) -> Iterator[Image]:
        """All frames of an image, or none: after a fault the instance has no scores that count."""
        for start, count in item.header.parts():
            read = self._worker.frames(
                item.instance.path,
                item.instance.data_offset,
                item.instance.receipt.transfer_syntax_uid,
                start=start,
                count=count,
            )
            if isinstance(read, Fault):
                item.fault = accepted(read)
                return
            yield from read

    def _score(self, batch: Sequence[tuple[_Open, Image]]) -> None:
        """Score frames of one model together; where that fails, each alone, so that one cannot take others along."""
        if not batch:
            return
        try:
            scores = self._scores(batch)
        except SeedMissingError:
            raise
        except Exception as error:  # noqa: BLE001  # a model may raise anything, and none of it may pass as clean
            if len(batch) > 1:
                for one in batch:
                    self._score([one])
                return
            item, image = batch[0]
            _log.exception("The model failed on %s, frame %d.", item.instance.sop_instance_uid, image.frame)
            item.fault = Fault(Reason.MODEL_FAULT, f"frame {image.frame}: {type(error).__name__}")
            return
        for (item, image), score in zip(batch, scores, strict=True):
            item.scores.append(replace(score, frame=image.frame))

    def _scores(self, batch: Sequence[tuple[_Open, Image]]) -> list[Score]:
        scorer = batch[0][0].model.scorer
        seeds = [
            noise.seeds(
                self._noise_key,
                item.instance.sop_instance_uid,
                image.frame,
                item.instance.receipt.sha256,
                scorer.fingerprint,
            )
            for item, image in batch
        ]
        return scorer.score(scorer.prepare([image for _, image in batch]), seeds)


def misnamed(header: Header, receipt: Receipt) -> list[str]:
    """The UIDs of a data set that are not those of its receipt. Neither has padding (PS3.5 section 9.1).

    The receiver walks no further than group 0020, and by other code: where the two disagree, somebody made them.
    """
    pairs = {
        "SOP Class UID": (header.sop_class_uid, receipt.sop_class_uid),
        "SOP Instance UID": (header.sop_instance_uid, receipt.sop_instance_uid),
        "Study Instance UID": (header.study_instance_uid, receipt.study_instance_uid),
        "Series Instance UID": (header.series_instance_uid, receipt.series_instance_uid),
    }
    return [name for name, (read, received) in pairs.items() if read != received]


def accepted(fault: Fault) -> Fault:
    """A fault of an instance whose sender was told Success: whatever is wrong with it, it was not refused."""
    return Fault(Reason.UNDECODABLE, fault.detail) if fault.reason in REFUSED else fault


def effective_mode(examined: Examined, node_mode: Mode) -> Mode:
    """The mode of the model that looked; of the node where none did."""
    return examined.model.mode if examined.model is not None else node_mode
