"""Throughput and memory of the receiver beside DCMTK, Orthanc and pynetdicom's storescp, on this machine, in one run.

Every contender gets the same sender: tests/wire/senders.py, which encodes an instance once and changes only its UID.
The contenders take turns within each round, so that whatever else the machine does hits them alike: trust the ratios,
not the instances per second. dicomguard syncs file and folder before it answers; the others do not sync at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).parents[1]
SENDERS = ROOT / "tests" / "wire" / "senders.py"
sys.path.insert(0, str(SENDERS.parent))

import senders  # noqa: E402 - found through the line above

PIXEL_BYTES = 512 * 1024
LARGE_BYTES = 500 * 2**20
START_S = 30.0
OURS = """
import signal
import sys
import threading
from ipaddress import ip_network
from pathlib import Path
from dicomguard.receive.process import run
from dicomguard.receive.settings import PermittedPeer, ReceiveSettings

peers = (PermittedPeer("SCU", ip_network("127.0.0.0/8")),)
settings = ReceiveSettings("GUARD", peers, port=int(sys.argv[2]), acceptors=int(sys.argv[3]))
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run(settings, Path(sys.argv[1]), reserve_bytes=0, stop=stop, grace_s=1.0)
"""


@dataclass
class Contender:
    """A receiver: `command(folder, port)` starts it; what it stores goes below `folder`."""

    name: str
    command: Callable[[Path, int], list[str]]
    missing: str = ""
    rates: dict[int, list[float]] = field(default_factory=lambda: {1: [], 8: []})
    memory_mb: float | None = None


def contenders(acceptors: int) -> list[Contender]:
    """dicomguard first: the others are compared with it."""

    def ours(folder: Path, port: int) -> list[str]:
        return [sys.executable, "-c", OURS, str(folder / "spool"), str(port), str(acceptors)]

    def dcmtk(folder: Path, port: int) -> list[str]:
        return ["/usr/bin/storescp", "-od", str(folder), str(port)]

    def dcmtk_fork(folder: Path, port: int) -> list[str]:
        return ["/usr/bin/storescp", "--fork", "-od", str(folder), str(port)]

    def dcmtk_tuned(folder: Path, port: int) -> list[str]:
        return ["/usr/bin/storescp", "--fork", "--max-pdu", "131072", "+B", "-od", str(folder), str(port)]

    def orthanc(folder: Path, port: int) -> list[str]:
        config = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomPort": port,
            "DicomAlwaysAllowStore": True,
            "DicomCheckCalledAet": False,
            "HttpServerEnabled": False,
            "RemoteAccessAllowed": False,
            "Plugins": [],
        }
        (folder / "orthanc.json").write_text(json.dumps(config))
        return ["/usr/sbin/Orthanc", str(folder / "orthanc.json")]

    def app(folder: Path, port: int) -> list[str]:
        return [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-ba", "127.0.0.1", "-od", str(folder), "-q"]

    no_dcmtk = "" if Path("/usr/bin/storescp").exists() else "apt-get install dcmtk"
    no_orthanc = "" if Path("/usr/sbin/Orthanc").exists() else "apt-get install orthanc"
    return [
        Contender("dicomguard", ours),
        Contender("DCMTK storescp", dcmtk, no_dcmtk),
        Contender("DCMTK storescp --fork", dcmtk_fork, no_dcmtk),
        Contender("DCMTK --fork --max-pdu 131072 +B", dcmtk_tuned, no_dcmtk),
        Contender("Orthanc", orthanc, no_orthanc),
        Contender("pynetdicom storescp", app),
    ]


@contextlib.contextmanager
def running(contender: Contender, scratch: Path) -> Iterator[tuple[int, int]]:
    """Port and process ID of a fresh instance of the contender."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(
        contender.command(folder, port), cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, **quiet
    )
    try:
        wait_until_it_answers(contender, process, port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        # Dirty pages that one contender left behind are not charged to the next.
        os.sync()


def wait_until_it_answers(contender: Contender, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"bench: {contender.name} ended with status {process.returncode} instead of listening.")
        try:
            with senders.Sender(port) as sender:
                sender.release()
        except (OSError, senders.Aborted):
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"bench: {contender.name} did not listen within {START_S:.0f} s.")


def instances_per_second(port: int, associations: int, count: int, *, acks_at_once: bool = False) -> float:
    """`associations` sender processes, released together; from the first byte to the last answer."""
    command = [sys.executable, str(SENDERS), "--timed", "--port", str(port), "--count", str(count)]
    command += ["--pixel-bytes", str(PIXEL_BYTES), *(["--acks-at-once"] if acks_at_once else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(associations)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    acknowledged = 0
    for process in processes:
        assert process.stdout is not None
        acknowledged += int(process.stdout.readline())
    elapsed = time.perf_counter() - began
    for process in processes:
        process.communicate()
    if acknowledged != count * associations:
        raise SystemExit(f"bench: only {acknowledged} of {count * associations} instances were acknowledged.")
    return acknowledged / elapsed


def large_instance_mb(port: int, pid: int) -> float:
    """Growth of the peak resident memory, all processes of the contender together, by one instance of 500 MiB."""
    before = peak_mb(pid)
    with senders.Sender(port, timeout_s=300) as sender:
        head = senders.data_set("2.25.1", "2.25.5")[:-4] + LARGE_BYTES.to_bytes(4, "little")
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, senders.CT, "2.25.1")))
        sender.socket.sendall(senders.p_data(1, 0, head))
        step = sender.max_pdu - 6
        pdu = senders.p_data(1, 0, os.urandom(step))
        for _ in range(LARGE_BYTES // step):
            sender.socket.sendall(pdu)
        sender.socket.sendall(senders.p_data(1, 2, bytes(LARGE_BYTES % step)))
        status = sender.response().status
        if status:
            raise SystemExit(f"bench: the large instance was answered {status:#06x}.")
        # While the association is still open, so that a forked child is still there to be looked at.
        grown = peak_mb(pid) - before
        sender.release()
    return grown


def peak_mb(pid: int) -> float:
    process = psutil.Process(pid)
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


def measure(field_of: list[Contender], options: argparse.Namespace, scratch: Path) -> None:
    rounds, count = options.rounds, options.instances
    with Progress(console=Console(stderr=True), disable=options.json) as progress:
        task = progress.add_task("receiving", total=(2 * rounds + 1) * len(field_of))
        for _ in range(rounds):
            for associations in (1, 8):
                for contender in random.sample(field_of, len(field_of)):
                    with running(contender, scratch) as (port, _pid):
                        contender.rates[associations].append(
                            instances_per_second(port, associations, count, acks_at_once=options.acks_at_once)
                        )
                    progress.advance(task)
        for contender in field_of:
            with running(contender, scratch) as (port, pid):
                contender.memory_mb = large_instance_mb(port, pid)
            progress.advance(task)


def report(field_of: list[Contender], *, as_json: bool) -> None:
    ours = field_of[0]
    rows = []
    for contender in field_of:
        row: dict[str, object] = {"contender": contender.name, "memory_growth_mb": round(contender.memory_mb or 0.0, 1)}
        for associations in (1, 8):
            rates = contender.rates[associations]
            ratios = [mine / theirs for mine, theirs in zip(ours.rates[associations], rates, strict=True)]
            row[f"per_second_{associations}"] = round(statistics.median(rates), 1)
            row[f"range_{associations}"] = [round(min(rates), 1), round(max(rates), 1)]
            row[f"ratio_{associations}"] = round(statistics.median(ratios), 2)
            row[f"ratio_range_{associations}"] = [round(min(ratios), 2), round(max(ratios), 2)]
        rows.append(row)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    table = Table(
        title="C-STORE of 512 KiB CT, instances/s: median (range) of the rounds; x: dicomguard is so many times as fast"
    )
    for name in ("", "1 association", "x", "8 associations", "x", "500 MiB instance"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        cells = [str(row["contender"])]
        for associations in (1, 8):
            low, high = row[f"range_{associations}"]
            cells += [f"{row[f'per_second_{associations}']} ({low}-{high})", f"{row[f'ratio_{associations}']}"]
        table.add_row(*cells, f"{row['memory_growth_mb']:+} MB")
    Console(width=150).print(table)
    Console().print(
        "Only dicomguard had synced file and folder when it answered. Load of the machine:", os.getloadavg()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=60, help="per association and round")
    parser.add_argument("--acceptors", type=int, default=2, help="acceptor processes of dicomguard")
    at_once = "senders acknowledge at once (TCP_QUICKACK); without it, as usual, receivers with Nagle on wait 40 ms"
    parser.add_argument("--acks-at-once", action="store_true", help=at_once)
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    everybody = contenders(options.acceptors)
    for contender in everybody:
        if contender.missing:
            print(f"bench: {contender.name} is left out: {contender.missing}", file=sys.stderr)
    field_of = [contender for contender in everybody if not contender.missing]
    with tempfile.TemporaryDirectory(prefix="bench-receive-") as scratch:
        measure(field_of, options, Path(scratch))
    report(field_of, as_json=options.json)


if __name__ == "__main__":
    main()
