"""The same examination for files on disk: what the node would decide, without network, spool or ledger."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from dicomguard.decision import Fault, InstanceDecision
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.screen.examine import Examined, Examiner, accepted
from dicomguard.screen.verdicts import Rules, instance_decision
from dicomguard.study import Instance, Receipt, Uid, utc_now

_TOGETHER = 16


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named, sorted. Links out of a folder are not followed."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        else:
            yield path


def judge_files(
    paths: Iterable[Path], worker: DecodeWorker, examiner: Examiner, rules: Rules
) -> Iterator[tuple[Path, InstanceDecision]]:
    """Each file with what the node would decide about it, in order; scored in batches across files."""
    iterator = iter(paths)
    while together := tuple(itertools.islice(iterator, _TOGETHER)):
        instances = [opened(path, worker) for path in together]
        examined = iter(examiner.examine([one for one in instances if isinstance(one, Instance)]))
        for path, one in zip(together, instances, strict=True):
            found = _unread(path, one) if isinstance(one, Fault) else next(examined)
            yield path, instance_decision(found, rules)


def opened(path: Path, worker: DecodeWorker) -> Instance | Fault:
    """A file as an instance that came from nobody, as if received now; or why the node could not read it."""
    located = worker.locate(path)
    if isinstance(located, Fault):
        return located
    offset, transfer_syntax_uid = located
    header = worker.header(path, offset, transfer_syntax_uid, [])
    if isinstance(header, Fault):
        return header
    receipt = Receipt(
        received_at=utc_now(),
        calling_ae="",
        called_ae="",
        address="",
        association_id="",
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        transfer_syntax_uid=header.transfer_syntax_uid,
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sha256=header.sha256,
        size_bytes=header.size_bytes,
    )
    return Instance(path, offset, receipt)


def _unread(path: Path, fault: Fault) -> Examined:
    nothing = Uid("")
    receipt = Receipt(
        utc_now(),
        "",
        "",
        "",
        "",
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        sha256="",
        size_bytes=path.stat().st_size,
    )
    return Examined(Instance(path, 0, receipt), accepted(fault))
