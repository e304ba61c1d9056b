"""Recorded decisions made again: screens instances with a bundle, then reproduces every decision in another process.

The second process runs with another number of threads, so that the numbers are added up in another order. Without
--files the instances are phantoms, every fourth with random values for pixels, so that some studies are held; every
fifth study has two images.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from pydicom import Dataset, dcmread
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian
from rich.progress import track

from dicomguard import phantom
from dicomguard.cli import compose
from dicomguard.config import load
from dicomguard.lab.command import line
from dicomguard.lab.promises_page import enrolled as read_enrolled
from dicomguard.lab.whole import write_json
from dicomguard.screen.screener import Screener
from dicomguard.spool.store import Settling, Spool
from dicomguard.study import Receipt, Uid, utc_now

SIDE = 256


def phantoms(studies: int) -> Iterator[Dataset]:
    for study in range(studies):
        for image in range(2 if study % 5 == 0 else 1):
            dataset = phantom.make(2 * study + image, opacity=study % 2 == 1, rows=SIDE, columns=SIDE)
            dataset.StudyInstanceUID = f"1.2.826.0.1.{study + 1}"
            if study % 4 == 3:
                values = np.random.default_rng(study).integers(0, 4096, SIDE * SIDE, dtype=np.uint16)
                dataset.PixelData = values.tobytes()
            yield dataset


def files(folder: Path, studies: int) -> Iterator[Dataset]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file())[:studies]:
        yield dcmread(path)


def receive(spool: Spool, dataset: Dataset) -> None:
    """As the receiver stores it, without the network."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    compressed = syntax != ExplicitVRLittleEndian and dataset.file_meta.TransferSyntaxUID.is_compressed
    if not compressed:
        syntax = str(ExplicitVRLittleEndian)
    buffer = io.BytesIO()
    bare = Dataset(dataset)
    dcmwrite(buffer, bare, implicit_vr=False, little_endian=True)
    sop, sop_class = str(dataset.SOPInstanceUID), str(dataset.SOPClassUID)
    part = spool.incoming(reserve_bytes=0).begin(
        sop_class_uid=sop_class, sop_instance_uid=sop, transfer_syntax_uid=syntax, calling_ae="BENCH"
    )
    part.write(buffer.getvalue())
    said = (Uid(sop_class), Uid(sop), Uid(syntax), Uid(dataset.StudyInstanceUID), Uid(dataset.SeriesInstanceUID))
    part.commit(Receipt(utc_now(), "BENCH", "DICOMGUARD", "127.0.0.1", "bench", *said, sha256="", size_bytes=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--decisions", type=int, default=1000)
    parser.add_argument("--files", type=Path, help="a folder with DICOM files instead of phantoms")
    parser.add_argument("--mode", choices=("enforce", "shadow"), default="enforce")
    parser.add_argument("--threads", type=int, default=2, help="of the second process; the first has one")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    logging.getLogger("dicomguard").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dicomguard-reproduce-") as temporary:
        path = Path(temporary) / "node.yaml"
        bundles = [{"path": str(given.bundle.resolve()), "mode": given.mode}]
        path.write_text(yaml.safe_dump({"data_dir": f"{temporary}/data", "bundles": bundles}))
        config = load(path, {})
        spool = compose.open_spool(config)
        source = files(given.files, given.decisions) if given.files else phantoms(given.decisions)
        for dataset in track(source, "receive"):
            receive(spool, dataset)
        counts, screened_s = screen(config, spool)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "dicomguard", "reproduce", "--all", "--json", "-c", str(path)],
            env=os.environ | {"OMP_NUM_THREADS": str(given.threads)},
            stdout=subprocess.PIPE,
            check=False,
            text=True,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines[:-1]:
            if line["outcome"] != "agrees":
                print(json.dumps(line))
        found = {
            **(lines[-1] if lines else {}),
            "recorded": counts,
            "screened_s": round(screened_s, 1),
            "reproduced_s": round(time.monotonic() - started, 1),
        }
        print(json.dumps(found))
        write_json(given.results / f"reproduce-{given.bundle.name}.json", {**made_with(given.bundle), **found})
    sys.exit(done.returncode)


def made_with(bundle: Path) -> dict[str, str | None]:
    """Which bundle, enrolment and command a result belongs to."""
    enrolled = read_enrolled(bundle)
    fingerprint, digest = enrolled or (None, None)
    return {"fingerprint": fingerprint, "enrolment": digest, "command": line("scripts/bench reproduce", sys.argv[1:])}


def screen(config: compose.Config, spool: Spool) -> tuple[dict[str, int], float]:
    import torch  # noqa: PLC0415 - after the arguments, which may only ask for help

    torch.set_num_threads(1)
    started = time.monotonic()
    with compose.open_ledger(config, "screen") as ledger, compose.decode_worker(config) as worker:
        examiner = compose.examiner(config, worker, compose.load_models(config))
        settling = Settling(spool, quiet_s=0.001, deadline_s=1e9)
        screener = Screener(spool, ledger, examiner, compose.rules(config), settling)
        screener.step()
        time.sleep(0.01)
        while screener.step():
            pass
        counts = Counter(f"{d.verdict.value} {d.disposition.value}" for d in ledger.decisions())
    return dict(counts), time.monotonic() - started


if __name__ == "__main__":
    main()
