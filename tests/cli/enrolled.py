"""A small bundle with everything that an enrolment can hold, made in seconds; its promises are worth nothing."""

import tempfile
from pathlib import Path

import torch

from dicomguard import phantom
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.scoring import calibration, enrolment, features, noise
from dicomguard.scoring.calibration import COMPONENTS
from dicomguard.scoring.guard import Guard, GuardNetwork, GuardSettings, output_count
from dicomguard.scoring.scorer import Scorer
from dicomguard.scoring.study_test import StudyCalibration
from tests.scoring.small import write_small


def write_enrolled(folder, out=None, *, seed=0, images=180, alpha=0.1, first_image=0):
    """The bundle's folder; its enrolment goes to `out`, by default into it."""
    write_small(folder, seed=seed, levels=[0.01, 0.03, 0.05], repeats=2)
    enrol(folder, out or folder / "enrolment", images=images, alpha=alpha, first_image=first_image)
    return folder


def enrol(folder, out, *, images=180, alpha=0.1, first_image=0):
    """Enrol a bundle on phantoms, with a guard that was never taught and asks for next to nothing."""
    scorer = Scorer.load(folder, None)
    torch.manual_seed(first_image)
    network = GuardNetwork(output_count(scorer.head), 4).eval()
    settings = GuardSettings(sigma=1.0, eps=0.0001, alpha=1e-3, looks=(16, 32), width=4)
    tensors = {f"guard.{name}": t for name, t in network.state_dict().items() if t.is_floating_point()}
    scorer.guard = Guard.from_tensors(settings, tensors, scorer.head, scorer.device)
    pictures = _phantoms(first_image, images)
    batch = scorer.prepare(pictures)
    third = images // 3
    answered = scorer.answer(batch.pixels[:third])
    scorer.feature_model = features.fit(answered.features, answered.log_odds.argmax(-1), scorer.head.classes)
    seeds = [noise.seeds(b"k" * 32, str(n), 0, "", scorer.fingerprint) for n in range(images)]
    ladder = scorer.noise.ladder(1)
    evidence, _ = scorer.look(batch, seeds, ladder)
    reference, held_back = evidence[third : 2 * third], evidence[2 * third :]
    used = [name for name in COMPONENTS if name != "feature_distance" or scorer.feature_model is not None]
    fitted = calibration.fit(reference, held_back, alpha=alpha, plan=[ladder[::2], ladder], used=tuple(used))
    scores = [fitted.statistic_of(one)[0] for one in held_back]
    facts = {
        "bundle": scorer.name,
        "fingerprint": scorer.fingerprint,
        "created": "2026-11-21",
        "clean_set": {
            "source": "phantoms",
            "sha256": "0" * 64,
            **dict.fromkeys(("images", "patients"), images),
            **dict.fromkeys(("distilled", "validation"), 0),
            **dict.fromkeys(("reference", "held_back"), third),
        },
        "alpha": alpha,
        "calibration": fitted,
        "paper": {"theta": [0.1] * len(scorer.noise.levels), "level": 1, "images": third},
        "tolerance": {"statistic": 0.02},
        "guard": settings,
        "self_test": (),
        "armed": "enforce",
        "refusal": "",
        "certified": (),
        "studies": StudyCalibration.fit([[score] for score in scores], alpha=alpha, bands=((1, 1), (2, 15))),
    }
    found = {} if scorer.feature_model is None else scorer.feature_model.tensors()
    return enrolment.write(out, facts, tensors | found)


def _phantoms(first, count):
    """As the sandbox reads them, with all that the checks look at."""
    found = []
    with tempfile.TemporaryDirectory() as folder, DecodeWorker() as worker:
        for number in range(first, first + count):
            path = Path(folder) / "phantom.dcm"
            phantom.make(number, opacity=False, rows=64, columns=64).save_as(path, enforce_file_format=True)
            offset, syntax = worker.locate(path)
            found += worker.frames(path, offset, syntax, start=0, count=1)
    return found
