"""The receiver as it runs: a parent, its acceptor processes, and whatever is killed when."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import senders
from oracle import look_through, read_acks
from senders import Aborted, Rejected, Sender, data_set, new_uid, until

SENDERS = Path(senders.__file__)
PROGRAM = """
import signal
import sys
import threading
from ipaddress import ip_network
from pathlib import Path
from dicomguard.receive.process import run
from dicomguard.receive.settings import PermittedPeer, ReceiveSettings

root, port, acceptors, cap = Path(sys.argv[1]), *map(int, sys.argv[2:])
peers = (PermittedPeer("SCU", ip_network("127.0.0.0/8")),)
settings = ReceiveSettings("GUARD", peers, port=port, acceptors=acceptors, max_associations=cap, journal_rotate_s=0.2)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run(settings, root, reserve_bytes=0, stop=stop, grace_s=5.0, on_ready=lambda port: print(port, flush=True))
"""


class Running:
    """A receiver process and its acceptors."""

    def __init__(self, root, *, port=0, acceptors=2, cap=64):
        arguments = [str(root), str(port), str(acceptors), str(cap)]
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.parent = psutil.Process(self.process.pid)

    @property
    def acceptors(self):
        return self.parent.children()

    def end(self, number=signal.SIGTERM):
        acceptors = self.acceptors if self.process.poll() is None else []
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process.stdout.close()
        assert until(lambda: not any(map(is_alive, acceptors)), 10)
        return code


def is_alive(process):
    """An orphan that has ended may wait a while for its new parent to take note."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def run(tmp_path):
    running = []

    def start(**options):
        running.append(Running(tmp_path / "spool", **options))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.end()


def store(port):
    uid = new_uid()
    with Sender(port) as sender:
        status = sender.store(uid, data_set(uid, "2.25.5", pixels=os.urandom(50_000))).status
        sender.release()
    return uid, status


def test_acceptors_share_the_load_and_end_on_sigterm(run, tmp_path):
    node = run(acceptors=3)
    associations = [Sender(node.port) for _ in range(9)]
    with_peers = {
        acceptor.pid
        for acceptor in node.acceptors
        for one in acceptor.net_connections("tcp")
        if one.status == "ESTABLISHED"
    }
    assert len(with_peers) == 3
    for sender in associations:
        uid = new_uid()
        assert sender.store(uid, data_set(uid, "2.25.5")).status == 0x0000
        sender.release()
    assert node.end() == 0
    assert len(look_through(tmp_path / "spool").instances) == 9


def test_the_association_cap_holds_over_all_acceptors(run):
    node = run(acceptors=3, cap=5)
    associations = [Sender(node.port) for _ in range(5)]
    for _ in range(6):
        with pytest.raises(Rejected):
            Sender(node.port)
    associations.pop().release()
    assert until(lambda: _is_accepted(node.port))
    for sender in associations:
        sender.abort()


def _is_accepted(port):
    try:
        Sender(port).release()
    except (Rejected, Aborted, ConnectionError):
        return False
    return True


def test_an_acceptor_that_dies_is_replaced_and_its_associations_are_not_counted_for_ever(run):
    node = run(acceptors=2, cap=4)
    before = {acceptor.pid for acceptor in node.acceptors}
    associations = [Sender(node.port) for _ in range(4)]
    for acceptor in node.acceptors:
        acceptor.kill()
    assert until(lambda: len({acceptor.pid for acceptor in node.acceptors} - before) == 2)
    for sender in associations:
        with pytest.raises((Aborted, OSError)):
            sender.echo()
        sender.socket.close()
    assert store(node.port)[1] == 0x0000


def test_an_acceptor_that_cannot_be_replaced_now_is_replaced_later_and_nobody_hangs_meanwhile(run):
    node = run(acceptors=1)
    usual = node.parent.rlimit(resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{node.process.pid}/fd").iterdir()}
    node.parent.rlimit(resource.RLIMIT_NOFILE, (max(used) + 1, usual[1]))
    (acceptor,) = node.acceptors
    acceptor.kill()
    for _ in range(3):
        with pytest.raises(Rejected) as rejected:
            Sender(node.port, timeout_s=10)
        assert (rejected.value.result, rejected.value.source, rejected.value.reason) == (2, 3, 2)
    assert node.acceptors == []
    node.parent.rlimit(resource.RLIMIT_NOFILE, usual)
    assert until(lambda: _is_accepted(node.port))
    assert store(node.port)[1] == 0x0000
    assert node.end() == 0


def test_a_stop_while_an_acceptor_is_being_replaced_is_clean(run):
    node = run(acceptors=2)
    dead = node.acceptors[0]
    dead.kill()
    assert until(lambda: not psutil.pid_exists(dead.pid))  # the parent has seen it
    assert node.end() == 0


def test_acceptors_do_not_outlive_their_parent_and_the_port_is_free_again(run):
    node = run()
    acceptors = node.acceptors
    node.end(signal.SIGKILL)
    assert len(acceptors) == 2
    assert not any(map(is_alive, acceptors))
    assert store(run(port=node.port).port)[1] == 0x0000


def test_sigterm_under_load_loses_nothing_acknowledged(run, tmp_path):
    node = run()
    acks = [tmp_path / f"acks{number}" for number in range(3)]
    load = [_sender(node.port, log) for log in acks]
    assert until(lambda: sum(len(read_acks([log])) for log in acks if log.exists()) > 20, 20)
    assert node.end() == 0
    for process in load:
        process.kill()
        process.wait()
    found = look_through(tmp_path / "spool")
    assert read_acks(acks) <= found.instances
    assert not found.damaged
    assert not list((tmp_path / "spool" / "receiving").iterdir())


def test_without_descriptors_the_acceptor_says_so_and_recovers(run):
    node = run(acceptors=1)
    (acceptor,) = node.acceptors
    with ExitStack() as stack:
        sender, *_ = [stack.enter_context(Sender(node.port)) for _ in range(3)]
        used = {int(entry.name) for entry in Path(f"/proc/{acceptor.pid}/fd").iterdir()}
        usual = acceptor.rlimit(resource.RLIMIT_NOFILE)
        acceptor.rlimit(resource.RLIMIT_NOFILE, (min(set(range(1000)) - used), usual[1]))
        # All are answered at once; closing the journal's file may make room for one.
        assert sum(_is_accepted(node.port) for _ in range(5)) <= 1
        # No descriptor for a part either: that is "out of resources", and the association goes on.
        assert sender.store("2.25.1", data_set("2.25.1", "2.25.5")).status == 0xA700
        acceptor.rlimit(resource.RLIMIT_NOFILE, usual)
        assert sender.store("2.25.1", data_set("2.25.1", "2.25.5")).status == 0x0000
        assert store(node.port)[1] == 0x0000


def test_a_file_size_limit_is_a_full_disk(run):
    node = run(acceptors=1)
    (acceptor,) = node.acceptors
    with Sender(node.port) as sender:
        acceptor.rlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        assert sender.store("2.25.1", data_set("2.25.1", "2.25.5", pixels=bytes(500_000))).status == 0xA700
        acceptor.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert sender.store("2.25.1", data_set("2.25.1", "2.25.5", pixels=bytes(500_000))).status == 0x0000
        sender.release()


@pytest.mark.slow
def test_half_a_gigabyte_costs_no_memory(run, tmp_path):
    node = run(acceptors=1)
    (acceptor,) = node.acceptors
    assert store(node.port)[1] == 0x0000
    before = _peak_bytes(acceptor.pid)
    frame = os.urandom(1 << 20)
    head = data_set("2.25.1", "2.25.5")[:-8]
    with Sender(node.port) as sender:
        sender.socket.sendall(senders.p_data(1, 3, senders.store_command(1, senders.CT, "2.25.1")))
        sender.socket.sendall(senders.p_data(1, 0, head + senders.struct.pack("<I", 500 << 20)))
        step = sender.max_pdu - 6
        pdu = senders.p_data(1, 0, (frame * 2)[:step])
        for _ in range((500 << 20) // step):
            sender.socket.sendall(pdu)
        sender.socket.sendall(senders.p_data(1, 2, bytes((500 << 20) % step)))
        sender.socket.settimeout(120)
        assert sender.response().status == 0x0000
        sender.release()
    grown = _peak_bytes(acceptor.pid) - before
    assert grown < 20 << 20
    (large,) = [path for path in (tmp_path / "spool").rglob("*.dcm") if path.stat().st_size > 500 << 20]
    large.unlink()


def _peak_bytes(pid):
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_at_random_moments_loses_nothing_acknowledged(run, tmp_path):
    """`kill -9` of the parent or of acceptors while two senders stream; DICOMGUARD_KILLS says how often."""
    kills = int(os.environ.get("DICOMGUARD_KILLS", "10"))
    seed = int(os.environ.get("DICOMGUARD_KILL_SEED", "1"))
    chance = random.Random(seed)
    node = run()
    acks = [tmp_path / "acks0", tmp_path / "acks1"]
    load = [_sender(node.port, log) for log in acks]
    try:
        for _ in range(kills):
            before = _count(acks)
            # A moment within the life of an instance, once they flow.
            assert until(lambda before=before: _count(acks) > before + 2, 30)
            time.sleep(chance.uniform(0, 0.1))
            if chance.random() < 0.5:
                chance.choice(node.acceptors).kill()
            else:
                node.end(signal.SIGKILL)
                node = run(port=node.port)
    finally:
        for process in load:
            process.kill()
            process.wait()
    node.end()
    found = look_through(tmp_path / "spool")
    acked = read_acks(acks)
    assert len(acked) > kills
    assert acked <= found.instances
    assert not found.damaged
    print(f"{kills} kills, {len(acked)} acknowledged, 0 lost, {len(found.instances - acked)} kept without an answer")


def _count(logs):
    return sum(log.read_bytes().count(b"\n") for log in logs if log.exists())


def _sender(port, log):
    command = [sys.executable, str(SENDERS), "--port", str(port), "--acks", str(log), "--per-association", "7"]
    return subprocess.Popen(command)
