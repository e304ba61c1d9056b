"""Images a second of the noise check and seconds of the guard, side by side in one run. Run by scripts/bench speed.

The rivals are the plain way to write the check: the network as it was trained (batch normalisation not folded, default
memory layout, float32), 41 or 9 copies of one image in one forward pass. Rounds alternate, so that whatever else the
machine does hits all of them alike; ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from dicomguard.lab import command
from dicomguard.lab.datasets import Split
from dicomguard.lab.recipes import Recipe
from dicomguard.pixels.image import Image
from dicomguard.scoring import noise
from dicomguard.scoring.bundle import Bundle
from dicomguard.scoring.consistency import noisy_copies
from dicomguard.scoring.noise import Seeds
from dicomguard.scoring.scorer import Batch, Scorer

_KEY = b"speed"
_CARD_IMAGES = 512  # enough to fill a card


class Field:
    """Clean test images of one bundle, and the ways to check them."""

    def __init__(self, folder: Path, images: Sequence[Image], device: str = "cpu") -> None:
        bundle = Bundle(folder)
        self.scorer = Scorer.load(folder, device=device)
        self._eager = bundle.network.eval()
        self._mean = torch.tensor(bundle.inference.input.mean).view(1, -1, 1, 1)
        self._std = torch.tensor(bundle.inference.input.std).view(1, -1, 1, 1)
        self.images = images
        self.seeds = [noise.seeds(_KEY, str(i), 0, "", self.scorer.fingerprint) for i in range(len(images))]
        self.batch = self.scorer.prepare(images)

    def eager(self, draws: int) -> None:
        """One image at a time, the clean one and `draws` noisy copies in one pass of the network as trained."""
        ladder = self.scorer.noise.ladder()[:draws]
        with torch.inference_mode():
            for pixels, seed in zip(torch.split(self.batch.pixels, 1), self.seeds, strict=True):
                copies = noisy_copies(pixels, [seed.noise_check], self.scorer.noise, ladder)
                stack = torch.cat([pixels, copies]).expand(-1, self._mean.shape[1], -1, -1)
                self._eager((stack - self._mean) / self._std)

    def ours(self) -> None:
        """The cascade as the node runs it, without the guard."""
        guard, self.scorer.guard = self.scorer.guard, None
        try:
            self.scorer.score(Batch(self.batch.pixels), self.seeds)
        finally:
            self.scorer.guard = guard

    def forward_eager(self, copies: torch.Tensor) -> None:
        """One pass of the network as trained."""
        with torch.inference_mode():
            self._eager((copies.expand(-1, self._mean.shape[1], -1, -1) - self._mean) / self._std)

    def forward_ours(self, copies: torch.Tensor) -> None:
        """One pass on the fast path."""
        self.scorer.quick_log_odds(copies)

    def throughput(self, rounds: int) -> dict[str, Any]:
        """The whole look at many images, guard apart, beside nothing but the same number of forward passes."""
        on_card = self.scorer.device.type == "cuda"
        count = _CARD_IMAGES if on_card else len(self.batch)
        pixels = self.batch.pixels[torch.arange(count) % len(self.batch)]
        seeds = [self.seeds[i % len(self.seeds)] for i in range(count)]
        draws = self.scorer.noise.ladder(2)
        passes = 1 + len(draws)
        copies = pixels.to(self.scorer.device).repeat(passes, 1, 1, 1)
        model, guard = self.scorer.feature_model, self.scorer.guard
        self.scorer.feature_model = self.scorer.guard = None
        try:
            taken = side_by_side(
                {
                    "look": lambda: self.scorer.look(Batch(pixels), seeds, draws),
                    "forward": lambda: [self.scorer.quick_log_odds(part) for part in torch.split(copies, 512)],
                },
                rounds,
            )
        finally:
            self.scorer.feature_model, self.scorer.guard = model, guard
        rate = count / statistics.median(taken["look"])
        found = {
            "images_per_second": rate,
            "passes": passes,
            "of_plain_forward": _ratio(taken["forward"], taken["look"]),
        }
        if on_card:
            used = rate * passes * self._operations()
            found |= {"card": torch.cuda.get_device_name(), "of_bf16_peak": used / _peak(self.scorer.device)}
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
            self.scorer.guard.vote(plane, tuple(int(c) for c in row.argmax(-1)), seed.guard)
            found.append(time.perf_counter() - started)
        return found

    def whole(self, count: int) -> float:
        """Seconds from pixels to scores for `count` images, guard included."""
        images = [self.images[i % len(self.images)] for i in range(count)]
        seeds: list[Seeds] = [noise.seeds(_KEY, f"study {i}", 0, "", self.scorer.fingerprint) for i in range(count)]
        started = time.perf_counter()
        for start in range(0, count, 8):
            self.scorer.score(self.scorer.prepare(images[start : start + 8]), seeds[start : start + 8])
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


def measure(folder: Path, images: Sequence[Image], rounds: int, device: str = "cpu") -> dict[str, Any]:
    """All figures, as they are written."""
    field = Field(folder, images, device)
    check = side_by_side(
        {"ours": field.ours, "eager 41": lambda: field.eager(40), "eager 9": lambda: field.eager(8)}, rounds
    )
    copies = torch.rand(16, *field.batch.pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    forward = side_by_side(
        {"ours": lambda: field.forward_ours(copies), "eager": lambda: field.forward_eager(copies)}, 4 * rounds
    )
    scores = field.scorer.score(Batch(field.batch.pixels), field.seeds)
    result = {
        "bundle": field.scorer.name,
        "images": len(images),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "load": os.getloadavg()[0],
        "images_per_second": {name: len(images) / statistics.median(times) for name, times in check.items()},
        "times_as_fast_as_41": _ratio(check["eager 41"], check["ours"]),
        "times_as_fast_as_9": _ratio(check["eager 9"], check["ours"]),
        "times_as_fast_per_pass": _ratio(forward["eager"], forward["ours"]),
        "throughput": field.throughput(rounds),
        "mean_passes": float(np.mean([score.passes for score in scores])),
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
    """Time everything on the first test images of a recipe, and write the results."""
    cases = recipe.cases(given.data, Split.TEST)[: given.images]
    found = measure(folder, [case.image(recipe.bits[-1]) for case in cases], given.rounds, given.device)
    found["command"] = f"scripts/bench speed {recipe.name}"
    name = f"speed-{recipe.name}"
    if given.device != "cpu":
        found["command"] += f" --device {given.device}"
        name += f"-{given.device.replace(':', '')}"
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print_json(data=found)


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/bench speed."""
    parser = command.parser("speed", "Time the checks side by side.")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; the bundle must be enrolled on it")
    return command.execute(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
