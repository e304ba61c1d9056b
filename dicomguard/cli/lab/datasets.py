"""`dicomguard lab datasets`: what can be opened, whether it is here, and how it divides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import Bars, console, print_json, print_table
from dicomguard.cli.stages import stages

DataOption = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", envvar="DICOMGUARD_TEST_DATA", help="The folder that holds the data sets' folders."
    ),
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="Keep here what reading every picture once has shown.")
]


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command("datasets")(datasets)


def datasets(
    data: DataOption,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|PATH]...", help="Data sets to open, divide and count.")
    ] = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the data sets that are known and whether they are here; or open those that are named and count.

    A path may be a folder with a folder of pictures for each class, a CSV (path, label, group), a MedMNIST .npz, or a
    folder of DICOM files with a labels.csv.
    """
    if names:
        _count(names, data, cache, as_json=as_json)
    else:
        _list(data, as_json=as_json)


def _list(data: Path, *, as_json: bool) -> None:
    from dicomguard.lab.data import catalogue

    rows = [
        {
            "name": one.name,
            "labels": list(one.labels),
            "stands_in_for": one.stands_in_for,
            "source": one.source,
            "here": one.is_here,
        }
        for one in catalogue.catalogue(data)
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        "Data sets",
        ("name", "here", "labels", "stands in for", "source, or where to get it"),
        (
            (
                row["name"],
                "yes" if row["here"] else "no",
                ", ".join(row["labels"]),  # type: ignore[arg-type] # the values differ in type by column
                row["stands_in_for"] or "",
                row["source"],
            )
            for row in rows
        ),
    )


def _count(names: list[str], data: Path, cache: Path | None, *, as_json: bool) -> None:
    from dicomguard.lab.data import open_collection

    for name in names:
        with Bars(quiet=as_json) as bars:
            tick = stages(bars)
            found = open_collection(name, data, cache=cache, advance=lambda done, tick=tick: tick("pictures", done))  # type: ignore[misc]
        if as_json:
            print_json(
                [
                    {
                        "name": found.name,
                        "labels": list(found.labels),
                        "counts": found.counts(),
                        "bits": found.bits,
                        "planes": found.planes,
                        "stands_in_for": found.stands_in_for,
                        "salt": found.salt,
                        "limits": list(found.limits),
                        "left_out": list(found.left_out),
                        "source": found.source,
                    }
                ]
            )
            continue
        counts = found.counts()
        print_table(
            found.name,
            ("split", *found.labels),
            ((split, *(str(count) for count in by_label.values())) for split, by_label in counts.items()),
        )
        for words in (found.source, *found.limits):
            console.print(f"  {words}", markup=False, highlight=False)
