"""Commands about protected models: import one's own, look at one."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import console, print_json


class HeadKind(StrEnum):
    """As `scoring.head.HeadKind`, which would load the network library for a help text."""

    SOFTMAX = "softmax"
    MULTILABEL = "multilabel"


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    bundle = typer.Typer(no_args_is_help=True, help="Protected models: import, show.")
    bundle.command("import")(bundle_import)
    bundle.command("show")(bundle_show)
    app.add_typer(bundle, name="bundle")


def bundle_import(
    weights: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help=".pt, .pth or .safetensors: a state dict.")
    ],
    network: Annotated[str, typer.Option("--network", help="Such as torchvision.models.densenet121.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the bundle to; must not exist.")],
    name: Annotated[str, typer.Option("--name", help="What decisions will call it.")],
    labels: Annotated[str, typer.Option("--labels", help="In the order of the outputs: normal,pneumonia.")],
    size: Annotated[str, typer.Option("--size", help="Rows x columns that the network takes.")] = "224x224",
    mean: Annotated[str, typer.Option("--mean", help="Of the unit range, one number for each input plane.")] = (
        "0.485,0.456,0.406"
    ),
    std: Annotated[str, typer.Option("--std", help="Likewise.")] = "0.229,0.224,0.225",
    args: Annotated[str, typer.Option("--args", help="JSON: the network's constructor arguments.")] = "{}",
    planes: Annotated[int, typer.Option("--planes", help="1: fed one gray plane, replicated; 3: colour.")] = 1,
    head: Annotated[
        HeadKind, typer.Option("--head", help="softmax: the labels exclude each other; multilabel: each stands alone.")
    ] = HeadKind.SOFTMAX,
    as_json: JsonOption = False,
) -> None:
    """Turn a state dict into a bundle: offline, in an isolated process, to safetensors. Nothing in the file is run."""
    from dicomguard.scoring.importer import import_bundle

    classes = tuple(label.strip() for label in labels.split(","))
    rows, _, columns = size.partition("x")
    if not rows.isdigit() or not columns.isdigit():
        raise typer.BadParameter("write a size such as 224x224", param_hint="--size")
    try:
        arguments = json.loads(args)
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint="--args") from error
    described = import_bundle(
        weights,
        out,
        name=name,
        network=network,
        network_args=arguments,
        labels=classes,
        head="multilabel" if head is HeadKind.MULTILABEL else "softmax",
        image_size=(int(rows), int(columns)),
        mean=_numbers(mean, "--mean"),
        std=_numbers(std, "--std"),
        planes=planes,
    )
    _print(described, as_json=as_json)
    if not as_json:
        console.print("It is not enrolled yet: 'dicomguard enrol' on clean studies of this site.")


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter("write numbers separated by commas", param_hint=option) from error


def bundle_show(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The bundle's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Load a bundle as strictly as the node does, and describe it."""
    from dicomguard.scoring.bundle import describe

    _print(describe(bundle), as_json=as_json)


def _print(described: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json([described])
        return
    for key, value in described.items():
        console.print(f"{key:>16}  {json.dumps(value) if isinstance(value, dict | list) else value}", markup=False)
