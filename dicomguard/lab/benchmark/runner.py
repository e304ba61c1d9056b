"""Compute cells in worker processes, what is needed first; keep going where one fails, and say so at the end.

One thread in each worker: several networks side by side use the cores better than one network with several threads.
A worker that dies (out of memory, killed) fails its cell and no other.
"""

from __future__ import annotations

import fcntl
import multiprocessing as mp
import queue
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import Cell, Result, in_order

INVENTORY = "inventory"
Tell = Callable[[float], None]
"""`tell(share)`: how much of the cell is done, from 0 to 1."""


def added(tell: Tell) -> Tell:
    """The same for work that says by how much it came nearer."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done = min(done + share, 1.0)
        tell(done)

    return advance


@dataclass(frozen=True, slots=True)
class Place:
    """What the function behind a cell works with.

    `needs` and `folders`: results and folders of the cells that it needs, by role; `folder`: its own; `data`: where the
    image sets are, `inventory`: where they keep what was learnt of them; `device`: for networks.
    """

    folder: Path
    inventory: Path
    needs: Mapping[str, Result]
    folders: Mapping[str, Path]
    data: Path
    device: str
    tell: Tell


Make = Callable[[dict[str, Any], Place], Result]
"""The function behind a kind of cell: settings and place in, a JSON-ready result out."""


@dataclass(slots=True)
class Outcome:
    """What became of a run. `failed`: why, by cell; `skipped`: cells that needed a failed one."""

    done: list[Cell] = field(default_factory=list)
    kept: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    skipped: list[Cell] = field(default_factory=list)


def compute(
    cell: Cell, make: Make, *, root: Path, data: Path, device: str = "cpu", tell: Tell = lambda _: None
) -> Result:
    """Compute one cell here and now, unless its result is kept."""
    found = cell.result(root)
    if found is not None:
        return found
    needs = {role: need.result(root) for role, need in cell.needs}
    missing = [role for role, result in needs.items() if result is None]
    if missing:
        raise DicomguardError(f"cell {cell.title} needs {missing[0]}, which is not computed.")
    folder = cell.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    place = Place(
        folder,
        root / INVENTORY,
        {role: result for role, result in needs.items() if result is not None},
        {role: need.folder(root) for role, need in cell.needs},
        data,
        device,
        tell,
    )
    result = {
        "title": cell.title,
        "settings": cell.given,
        **make(cell.given, place),
        "seconds": round(time.monotonic() - started, 1),
    }
    cell.keep(root, result)
    return result


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Keep a second run out of a work folder: both would compute, and write, the same cells.

    Raises:
        DicomguardError: another run is there.

    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DicomguardError(
                f"another run computes in {work}.", advice="Wait for it, or choose another --work."
            ) from error
        yield


@dataclass(slots=True)
class _Running:
    cell: Cell
    process: BaseProcess


class Runner:
    """Cells over a number of worker processes. `kinds`: a module-level mapping, so that workers find it too."""

    def __init__(
        self,
        kinds: Mapping[str, Make],
        root: Path,
        data: Path,
        *,
        workers: int,
        device: str = "cpu",
        show: Callable[[Cell, float], None] = lambda _cell, _share: None,
    ) -> None:
        self._kinds = kinds
        self._root = root
        self._data = data
        self._workers = max(1, workers)
        self._device = device
        self._show = show
        # Forked workers would inherit torch's locks and threads in whatever state they are.
        self._context = mp.get_context("spawn")

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Compute what is not kept. Interrupted, it stops the workers; cells go on where they were the next time."""
        outcome = Outcome()
        waiting = []
        for cell in in_order(list(cells)):
            if cell.result(self._root) is None:
                waiting.append(cell)
            else:
                outcome.kept.append(cell)
        running: list[_Running] = []
        told: mp.Queue[tuple[str, float]] = self._context.Queue()
        try:
            while waiting or running:
                self._start(waiting, running, outcome, told)
                if waiting and not running:  # nothing can start: what one of them needs has been taken away
                    outcome.failed += [(cell, "a result that it needs is gone; run again") for cell in waiting]
                    break
                self._listen(running, told)
                self._collect(running, outcome)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.join()
            told.close()
        return outcome

    def _start(
        self, waiting: list[Cell], running: list[_Running], outcome: Outcome, told: mp.Queue[tuple[str, float]]
    ) -> None:
        lost = {cell.key for cell, _ in outcome.failed} | {cell.key for cell in outcome.skipped}
        for cell in list(waiting):
            if any(need.key in lost for _, need in cell.needs):
                waiting.remove(cell)
                outcome.skipped.append(cell)
                lost.add(cell.key)
        for cell in list(waiting):
            if len(running) >= self._workers:
                return
            if all(need.result(self._root) is not None for _, need in cell.needs):
                waiting.remove(cell)
                arguments = (cell, self._kinds[cell.kind], self._root, self._data, self._device, told)
                process = self._context.Process(target=_work, args=arguments, daemon=False)
                process.start()
                running.append(_Running(cell, process))
                self._show(cell, 0.0)

    def _listen(self, running: Sequence[_Running], told: mp.Queue[tuple[str, float]]) -> None:
        by_key = {one.cell.key: one.cell for one in running}
        deadline = time.monotonic() + 0.2
        while (left := deadline - time.monotonic()) > 0:
            try:
                key, share = told.get(timeout=left)
            except queue.Empty:
                return
            if key in by_key:
                self._show(by_key[key], share)

    def _collect(self, running: list[_Running], outcome: Outcome) -> None:
        for one in list(running):
            if one.process.is_alive():
                continue
            one.process.join()
            running.remove(one)
            if one.cell.result(self._root) is not None:
                outcome.done.append(one.cell)
                self._show(one.cell, 1.0)
            else:
                outcome.failed.append((one.cell, self._why(one)))

    def _why(self, one: _Running) -> str:
        path = one.cell.folder(self._root) / _ERROR
        if one.process.exitcode == 1 and path.exists():
            return path.read_text().strip().splitlines()[0]
        return f"its process ended with {one.process.exitcode} (a negative number is a signal; -9: out of memory?)"


_ERROR = "error.txt"


def _work(
    cell: Cell, make: Make, root: Path, data: Path, device: str, told: mp.Queue[tuple[str, float]]
) -> None:  # pragma: no cover - runs in a process of its own
    """One cell in a worker process. A failure is told in its folder: the first line for people, then the traceback."""
    import torch  # noqa: PLC0415 - the parent may only list cells

    from dicomguard.scoring import memory  # noqa: PLC0415

    torch.set_num_threads(1)
    memory.keep_buffers()
    path = cell.folder(root) / _ERROR
    path.unlink(missing_ok=True)
    try:
        compute(cell, make, root=root, data=data, device=device, tell=lambda share: told.put((cell.key, share)))
    except Exception as error:  # noqa: BLE001 - the other cells go on
        path.parent.mkdir(parents=True, exist_ok=True)
        said = str(error) if isinstance(error, DicomguardError) else f"unforeseen {type(error).__name__}: {error}"
        path.write_text(f"{' '.join(said.split())}\n\n{traceback.format_exc()}")
        raise SystemExit(1) from None
