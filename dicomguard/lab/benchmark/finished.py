"""Results of the cells that tables are made of, kept apart from the work folder: to go on on another machine.

The work folder holds gigabytes of files that cells leave for each other; a table needs of each of its cells what it
found and its charts alone. A folder here is named by the cell's key, so that what was found with other inputs is never
taken.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dicomguard.lab.benchmark.cell import RESULT, Cell
from dicomguard.lab.whole import damaged, not_written, read_object, replacing, write_json


def hand_over(cell: Cell, work: Path, folder: Path) -> None:
    """Copy what a finished cell found, and its charts; nothing else of it.

    Raises:
        DicomguardError: it cannot be written.

    """
    found = cell.result(work)
    if found is None or (folder / cell.key / RESULT).exists():
        return
    _copy(cell.folder(work), folder / cell.key, found.get("charts", ()))
    write_json(folder / cell.key / RESULT, found, indent=None)


def take_over(cell: Cell, work: Path, folder: Path) -> bool:
    """Put what was handed over where the cell would leave it, unless it has a result; whether that was done.

    Raises:
        DicomguardError: it cannot be read or written.

    """
    path = folder / cell.key / RESULT
    if cell.result(work) is not None or not path.exists():
        return False
    try:
        found = read_object(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    _copy(path.parent, cell.folder(work), found.get("charts", ()))
    cell.keep(work, found)
    return True


def _copy(start: Path, end: Path, names: list[str]) -> None:
    try:
        end.mkdir(parents=True, exist_ok=True)
        for name in names:
            with replacing(end / name) as partial:
                shutil.copyfile(start / name, partial)
    except OSError as error:
        raise not_written(end, error) from error
