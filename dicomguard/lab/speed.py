"""Images a second of the noise check and seconds of the guard, side by side in one run. Run by scripts/bench speed.

The rivals are the plain way to write the check: the network as it was trained (batch normalisation not folded, default
memory layout, float32), 41 or 9 copies of one image in one forward pass. Rounds alternate, so that whatever else the
machine does hits all of them alike; ratios are what counts.

The noise check is timed and counted by a calibration of its own, made here: without the guard the enrolment's would end
its looks elsewhere. `throughput` has the features too, in batches as the node forms them and in large ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from dicomguard.enrol.enrolling import plan
from dicomguard.errors import BundleError
from dicomguard.lab import command
from dicomguard.lab.datasets import Split
from dicomguard.lab.recipes import Recipe
from dicomguard.lab.survey import ordered
from dicomguard.lab.whole import write_json
from dicomguard.pixels.image import Image
from dicomguard.scoring import calibration, head, noise
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.calibration import COMPONENTS, NOISE_COMPONENTS, Calibration, Evidence
from dicomguard.scoring.consistency import noisy_copies
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Batch, Scorer

_KEY = b"speed"
_NODE_BATCH = 8  # as screen.examine forms them
_LARGE_BATCH = 512  # enough to fill a card
_CALIBRATING = 100  # images of the calibration split, each of another patient
_LEFT_OUT = "reading and decoding, preparing, the guard, judging and recording"


class Field:
    """Clean test images of one enrolled bundle, and the ways to check them.

    Raises:
        BundleError: the bundle is not enrolled, or `calibrating` are too few images for its alpha.

    """

    def __init__(
        self, folder: Path, images: Sequence[Image], calibrating: Sequence[Image], device: str = "cpu"
    ) -> None:
        bundle = Bundle(folder)
        self.scorer = Scorer.load(folder, device=device)
        if not self.scorer.is_on(device):
            raise BundleError(
                f"{self.scorer.name} was not enrolled on {device}, so that it would be timed on"
                f" {self.scorer.device.type}.",
                advice=f"Enrol a copy with 'dicomguard enrol --device {device}' and give that.",
            )
        self._eager = bundle.network.eval()
        self._mean = torch.tensor(bundle.inference.input.mean).view(1, -1, 1, 1)
        self._std = torch.tensor(bundle.inference.input.std).view(1, -1, 1, 1)
        self.images = images
        self.seeds = [noise.seeds(_KEY, str(i), 0, "", self.scorer.fingerprint) for i in range(len(images))]
        self.batch = self.scorer.prepare(images)
        self._evidence = self._look_at(calibrating)
        self.noise_alone = self._fitted(NOISE_COMPONENTS)
        self.without_guard = self._fitted([name for name in COMPONENTS if name != "guard_share"])

    def _look_at(self, images: Sequence[Image]) -> list[Evidence]:
        """Of an enrolment, what concerns the noise check and the features."""
        found: list[Evidence] = []
        for start in range(0, len(images), _NODE_BATCH):
            part = images[start : start + _NODE_BATCH]
            seeds = [
                noise.seeds(_KEY, f"calibrating {start + i}", 0, "", self.scorer.fingerprint) for i in range(len(part))
            ]
            batch = Batch(self.scorer.prepare(part).pixels)  # no planes: the guard is not asked
            found += self.scorer.look(batch, seeds, plan(self.scorer.noise)[-1], canonical=True)[0]
        return found

    def _fitted(self, used: Sequence[str]) -> Calibration:
        """A rule of these components alone: a third of the evidence is its reference."""
        if self.scorer.enrolment is None:
            raise BundleError(f"{self.scorer.name} is not enrolled.", advice="Enrol it first.")
        third = len(self._evidence) // 3
        parts = self._evidence[:third], self._evidence[third:]
        if self.scorer.feature_model is None:
            used = [name for name in used if name != "feature_distance"]
        return calibration.fit(*parts, alpha=self.scorer.enrolment.alpha, plan=plan(self.scorer.noise), used=used)

    @contextmanager
    def ruled(self, rule: Calibration) -> Iterator[None]:
        """Score by `rule` instead of the enrolment's, without the guard; without features where it has none."""
        scorer = self.scorer
        kept = scorer.enrolment, scorer.guard, scorer.feature_model
        assert scorer.enrolment is not None
        scorer.enrolment = scorer.enrolment.model_copy(update={"calibration": rule})
        scorer.guard = None
        if rule.feature_distance is None:
            scorer.feature_model = None
        try:
            yield
        finally:
            scorer.enrolment, scorer.guard, scorer.feature_model = kept

    def eager(self, draws: int) -> None:
        """One image at a time, the clean one and `draws` noisy copies in one pass of the network as trained."""
        ladder = self.scorer.noise.ladder()[:draws]
        with torch.inference_mode():
            for pixels, seed in zip(torch.split(self.batch.pixels, 1), self.seeds, strict=True):
                copies = noisy_copies(pixels, [seed.noise_check], self.scorer.noise, ladder)
                stack = torch.cat([pixels, copies]).expand(-1, self._mean.shape[1], -1, -1)
                self._eager((stack - self._mean) / self._std)

    def ours(self) -> list[int]:
        """The noise check alone, a cascade in batches like the node's; the passes that each image took."""
        with self.ruled(self.noise_alone):
            return self._passes(self.batch.pixels, self.seeds, _NODE_BATCH)

    def _passes(self, pixels: torch.Tensor, seeds: Sequence[Seeds], size: int) -> list[int]:
        found = []
        for start in range(0, len(pixels), size):
            scores = self.scorer.score(Batch(pixels[start : start + size]), seeds[start : start + size])
            found += [score.passes for score in scores]
        return found

    def forward_eager(self, copies: torch.Tensor) -> None:
        """One pass of the network as trained."""
        with torch.inference_mode():
            self._eager((copies.expand(-1, self._mean.shape[1], -1, -1) - self._mean) / self._std)

    def forward_ours(self, copies: torch.Tensor) -> None:
        """One pass on the fast path."""
        self.scorer.quick_log_odds(copies)

    def throughput(self, rounds: int, size: int) -> dict[str, Any]:
        """`score()` on batches of `size`, guard apart, beside nothing but as many forward passes of the same images.

        The rival's passes go through the network in about the scorer's own chunks, none of them short, and their copies
        lie ready.
        """
        count = max(size, len(self.batch) // size * size)
        pixels = self.batch.pixels[torch.arange(count) % len(self.batch)]
        seeds = [self.seeds[i % len(self.seeds)] for i in range(count)]
        with self.ruled(self.without_guard):
            passes = float(np.mean(self._passes(pixels, seeds, size)))
            device, chunk = self.scorer.device, self.scorer.chunk
            needed = round(passes * size)  # for each batch, so that both sides are short of work between batches
            copies = pixels[torch.arange(needed) % count].to(device)
            parts = torch.tensor_split(copies, max(round(needed / chunk), 1))

            def forward() -> None:
                for _ in range(count // size):
                    for part in parts:
                        self.scorer.quick_log_odds(part)

            taken = side_by_side({"score": lambda: self._passes(pixels, seeds, size), "forward": forward}, rounds)
        rate = count / statistics.median(taken["score"])
        plain = [seconds * passes * size / needed for seconds in taken["forward"]]
        found = {
            "batch": size,
            "images_per_second": rate,
            "passes": passes,
            "of_plain_forward": _ratio(plain, taken["score"]),
            "left_out": _LEFT_OUT,
        }
        if device.type == "cuda":
            used = rate * passes * self._operations()
            found |= {"card": torch.cuda.get_device_name(), "of_bf16_peak": used / _peak(device)}
        return found

    def _operations(self) -> int:
        """Floating-point operations of one pass, two for each multiplication with addition."""
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            self.scorer.log_odds(self.batch.pixels[:1])
        return int(counter.get_total_flops())

    def guard(self) -> list[float]:
        """Seconds of the guard for each image."""
        found = []
        odds = self.scorer.answer(self.batch.pixels).log_odds
        assert self.batch.planes is not None
        assert self.scorer.guard is not None
        for plane, row, seed in zip(self.batch.planes, odds, self.seeds, strict=True):
            started = time.perf_counter()
            self.scorer.guard.vote(plane, head.answer(row), seed.guard)
            found.append(time.perf_counter() - started)
        return found

    def whole(self, count: int) -> float:
        """Seconds from pixels to scores for `count` images, by the enrolment as it is, guard included."""
        images = [self.images[i % len(self.images)] for i in range(count)]
        seeds: list[Seeds] = [noise.seeds(_KEY, f"study {i}", 0, "", self.scorer.fingerprint) for i in range(count)]
        started = time.perf_counter()
        for start in range(0, count, _NODE_BATCH):
            end = start + _NODE_BATCH
            self.scorer.score(self.scorer.prepare(images[start:end]), seeds[start:end])
        return time.perf_counter() - started


def _peak(device: torch.device) -> float:
    """bfloat16 operations a second of a large matrix product, the most that this card does in practice."""
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for _ in range(5):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return 2 * side**3 / min(taken)


def side_by_side(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turns, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                taken[name].append(time.perf_counter() - started)
    return taken


def measure(
    folder: Path, images: Sequence[Image], calibrating: Sequence[Image], rounds: int, device: str = "cpu"
) -> dict[str, Any]:
    """All figures, as they are written; `calibrating`: clean images of other patients, for `Field`'s own rules."""
    field = Field(folder, images, calibrating, device)
    check = side_by_side(
        {"ours": field.ours, "eager 41": lambda: field.eager(40), "eager 9": lambda: field.eager(8)}, rounds
    )
    copies = torch.rand(16, *field.batch.pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    forward = side_by_side(
        {"ours": lambda: field.forward_ours(copies), "eager": lambda: field.forward_eager(copies)}, 4 * rounds
    )
    scores = field.scorer.score(field.batch, field.seeds)
    on_card = field.scorer.device.type == "cuda"
    result = {
        "bundle": field.scorer.name,
        "fingerprint": field.scorer.fingerprint,
        "enrolment": field.scorer.enrolment_sha256,
        "images": len(images),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "load": os.getloadavg()[0],
        "images_per_second": {name: len(images) / statistics.median(times) for name, times in check.items()},
        "times_as_fast_as_41": _ratio(check["eager 41"], check["ours"]),
        "times_as_fast_as_9": _ratio(check["eager 9"], check["ours"]),
        "times_as_fast_per_pass": _ratio(forward["eager"], forward["ours"]),
        "calibrating": len(calibrating),
        "batch": _NODE_BATCH,
        "mean_passes": float(np.mean(field.ours())),
        "mean_passes_whole": float(np.mean([score.passes for score in scores])),
        "throughput": [field.throughput(rounds, size) for size in (_NODE_BATCH, *[_LARGE_BATCH] * on_card)],
    }
    if field.scorer.guard is not None:
        seconds = field.guard()
        result["guard"] = {
            "eps": field.scorer.guard.settings.eps,
            "mean_s": float(np.mean(seconds)),
            "p95_s": float(np.quantile(seconds, 0.95)),
        }
    field.whole(8)
    result["one_image_s"] = statistics.median(field.whole(1) for _ in range(5))
    result["study_of_300_s"] = field.whole(300)
    return result


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median over the rounds of the ratio within a round, and its extremes."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def run(recipe: Recipe, folder: Path, given: argparse.Namespace, console: Console) -> None:
    """Time everything on some test images of a recipe, and write the results."""
    cases = ordered(recipe.cases(given.data, Split.TEST))[: given.images]
    others = {case.group: case for case in reversed(recipe.cases(given.data, Split.CALIBRATION))}
    chosen = list(others.values())[-_CALIBRATING:]  # the first ones, one of each patient
    images, calibrating = ([case.image(recipe.bits[-1]) for case in part] for part in (cases, chosen))
    found = measure(folder, images, calibrating, given.rounds, given.device)
    found["command"] = given.command
    name = f"speed-{recipe.name}"
    if given.device != "cpu":
        name += f"-{given.device.replace(':', '')}"
    write_json(given.results / f"{name}.json", found)
    console.print_json(data=found)


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench speed."""
    parser = command.parser("speed", "Time the checks side by side.")
    parser.add_argument("--images", type=int, default=48, help="clean test files, drawn by a hash of their names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; the bundle must be enrolled on it")
    return command.execute(run, command.parse(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
