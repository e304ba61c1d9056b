"""One piece of a benchmark: what it is made of, and the folder that its result is kept in.

A cell is named by the hash of what its result depends on: its kind, the code behind it, its settings (among them what
the data consist of, and the device), and the cells that it needs. Its folder holds what it leaves for other cells;
`result.json` is written last, by renaming, so that nothing half-written is taken for a result. What an interrupted cell
had kept in its folder is there when it starts again.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dicomguard.errors import DicomguardError
from dicomguard.lab.measure import name_of
from dicomguard.lab.whole import read_object, write_json

RESULT = "result.json"

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """`kind` says which function makes it (`kinds`), `made_by` which state of that code; `title` is for people.

    `settings`: JSON text. `needs`: other cells by the role that they play. `key`: twelve hex digits that stand for all
    inputs; the title is none.
    """

    kind: str
    made_by: str
    title: str
    settings: str
    needs: tuple[tuple[str, Cell], ...]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        needs = [(role, cell.key) for role, cell in self.needs]
        object.__setattr__(self, "key", name_of(self.kind, self.made_by, self.settings, needs))

    @classmethod
    def of(cls, kind: str, made_by: str, title: str, needs: Mapping[str, Cell] | None = None, **settings: Any) -> Self:
        """A cell with settings that JSON knows.

        Raises:
            TypeError: a setting that JSON does not know.

        """
        return cls(kind, made_by, title, json.dumps(settings, sort_keys=True), tuple(sorted((needs or {}).items())))

    @property
    def given(self) -> dict[str, Any]:
        """The settings as values."""
        found: dict[str, Any] = json.loads(self.settings)
        return found

    def folder(self, root: Path) -> Path:
        """Where it keeps what it makes."""
        return root / self.kind / self.key

    def result(self, root: Path) -> Result | None:
        """What it found; None where it has not been computed to its end.

        Raises:
            DicomguardError: the file is there and cannot be read.

        """
        path = self.folder(root) / RESULT
        if not path.exists():
            return None
        try:
            return read_object(path)
        except (OSError, ValueError) as error:
            raise DicomguardError(
                f"{path} cannot be read: {error}.", advice="Delete its folder; the next run computes the cell again."
            ) from error

    def keep(self, root: Path, result: Result) -> None:
        """Write the result, whole or not at all."""
        write_json(self.folder(root) / RESULT, result)


def in_order(
    cells: Mapping[str, Cell] | list[Cell] | tuple[Cell, ...], *, without: Container[str] = frozenset()
) -> list[Cell]:
    """All cells and what they need, each once, what is needed first.

    `without`: keys of cells that are left out, and with them what only these need.
    """
    wanted = list(cells.values()) if isinstance(cells, Mapping) else list(cells)
    seen: dict[str, Cell] = {}

    def visit(cell: Cell) -> Iterator[Cell]:
        if cell.key in seen or cell.key in without:
            return
        for _, need in cell.needs:
            yield from visit(need)
        if cell.key not in seen:
            seen[cell.key] = cell
            yield cell

    return [found for cell in wanted for found in visit(cell)]
