"""A real spool, ledger and sandbox; only the model is a stand-in, whose answer is written into the first pixel."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydicom.filewriter import dcmwrite

from dicomguard import phantom
from dicomguard.decision import Policy, Score, Thresholds
from dicomguard.ledger import Ledger
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.scoring.scorer import Batch
from dicomguard.screen.examine import Examiner
from dicomguard.screen.protected import Protected
from dicomguard.screen.screener import Screener
from dicomguard.screen.verdicts import Rules
from dicomguard.spool.store import Settling, Spool
from dicomguard.study import Receipt, Uid, utc_now

CLEAN, SUSPECT, LOW_MARGIN, NAN, RAISES = 0, 512, 1024, 2048, 4095
EXPLICIT = "1.2.840.10008.1.2.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
THRESHOLDS = Thresholds(statistic=3.0, alpha=0.05, margin_floor=0.5, paper_theta=(0.1, 0.2), paper_level=1)


class StandInScorer:
    """Reads its answer from the image: the first pixel says what the model is to find."""

    name = "stand-in"
    fingerprint = "f" * 64
    labels = ("normal", "opacity")
    thresholds = THRESHOLDS
    noise = SimpleNamespace(levels=(0.01, 0.03))
    enrolment = None
    enrolment_sha256 = "e" * 64

    def prepare(self, images):
        return Batch(torch.stack([torch.from_numpy(image.pixels.astype(np.float32)) for image in images]))

    def score(self, batch, seeds):
        assert len(batch) == len(seeds)
        return [self._one(round(float(image[0, 0, 0]) * 4095)) for image in batch.pixels]

    def saliency(self, pixels):
        return np.ones((len(pixels), *pixels.shape[-2:]), np.float32)

    def _one(self, code):
        if code == RAISES:
            raise RuntimeError("the model cannot do this one")
        found = Score("normal", 0.97, 3.5, (0.01, 0.03), (0.0, 0.01), (0.1, 0.2), 3.0, 1.0)
        changes = {SUSPECT: {"statistic": 9.0}, LOW_MARGIN: {"margin": 0.1}, NAN: {"statistic": float("nan")}}
        return replace(found, **changes.get(code, {}))


@pytest.fixture(scope="session")
def worker():
    with DecodeWorker() as opened:
        yield opened


class Site:
    """A node's insides on a temporary folder, driven step by step."""

    def __init__(self, folder, worker):
        self.spool = Spool(folder / "spool")
        self.spool.create()
        self.folder = folder
        self.worker = worker
        self.now_s = 0.0
        self.scorer = StandInScorer()
        self.mode = "enforce"
        self.match = {"Modality": ["DX"]}
        self.policy = Policy()
        self.ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}", b"k" * 32, "screen", heads=folder / "heads")

    def screener(self):
        models = [Protected(self.scorer, self.match, self.mode)]
        rules = Rules(self.policy, self.mode, ("ai",), lambda patient_id: f"hash-of-{len(patient_id)}")
        settling = Settling(self.spool, quiet_s=10, deadline_s=100)
        examiner = Examiner(self.worker, models, b"n" * 32)
        return Screener(self.spool, self.ledger, examiner, rules, settling, monotonic=lambda: self.now_s)

    def screen(self, screener=None):
        """Let everything that has arrived fall quiet, and screen it."""
        screener = screener or self.screener()
        screener.step()
        self.now_s += 11
        while screener.step():
            pass
        return screener

    def decisions(self):
        return list(self.ledger.decisions())

    def put(self, data, sop, study, *, series="", fault="", sop_class=DX, syntax=EXPLICIT):
        part = self.spool.incoming(reserve_bytes=0).begin(
            sop_class_uid=sop_class,
            sop_instance_uid=sop,
            transfer_syntax_uid=syntax,
            calling_ae="CR1",
        )
        part.write(data)
        return part.commit(
            Receipt(
                received_at=utc_now(),
                calling_ae="CR1",
                called_ae="DICOMGUARD",
                address="127.0.0.1",
                association_id="a1",
                sop_class_uid=Uid(sop_class),
                sop_instance_uid=Uid(sop),
                transfer_syntax_uid=Uid(syntax),
                study_instance_uid=Uid(study),
                series_instance_uid=Uid(series or f"{study}.1"),
                sha256="",
                size_bytes=0,
                fault=fault,
            )
        )

    def send(self, code=CLEAN, seed=1, *, study=None, **changes):
        """Receive a phantom whose first pixel tells the stand-in what to find."""
        dataset = phantom.make(seed, opacity=False, rows=64, columns=64)
        pixels = bytearray(dataset.PixelData)
        pixels[:2] = code.to_bytes(2, "little")
        dataset.PixelData = bytes(pixels)
        if study is not None:
            dataset.StudyInstanceUID = study
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        uids = (str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID))
        return self.put(encode(dataset), *uids, series=str(dataset.SeriesInstanceUID))


def encode(dataset):
    """The data set as it comes over the wire in Explicit VR Little Endian."""
    buffer = io.BytesIO()
    meta = dataset.file_meta
    del dataset.file_meta
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    dataset.file_meta = meta
    return buffer.getvalue()


@pytest.fixture
def site(tmp_path, worker):
    made = Site(tmp_path, worker)
    yield made
    made.ledger.close()
