"""Results of the cells that tables are made of, kept apart from the work folder: to go on on another machine.

The work folder holds gigabytes of files that cells leave for each other; a table needs of each of its cells what it
found and its charts alone. A folder here is named by the cell's key, so that what was found with other inputs is never
taken.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dicomguard.lab.benchmark.cell import RESULT, Cell, Result, in_order
from dicomguard.lab.whole import damaged, not_written, read_object, replacing, write_json


def hand_over(cell: Cell, work: Path, folder: Path) -> None:
    """Copy what a finished cell found, and its charts; nothing else of it.

    What was handed over before is replaced where the cell has found something else since: its victim came out
    otherwise.

    Raises:
        DicomguardError: what was handed over before cannot be read, or this cannot be written.

    """
    found = cell.result(work)
    if found is None or found == handed_over(cell, folder):
        return
    path = folder / cell.key / RESULT
    path.unlink(missing_ok=True)  # no moment with one result and the charts of the other
    _copy(cell.folder(work), path.parent, found.get("charts", ()))
    write_json(path, found, indent=None)


def handed_over(cell: Cell, folder: Path) -> Result | None:
    """What was handed over of a cell; None where nothing was.

    Raises:
        DicomguardError: it cannot be read.

    """
    path = folder / cell.key / RESULT
    if not path.exists():
        return None
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def take_over(cell: Cell, work: Path, folder: Path) -> bool:
    """Put what was handed over where the cell would leave it, unless it has a result; whether that was done.

    Raises:
        DicomguardError: it cannot be read or written.

    """
    found = None if cell.result(work) is not None else handed_over(cell, folder)
    if found is None:
        return False
    _copy(folder / cell.key, cell.folder(work), found.get("charts", ()))
    cell.keep(work, found)
    return True


def states(tables: Sequence[Cell], work: Path, folder: Path | None) -> dict[str, str]:
    """What a run would do with each cell that tables need, by its key; `folder`: of what was handed over.

    "kept" and "finished" (handed over) ones are taken as they are, "not needed" is what only those are made of.
    """
    cells = in_order(list(tables))
    kept = {cell.key for cell in cells if cell.result(work) is not None}
    handed = {cell.key for cell in tables if folder is not None and handed_over(cell, folder) is not None} - kept
    found = dict.fromkeys((cell.key for cell in cells), "not needed")
    found.update((cell.key, "to do") for cell in in_order(list(tables), without=kept | handed))
    return found | dict.fromkeys(kept, "kept") | dict.fromkeys(handed, "finished")


def _copy(start: Path, end: Path, names: list[str]) -> None:
    try:
        end.mkdir(parents=True, exist_ok=True)
        for name in names:
            with replacing(end / name) as partial:
                shutil.copyfile(start / name, partial)
    except OSError as error:
        raise not_written(end, error) from error
