"""What can be opened by name, and whether it is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dicomguard.errors import ConfigError
from dicomguard.lab.data import named, papers


@dataclass(frozen=True, slots=True)
class Offer:
    """One set. `source`: what to cite; of a paper's set, where to get it."""

    name: str
    labels: tuple[str, ...]
    stands_in_for: str | None
    source: str
    is_here: bool


def need(data: Path) -> None:
    """Raises ConfigError where the data folder is not there."""
    if not data.is_dir():
        raise ConfigError(
            f"the data folder {data} is not there.", advice="Point --data at the folder that holds the data sets."
        )


def catalogue(data: Path) -> list[Offer]:
    """The test data's sets, then the papers' own. Nothing is read but folders. Raises ConfigError: see `need`."""
    need(data)
    offers = [
        Offer(name, known.labels, known.stands_in_for, known.source, (data / f"{known.table}.csv").is_file())
        for name, known in named.KNOWN.items()
    ]
    return offers + [
        Offer(name, paper.labels, None, f"{paper.title}: {paper.where}", papers.place_of(name, data) is not None)
        for name, paper in papers.PAPERS.items()
    ]
