"""Own attacks beside those of the Adversarial Robustness Toolbox, in one run. Run by scripts/bench attacks.

The same network, pictures, batches and settings; rounds alternate, so that whatever else the machine does hits both,
and the ratio of their medians counts. The Toolbox is never shown one logit: with one column its labels are all ones,
and FGSM flips one class only without a word. `TwoLogits` puts a zero before it. Needs the extra `eval`.

Two of its attacks are weaker for a reason. Square there often proposes the square that is there already, and the same
place and signs for all pictures of a batch. CW-L2 is given the settings with which it works at all on such networks;
its own defaults flip next to nothing.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from dicomguard.attacks.margins import Margins, from_logits
from dicomguard.attacks.pgd import FixedEps, fixed_eps_pgd
from dicomguard.errors import DicomguardError
from dicomguard.lab import command
from dicomguard.lab.attacks.apgd import AutoPGD, apgd
from dicomguard.lab.attacks.carlini import Carlini, carlini_l2
from dicomguard.lab.attacks.deepfool import deepfool
from dicomguard.lab.attacks.fixed import Fixed, fixed_eps_bim, fixed_eps_fgsm
from dicomguard.lab.attacks.found import lengths
from dicomguard.lab.attacks.square import Square, square
from dicomguard.lab.whole import write_json

ATTACKS: Final = ("FGSM", "BIM", "PGD", "DeepFool", "APGD", "CW-L2", "Square")
_LONG: Final = ("CW-L2", "Square")  # half a minute each: once, on the small network, without warming up
_QUERIES: Final = 300
_STEPS: Final = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A network and the pictures that it is attacked on: their side, the width of the network, how many, and eps."""

    name: str
    side: int
    width: int
    images: int
    eps: float


FIELDS: Final = (Field("small", 20, 8, 200, 0.045), Field("wide", 56, 24, 64, 0.1))


class TwoLogits(nn.Module):
    """One logit z as the two logits (0, z), which is the form that other libraries understand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Shape (n, C, H, W) -> (n, 2)."""
        logit: Tensor = self.network(pixels)
        return torch.cat([torch.zeros_like(logit), logit], 1)


def blobs(n: int, seed: int, side: int = 20) -> tuple[Tensor, Tensor]:
    """Noisy pictures (n, 1, side, side) in [0, 1], every other one with a bright spot, and whether it has one (n,)."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    ground = F.interpolate(torch.rand(n, 1, 5, 5, generator=generator), side, mode="bilinear")
    place = torch.randint(side // 4, side - side // 4, (n, 2), generator=generator)
    grid = torch.arange(side)
    far = (grid[None, :, None] - place[:, :1, None]) ** 2 + (grid[None, None] - place[:, 1:, None]) ** 2
    spot = torch.exp(-far / (6.0 * (side / 20) ** 2)) * label.view(-1, 1, 1) * 0.6
    pixels = 0.3 * ground + 0.1 + spot.unsqueeze(1) + 0.03 * torch.randn(n, 1, side, side, generator=generator)
    return pixels.clamp(0, 1), label


@functools.cache
def trained(side: int = 20, width: int = 8) -> nn.Module:
    """A CNN with one logit that tells `blobs` apart, trained here in seconds, the same every time."""
    with torch.random.fork_rng(), torch.inference_mode(mode=False), torch.enable_grad():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(18 * width, 1),
        )
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        for step in range(120):
            pixels, label = blobs(64, 1000 + step, side)
            loss = F.binary_cross_entropy_with_logits(network(pixels)[:, 0], label.float())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it without types
            optimiser.step()
    return network.eval().requires_grad_(requires_grad=False)


Run = Callable[[], Tensor]
"""Attacks all pictures of a field; returns the attacked ones."""


class Duel:
    """Both libraries on one field. `batch`: pictures in one forward pass, for both.

    Raises:
        DicomguardError: the Toolbox is not installed.

    """

    def __init__(self, field: Field, batch: int = 64) -> None:
        self.field = field
        self.batch = batch
        self.network = trained(field.side, field.width)
        self.pixels, _ = blobs(field.images, 5, field.side)
        self.margins: Margins = from_logits(self.logit, self.pixels, chunk=batch)
        answers = (self.logit(self.pixels) >= 0).long()
        self.before = answers
        self._array = self.pixels.numpy()
        self._labels = F.one_hot(answers, 2).numpy().astype(np.float32)
        self._classifier = _toolbox(TwoLogits(self.network), self._array.shape[1:])

    def logit(self, pixels: Tensor) -> Tensor:
        """The one logit, (n,)."""
        found: Tensor = self.network(pixels)[:, 0]
        return found

    def own(self, name: str) -> Run:
        """The attack of this package, with the settings that `theirs` has too."""
        eps, seeds, chunk = self.field.eps, range(self.field.images), self.batch
        margins, pixels = self.margins, self.pixels
        match name:
            case "FGSM":
                return lambda: fixed_eps_fgsm(margins, pixels, eps, chunk=chunk).pixels
            case "BIM":
                settings = Fixed(eps, steps=_STEPS, relative_step=0.25, last=True)
                return lambda: fixed_eps_bim(margins, pixels, [], settings, chunk=chunk).pixels
            case "PGD":
                fixed = FixedEps(eps, steps=_STEPS, relative_step=0.25)
                return lambda: fixed_eps_pgd(margins, pixels, seeds, fixed, chunk=chunk).pixels
            case "DeepFool":
                return lambda: deepfool(margins, pixels, chunk=chunk).pixels
            case "APGD":
                return lambda: apgd(margins, pixels, seeds, AutoPGD(eps, steps=30), chunk=chunk).pixels
            case "CW-L2":
                carlini = Carlini(steps=60, searches=4)
                return lambda: carlini_l2(margins, pixels, carlini, chunk=chunk).pixels
            case _:
                search = Square(1.5 * eps, _QUERIES)
                return lambda: square(margins, pixels, seeds, search, chunk=chunk).attacked.pixels

    def theirs(self, name: str) -> Run:
        """The Toolbox's, told the answers, so that it attacks those."""
        from art.attacks import evasion  # noqa: PLC0415 - an extra that only this comparison needs

        eps, batch, network = self.field.eps, self.batch, self._classifier
        step = {"eps": eps, "eps_step": eps / 4, "max_iter": _STEPS, "batch_size": batch, "verbose": False}
        made: dict[str, Callable[[], Any]] = {
            "FGSM": lambda: evasion.FastGradientMethod(network, eps=eps, batch_size=batch),
            "BIM": lambda: evasion.BasicIterativeMethod(network, **step),
            "PGD": lambda: evasion.ProjectedGradientDescentPyTorch(network, num_random_init=1, **step),
            "DeepFool": lambda: evasion.DeepFool(
                network, max_iter=50, epsilon=0.02, nb_grads=2, batch_size=batch, verbose=False
            ),
            "APGD": lambda: evasion.AutoProjectedGradientDescent(
                network,
                eps=eps,
                eps_step=2 * eps,
                max_iter=30,
                nb_random_init=1,
                batch_size=batch,
                loss_type="cross_entropy",
                verbose=False,
            ),
            "CW-L2": lambda: evasion.CarliniL2Method(
                network,
                learning_rate=0.1,
                initial_const=1.0,
                max_iter=60,
                binary_search_steps=4,
                batch_size=batch,
                verbose=False,
            ),
            "Square": lambda: evasion.SquareAttack(
                network, eps=1.5 * eps, max_iter=_QUERIES, nb_restarts=1, p_init=0.05, batch_size=batch, verbose=False
            ),
        }
        attack = made[name]()

        def run() -> Tensor:
            np.random.seed(0)  # noqa: NPY002 - the generator that the Toolbox draws from
            return torch.from_numpy(attack.generate(x=self._array, y=self._labels))

        return run

    def flipped(self, attacked: Tensor) -> Tensor:
        """Whose answer has changed, (n,) bool."""
        return (self.logit(attacked) >= 0).long() != self.before


@dataclass(frozen=True, slots=True)
class Side:
    """What one library's attack did: share flipped, median L2 of these, largest L-inf, seconds of each round."""

    flip_rate: float
    median_l2: float | None
    largest_linf: float
    seconds: tuple[float, ...]


def compare(duel: Duel, name: str, rounds: int = 1, tick: Callable[[], None] = lambda: None) -> tuple[Side, Side]:
    """One attack of both libraries, ours first; after a round for warming up where there are more."""
    runs = duel.own(name), duel.theirs(name)
    seconds: tuple[list[float], list[float]] = ([], [])
    attacked: list[Tensor] = [duel.pixels, duel.pixels]
    for number in range(rounds + (rounds > 1)):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            attacked[i] = run()
            if number or rounds == 1:
                seconds[i].append(round(time.perf_counter() - start, 4))
        tick()
    return _side(duel, attacked[0], seconds[0]), _side(duel, attacked[1], seconds[1])


def _side(duel: Duel, attacked: Tensor, seconds: Sequence[float]) -> Side:
    flipped = duel.flipped(attacked)
    change = attacked - duel.pixels
    return Side(
        flip_rate=round(float(flipped.float().mean()), 4),
        median_l2=round(float(lengths(change)[flipped].median()), 5) if flipped.any() else None,
        largest_linf=round(float(change.abs().max()), 5),
        seconds=tuple(seconds),
    )


def _toolbox(network: nn.Module, shape: tuple[int, ...]) -> Any:
    try:
        from art.estimators.classification import PyTorchClassifier  # noqa: PLC0415 - an extra that only this needs
    except ImportError as error:
        raise DicomguardError(
            "The Adversarial Robustness Toolbox, the other side of this comparison, is not installed.",
            advice="pip install 'dicomguard[eval]', or run scripts/setup.",
        ) from error
    return PyTorchClassifier(
        network, nn.CrossEntropyLoss(), shape, nb_classes=2, clip_values=(0.0, 1.0), device_type="cpu"
    )


def _run(given: argparse.Namespace, console: Console) -> None:
    torch.set_num_threads(given.threads)
    found: dict[str, dict[str, Any]] = {}
    table = Table("network", "attack", "flipped", "Toolbox", "L2", "Toolbox", "seconds", "Toolbox", "times as fast")
    with Progress(console=console) as progress:
        task = progress.add_task("attacks", total=None)
        for field in FIELDS:
            duel = Duel(field)
            rows: dict[str, dict[str, Any]] = {}
            for name in ATTACKS:
                if name in _LONG and field != FIELDS[0]:
                    continue
                rounds = 1 if name in _LONG else given.rounds
                progress.update(task, description=f"{name} on {field.name}")
                own, theirs = compare(duel, name, rounds, lambda: progress.advance(task))
                times = [statistics.median(side.seconds) for side in (own, theirs)]
                ratio = round(times[1] / times[0], 2)
                rows[name] = {"own": asdict(own), "toolbox": asdict(theirs), "times_as_fast": ratio}
                shown = (own.flip_rate, theirs.flip_rate, own.median_l2, theirs.median_l2, *times)
                table.add_row(
                    field.name, name, *("-" if value is None else f"{value:.3f}" for value in shown), f"{ratio:.1f}"
                )
            found[field.name] = {**asdict(field), "attacks": rows}
    console.print(table)
    result = {
        "what": "own attacks beside the Adversarial Robustness Toolbox: same network, pictures, batches and settings",
        "command": given.command,
        "rounds": {"of each": given.rounds, "of long ones": 1},
        "threads": given.threads,
        "processors": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "adversarial-robustness-toolbox")},
        },
        "fields": found,
    }
    write_json(given.results / "attacks-oracle.json", result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a table and write docs/results/attacks-oracle.json; 1 where the Toolbox is missing."""
    made = argparse.ArgumentParser(prog="scripts/bench attacks", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--results", type=Path, default=Path("docs/results"))
    given = command.parse(made, arguments)
    console = Console()
    try:
        _run(given, console)
    except DicomguardError as error:
        console.print(str(error), style="red", markup=False)  # the name of an extra stands in square brackets
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
