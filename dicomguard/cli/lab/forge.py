"""`dicomguard lab forge`: clean DICOM files in, valid adversarial DICOM studies and a manifest with the truth out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import Bars, console, print_json, print_table
from dicomguard.errors import ConfigError

if TYPE_CHECKING:  # torch, imported by the command
    from dicomguard.lab.live.manifest import Row
    from dicomguard.lab.live.sources import Refused


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command()(forge)


def forge(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The folder of the bundle to attack.")],
    clean: Annotated[Path, typer.Option("--clean", exists=True, metavar="DIR", help="Clean DICOM files.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the set; given again, it goes on.")],
    attack: Annotated[
        list[str] | None, typer.Option("--attack", metavar="NAME", help="What to attack with; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many of the clean studies.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="For random starts, and for the new UIDs.")] = 0,
    with_clean: Annotated[
        bool, typer.Option("--with-clean", help="Put copies of the clean files into the set, under new UIDs too.")
    ] = False,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Keep the files of attacks that changed no answer, to be sent too.")
    ] = False,
    match: Annotated[
        list[str] | None,
        typer.Option(
            "--match",
            metavar="KEYWORD=VALUE",
            help="Only images with this, such as Modality=CR; by default what the configuration says of the bundle.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        compose.config_option("The node's configuration file: for the bundle's images, and the decoder's limits."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Attack clean DICOM files and write valid DICOM studies with a manifest of what is true of them.

    An attack that dies in rounding to stored bits is in the manifest as not flipped, and its file is not kept. Exit 1
    when no attack changed an answer.
    """
    from dicomguard.lab.live import forging, sources
    from dicomguard.lab.live.attacks import available
    from dicomguard.scoring.scorer import Scorer

    attacks = available()
    unknown = [name for name in attack or [] if name not in attacks]
    if unknown or not (attack or with_clean):
        said = f"no attack is called {unknown[0]!r}" if unknown else "name at least one"
        raise typer.BadParameter(f"{said}; there are {', '.join(attacks)}", param_hint="--attack")
    if out.resolve().is_relative_to(clean.resolve()) or clean.resolve().is_relative_to(out.resolve()):
        raise typer.BadParameter("the clean files and the forged ones need folders apart", param_hint="--out")
    matching = _matching(match) if match else _configured(config, bundle)
    chosen = {name: attacks[name] for name in attack or []}
    wishes = forging.Wishes(chosen, seed, limit, with_clean, keep_failed)
    scorer = Scorer.load(bundle)
    with compose.plain_decode_worker(config) as worker, Bars(quiet=as_json) as bars:
        made = forging.Forge(scorer, worker, out, wishes, bars)
        found = made.make(sources.find(clean, worker, matching, bars))
    attacked = [row for row in found.rows if row.truth == "attacked"]
    summary = {
        "manifest": str(found.manifest),
        "rows": len(found.rows),
        "sent": sum(row.is_sent for row in found.rows),
        "clean": len(found.rows) - len(attacked),
        "attacked": len(attacked),
        "flipped": sum(bool(row.flipped) for row in attacked),
        "died_in_rounding": sum(_died(row) for row in attacked),
        "match": matching,
        "refused": [{"path": str(one.path), "why": one.why} for one in found.refused],
    }
    if as_json:
        print_json([summary])
    else:
        _show(found.rows, found.refused, summary)
    if attacked and not summary["flipped"]:
        console.print(
            "No attack changed an answer. Use a stronger one, such as 'PGD 0.016', or images that are less certain.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _configured(config: Path | None, bundle: Path) -> Mapping[str, Sequence[str]]:
    """What the node's configuration says of the images that a bundle is for; nothing where it does not name it."""
    settings = None if config is None else compose.read_config(config)
    sections = () if settings is None else settings.bundles
    found = [section.match for section in sections if section.path.resolve() == bundle.resolve()]
    if len(found) > 1:
        raise ConfigError(
            f"{config} names {bundle.name} {len(found)} times, for different images.",
            advice="Say with --match which ones are to be forged.",
        )
    return found[0] if found else {}


def _matching(lines: Sequence[str]) -> dict[str, list[str]]:
    from pydicom.datadict import tag_for_keyword

    found: dict[str, list[str]] = {}
    for line in lines:
        keyword, equals, value = line.partition("=")
        if not equals or not value or tag_for_keyword(keyword) is None:
            raise typer.BadParameter("write a DICOM keyword and a value, such as Modality=CR", param_hint="--match")
        found.setdefault(keyword, []).append(value)
    return found


def _died(row: Row) -> bool:
    return bool(row.flipped_before_rounding and not row.flipped)


def _counts(rows: Sequence[Row]) -> tuple[int, int, int]:
    flipped, died = sum(bool(row.flipped) for row in rows), sum(map(_died, rows))
    return flipped, died, len(rows) - flipped - died


def _show(rows: Sequence[Row], refused: Sequence[Refused], summary: dict[str, Any]) -> None:
    by_attack: dict[str, list[Row]] = {}
    for row in rows:
        if row.attack is not None:
            by_attack.setdefault(row.attack, []).append(row)
    print_table(
        "Forged",
        ("attack", "files", "flipped", "died in rounding", "never flipped", "in the set"),
        ((name, len(of), *_counts(of), sum(row.is_sent for row in of)) for name, of in by_attack.items()),
    )
    if refused:
        print_table("Not forged", ("file", "why"), ((one.path, one.why) for one in refused))
    console.print(
        f"{summary['sent']} files to send, {summary['clean']} of them clean: {summary['manifest']}",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )
    if not summary["match"]:
        console.print(
            "All images were taken: neither --match nor a configuration says which ones the bundle is for.",
            markup=False,
        )
    console.print("Send them with 'dicomguard replay --manifest' or with storescu.", markup=False)
