"""Commands about protected models: import one's own, look at one, calibrate one on clean images of the site."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import Bars, console, print_json
from dicomguard.decision import Fault
from dicomguard.errors import BundleError

if TYPE_CHECKING:  # imported by the commands that need them
    from dicomguard.pixels.header import Header
    from dicomguard.pixels.image import Image
    from dicomguard.pixels.sandbox import DecodeWorker

_BATCH_FRAMES = 8


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    bundle = typer.Typer(no_args_is_help=True, help="Protected models: import, show, calibrate.")
    bundle.command("import")(bundle_import)
    bundle.command("show")(bundle_show)
    bundle.command("calibrate")(bundle_calibrate)
    app.add_typer(bundle, name="bundle")


def bundle_import(
    weights: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help=".pt, .pth or .safetensors: a state dict.")
    ],
    network: Annotated[str, typer.Option("--network", help="Such as torchvision.models.densenet121.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the bundle to; must not exist.")],
    name: Annotated[str, typer.Option("--name", help="What decisions will call it.")],
    labels: Annotated[str, typer.Option("--labels", help="Negative and positive class: normal,pneumonia.")],
    size: Annotated[str, typer.Option("--size", help="Rows x columns that the network takes.")] = "224x224",
    mean: Annotated[str, typer.Option("--mean", help="Of the unit range, one number for each input plane.")] = (
        "0.485,0.456,0.406"
    ),
    std: Annotated[str, typer.Option("--std", help="Likewise.")] = "0.229,0.224,0.225",
    args: Annotated[str, typer.Option("--args", help="JSON: the network's constructor arguments.")] = "{}",
    planes: Annotated[int, typer.Option("--planes", help="1: fed one gray plane, replicated; 3: colour.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Turn a state dict into a bundle: offline, in an isolated process, to safetensors. Nothing in the file is run."""
    from dicomguard.scoring.importer import import_bundle

    classes = tuple(label.strip() for label in labels.split(","))
    rows, _, columns = size.partition("x")
    if len(classes) != 2 or not rows.isdigit() or not columns.isdigit():
        raise typer.BadParameter("write two labels such as normal,pneumonia and a size such as 224x224")
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
        labels=(classes[0], classes[1]),
        image_size=(int(rows), int(columns)),
        mean=_numbers(mean, "--mean"),
        std=_numbers(std, "--std"),
        planes=planes,
    )
    _print(described, as_json=as_json)
    if not as_json:
        console.print("It is not calibrated yet: 'dicomguard bundle calibrate' on clean images of this site.")


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


def bundle_calibrate(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The bundle's folder.")],
    clean: Annotated[Path, typer.Option("--clean", exists=True, help="Clean DICOM files of this site, trusted.")],
    config: ConfigOption,
    alpha: Annotated[float, typer.Option("--alpha", min=0.001, max=0.5, help="False alarms per clean image.")] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Fit the thresholds of a bundle on clean images that it was not trained on; patients are kept apart."""
    from dicomguard.scoring import calibration, noise
    from dicomguard.scoring.bundle import describe, write_calibration
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.screen.files import find_files

    settings = compose.read_config(config)
    key = compose.site_key(settings).for_purpose("noise")
    scorer = Scorer.load(bundle, device=settings.device)
    files = list(find_files([clean]))
    curves, groups, batch = [], [], []
    with compose.decode_worker(settings) as worker, Bars(quiet=as_json) as bars:
        for done, path in enumerate(files, 1):
            batch += list(_first_frame(path, worker))
            if len(batch) >= _BATCH_FRAMES or (batch and done == len(files)):
                seeds = [
                    noise.seed(key, h.sop_instance_uid, i.frame, h.sha256, scorer.fingerprint, "calibration")
                    for h, i in batch
                ]
                curves += scorer.curves(scorer.prepare([image for _, image in batch]), seeds)
                # Images without a patient are taken to be of different ones: the file is all that is known.
                groups += [header.patient_id or header.sop_instance_uid for header, _ in batch]
                batch = []
            bars("score clean images", done, len(files))
    if not curves:
        raise BundleError(f"There is no readable DICOM image in {clean}.", advice="Give a folder of clean studies.")
    fitted = calibration.fit(
        curves, groups, fingerprint=scorer.fingerprint, source=f"{len(curves)} site images", alpha=alpha
    )
    write_calibration(bundle, fitted)
    _print(describe(bundle), as_json=as_json)


def _first_frame(path: Path, worker: DecodeWorker) -> Iterator[tuple[Header, Image]]:
    located = worker.locate(path)
    if isinstance(located, Fault):
        return
    offset, transfer_syntax_uid = located
    header = worker.header(path, offset, transfer_syntax_uid, [])
    if isinstance(header, Fault) or not header.is_image:
        return
    images = worker.frames(path, offset, transfer_syntax_uid, 0, 1)
    if not isinstance(images, Fault):
        yield header, images[0]
