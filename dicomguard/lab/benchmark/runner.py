"""Compute cells in worker processes, what is needed first; keep going where one fails, and say so at the end.

One thread in each worker: several networks side by side use the cores better than one network with several threads.
A worker that dies (out of memory, killed) fails its cell and no other; it has a pipe of its own, and another takes its
place.
"""

from __future__ import annotations

import fcntl
import multiprocessing as mp
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.cell import Cell, Result, in_order
from dicomguard.lab.benchmark.progress import Tell
from dicomguard.lab.benchmark.provenance import versions
from dicomguard.lab.benchmark.sets import INVENTORY


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

    def of(self, prefix: str) -> dict[str, Path]:
        """The folders of all roles that begin so, by what follows, in order."""
        roles = sorted(role for role in self.folders if role.startswith(prefix))
        return {role.removeprefix(prefix): self.folders[role] for role in roles}


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
        "versions": versions(),
    }
    cell.keep(root, result)
    return result


def _is_of_another_victim(cell: Cell, found: Result, root: Path) -> bool:
    """Whether a cell's result was made with a victim of other weights than the one that is there now.

    A victim that is trained again need not come out the same, and has the same key.
    """
    victim = next((need.result(root) for role, need in cell.needs if role == "victim"), None)
    if victim is None:
        return False
    return "fingerprint" in found and found["fingerprint"] != victim.get("fingerprint", found["fingerprint"])


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


class Runner:
    """Cells over a number of worker processes. `kinds`: module-level functions, which workers find by their names."""

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
        self._most = max(1, workers)
        self._device = device
        self._show = show
        # Forked workers would inherit torch's locks and threads in whatever state they are.
        self._context = mp.get_context("spawn")
        self._workers: list[_Worker] = []

    def run(self, cells: Sequence[Cell], *, only: str = "") -> Outcome:
        """Compute what is not kept, and nothing that only kept cells need.

        `only`: what titles must hold; what those cells need is computed with them. Interrupted, it stops the workers;
        cells go on where they were the next time.
        """
        outcome = Outcome(kept=[cell for cell in in_order(list(cells)) if self._is_kept(cell)])
        there = {cell.key for cell in outcome.kept}
        missing = in_order(list(cells), without=there)
        waiting = in_order([cell for cell in missing if only in cell.title], without=there)
        try:
            while waiting or any(worker.cell is not None for worker in self._workers):
                self._skip(waiting, outcome)
                self._give_out(waiting, there)
                self._listen(outcome, there)
        finally:
            for worker in self._workers:
                worker.stop()
            self._workers.clear()
        return outcome

    def _is_kept(self, cell: Cell) -> bool:
        """Whether its result is there; one whose victim came out otherwise since is thrown away."""
        found = cell.result(self._root)
        if found is None or not _is_of_another_victim(cell, found, self._root):
            return found is not None
        shutil.rmtree(cell.folder(self._root))
        return False

    def _skip(self, waiting: list[Cell], outcome: Outcome) -> None:
        """Leave out what needs a cell that is lost; `waiting` is in order, so one round finds all."""
        lost = {cell.key for cell, _ in outcome.failed} | {cell.key for cell in outcome.skipped}
        for cell in list(waiting):
            if any(need.key in lost for _, need in cell.needs):
                waiting.remove(cell)
                outcome.skipped.append(cell)
                lost.add(cell.key)

    def _give_out(self, waiting: list[Cell], there: set[str]) -> None:
        ready = [cell for cell in waiting if all(need.key in there for _, need in cell.needs)]
        for cell in ready:
            worker = self._idle()
            if worker is None:
                return
            waiting.remove(cell)
            worker.begin(cell, self._kinds[cell.kind], self._root, self._data, self._device)
            self._show(cell, 0.0)

    def _idle(self) -> _Worker | None:
        """A worker without a cell, a new one if there may be more; None where all are busy."""
        for worker in self._workers:
            if worker.cell is None:
                return worker
        if len(self._workers) == self._most:
            return None
        self._workers.append(_Worker(self._context))
        return self._workers[-1]

    def _listen(self, outcome: Outcome, there: set[str]) -> None:
        """Wait until a worker says something, or dies."""
        busy = {worker.connection: worker for worker in self._workers if worker.cell is not None}
        if not busy:  # all that waited was left out
            return
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index] # only our own connections were asked for
            cell = worker.cell
            assert cell is not None
            try:
                kind, said = worker.connection.recv()
            except (EOFError, OSError):
                outcome.failed.append((cell, worker.buried()))
                self._workers.remove(worker)
                continue
            if kind == "share":
                self._show(cell, said)
                continue
            worker.cell = None
            if kind == "done":
                there.add(cell.key)
                outcome.done.append(cell)
                self._show(cell, 1.0)
            else:
                outcome.failed.append((cell, said))


class _Worker:
    """One process with a pipe of its own: what happens to it happens to no other."""

    def __init__(self, context: SpawnContext) -> None:
        self.connection, theirs = context.Pipe()
        # Not daemonic: a cell may have children of its own.
        self._process = context.Process(target=_work, args=(theirs,), daemon=False)
        self._process.start()
        theirs.close()
        self.cell: Cell | None = None

    def begin(self, cell: Cell, make: Make, root: Path, data: Path, device: str) -> None:
        self.cell = cell
        # A worker that has died meanwhile is found dead where it is listened to.
        with suppress(OSError):
            self.connection.send((cell, make, root, data, device))

    def buried(self) -> str:
        """Why it is gone."""
        self._process.join()
        code = self._process.exitcode
        self.connection.close()
        return f"its process ended with {code} (a negative number is a signal; -9: out of memory?)"

    def stop(self) -> None:
        """End it, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


_ERROR = "error.txt"
_LOOKS_S = 1.0  # for a parent that is gone


def _end_with(parent: int) -> None:  # pragma: no cover - runs in a process of its own
    """End this process once its parent is gone, in the middle of whatever it computes.

    The lock on the work folder goes with the parent: the next run must not meet a worker of this one there.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(connection: Connection) -> None:  # pragma: no cover - runs in a process of its own
    """Cells, one after the other, until the pipe is closed; a parent that dies closes it, too."""
    import torch  # noqa: PLC0415 - the parent may only list cells

    from dicomguard.scoring import memory  # noqa: PLC0415

    _end_with(os.getppid())
    torch.set_num_threads(1)
    memory.keep_buffers()
    while True:
        try:
            cell, make, root, data, device = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(
            _tried(cell, make, root, data, device, lambda share: connection.send(("share", _undone(share))))
        )


def _undone(share: float) -> float:
    """A cell is done when its result is written, not before."""
    return min(share, 0.999)


def _tried(
    cell: Cell, make: Make, root: Path, data: Path, device: str, tell: Tell
) -> tuple[str, str]:  # pragma: no cover - runs in a process of its own
    """Compute a cell. A failure is told, and kept in its folder with its traceback."""
    path = cell.folder(root) / _ERROR
    path.unlink(missing_ok=True)
    try:
        compute(cell, make, root=root, data=data, device=device, tell=tell)
    except Exception as error:  # noqa: BLE001 - the other cells go on
        path.parent.mkdir(parents=True, exist_ok=True)
        said = str(error) if isinstance(error, DicomguardError) else f"unforeseen {type(error).__name__}: {error}"
        path.write_text(f"{said}\n\n{traceback.format_exc()}")
        return "failed", " ".join(said.split())
    return "done", ""
