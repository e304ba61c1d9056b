"""`dicomguard lab train`: a victim on a data set, to a bundle with its figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dicomguard.cli.compose import JsonOption
from dicomguard.cli.lab.datasets import CacheOption, DataOption
from dicomguard.cli.output import Bars, console, print_json, print_table
from dicomguard.cli.stages import stages


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command("train")(train)


def train(
    victim_name: Annotated[str, typer.Option("--victim", metavar="NAME", help="The network; a wrong name lists all.")],
    data_set: Annotated[
        str, typer.Option("--data-set", metavar="NAME|PATH", help="As 'dicomguard lab datasets' lists them, or a path.")
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The bundle's folder.")],
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="In all, if not the plan's.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="For weights, order and augmentation.")] = 0,
    weights: Annotated[
        Path | None, typer.Option("--weights", exists=True, dir_okay=False, help="A state dict to begin with.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Fetch ImageNet weights that are not here.")
    ] = True,
    harden: Annotated[
        float | None, typer.Option("--harden", metavar="EPS", min=0.0001, max=0.1, help="PGD adversarial training.")
    ] = None,
    side: Annotated[int | None, typer.Option("--side", help="Store the pictures at this many pixels.")] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Of pictures at a path: CR, CT, MR, OP, US")
    ] = None,
    cache: CacheOption = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the processor.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train a victim and write a bundle, its model card, and training.json with figures on validation and test files.

    Interrupted, it goes on where it stopped; done, it is not done again.
    """
    import torch

    from dicomguard.lab.command import line
    from dicomguard.lab.data import open_collection
    from dicomguard.lab.victims import Hardening, Options, check, victim
    from dicomguard.lab.victims import train as train_victim

    torch.set_num_threads(threads)
    chosen = victim(victim_name)
    options = Options(
        seed=seed,
        epochs=epochs,
        weights=weights,
        download=download,
        hardening=None if harden is None else Hardening(eps=harden),
        device=device,
    )
    check(chosen, out.resolve(), options)  # reading a data set takes minutes
    with Bars(quiet=as_json) as bars:
        tick = stages(bars)
        collection = open_collection(
            data_set,
            data,
            side=side,
            modality=modality,
            cache=cache,
            advance=lambda share: tick("read every picture once", share),
        )
        report = train_victim(
            chosen,
            collection,
            out,
            options,
            command=line("dicomguard", sys.argv[1:]),
            tick=tick,
        )
    if as_json:
        print_json([report])
        return
    _show(report, out)


def _show(report: dict[str, Any], out: Path) -> None:
    rows = []
    for split in ("validation", "test"):
        found = report[split]
        rows.append((split, str(found["files"]), "accuracy", *_share(found["accuracy"])))
        rows += [("", "", f"recall of {label}", *_share(one)) for label, one in found["recall"].items()]
        area = found["auc"]
        rows.append(("", "", "AUC", _number(area["value"]), _interval(area["interval"])))
    print_table(report["name"], ("split", "files", "figure", "value", "95 % interval"), rows)
    for words in report["limits"]:
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    for words in (report["weights"], report["reduction"] or "Nothing is reduced against the paper.", f"Bundle: {out}"):
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def _share(found: dict[str, Any]) -> tuple[str, str]:
    return _number(found["rate"]), _interval(found["interval"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}"
