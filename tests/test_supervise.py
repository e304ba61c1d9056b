"""Parts as real child processes, on a clock that the test turns."""

import logging
import os
import sys
import threading
import time

import pytest

from dicomguard.supervise import Part, Supervisor

# A part as `dicomguard receive --supervised` is one: it ends with its standard input, or by a signal.
STAYS = "import sys; sys.stdin.read()"


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def supervise(clock):
    made = []

    def make(**programs):
        parts = [Part(name, [sys.executable, "-S", "-c", program], grace_s=10.0) for name, program in programs.items()]
        made.append(Supervisor(parts, clock))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def wait_for_end(part):
    """Until the child has ended; the supervisor has not looked yet."""
    os.waitid(os.P_PID, part.process.pid, os.WEXITED | os.WNOWAIT)


def test_a_wrong_configuration_at_the_start_stops_the_node_with_code_2(supervise, clock):
    supervisor = supervise(receive=STAYS, screen="raise SystemExit(2)")
    receive, screen = supervisor.parts
    assert supervisor.step() is None
    wait_for_end(screen)
    clock.now_s += 59
    assert supervisor.step() == 2
    process = receive.process
    supervisor.stop()
    assert process.returncode is not None


def test_a_bundle_that_changed_later_does_not_stop_reception(supervise, clock, caplog):
    supervisor = supervise(receive=STAYS, screen="import sys; sys.exit(2 if sys.stdin.read() else 0)")
    receive, screen = supervisor.parts
    supervisor.step()
    reception = receive.process.pid
    clock.now_s += 3600
    screen.argv = [sys.executable, "-S", "-c", "raise SystemExit(2)"]
    screen.process.kill()
    starts = []
    for _ in range(9):
        wait_for_end(screen)
        assert supervisor.step() is None
        assert screen.process is None
        starts.append(screen.next_start_s - clock.now_s)
        clock.now_s = screen.next_start_s
        assert supervisor.step() is None
        assert screen.process is not None
    assert receive.process.pid == reception
    assert receive.process.poll() is None
    assert starts == [0, 0, 1, 2, 4, 8, 16, 30, 30]
    critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 8
    assert all("'screen' cannot run" in text and "dicomguard doctor" in text for text in critical)


def test_a_mended_part_runs_again(supervise, clock):
    supervisor = supervise(screen=STAYS)
    (screen,) = supervisor.parts
    supervisor.step()
    clock.now_s += 61
    healthy, screen.argv = screen.argv, [sys.executable, "-S", "-c", "raise SystemExit(2)"]
    screen.process.kill()
    for _ in range(2):
        wait_for_end(screen)
        supervisor.step()
        clock.now_s = screen.next_start_s
        if screen.restarts == 2:
            screen.argv = healthy
        supervisor.step()
    assert screen.restarts == 2
    assert screen.process.poll() is None


def test_a_part_that_dies_at_the_start_for_another_reason_is_started_again(supervise, clock):
    supervisor = supervise(receive=STAYS, deliver="raise SystemExit(3)")
    _, deliver = supervisor.parts
    supervisor.step()
    wait_for_end(deliver)
    assert supervisor.step() is None
    assert supervisor.step() is None
    assert deliver.restarts == 1
    assert deliver.process is not None


def test_a_part_that_the_system_will_not_start_is_tried_again_and_ends_nothing(supervise, clock, caplog):
    supervisor = supervise(receive=STAYS, screen=STAYS)
    receive, screen = supervisor.parts
    supervisor.step()
    reception = receive.process.pid
    healthy, screen.argv = screen.argv, ["/nowhere/at/all"]  # an OSError, as when no descriptor is left
    screen.process.kill()
    wait_for_end(screen)
    for _ in range(100):
        assert supervisor.step() is None
        assert screen.process is None
        clock.now_s += 1
    assert caplog.text.count("'screen' cannot be started") == 2
    screen.argv = healthy
    assert supervisor.step() is None
    assert screen.process.poll() is None
    assert receive.process.pid == reception


def test_run_returns_the_code_and_leaves_no_child(supervise):
    supervisor = supervise(receive=STAYS, screen="raise SystemExit(2)")
    assert supervisor.run(threading.Event()) == 2
    assert [part.process for part in supervisor.parts] == [None, None]


def test_a_stop_is_clean_and_in_the_order_of_the_parts(supervise, tmp_path):
    program = (
        "import signal, sys, threading; stop = threading.Event(); signal.signal(signal.SIGTERM, lambda *_: stop.set());"
        "log = open({path!r}, 'a'); print('up', flush=True, file=log); stop.wait(); print('{name}', file=log)"
    )
    path = str(tmp_path / "log")
    supervisor = supervise(**{name: program.format(name=name, path=path) for name in ("receive", "screen")})
    stop = threading.Event()
    codes = []
    runner = threading.Thread(target=lambda: codes.append(supervisor.run(stop)))
    runner.start()
    deadline = time.monotonic() + 10
    while not (tmp_path / "log").exists() or (tmp_path / "log").read_text().count("up") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    runner.join(10)
    assert codes == [0]
    assert (tmp_path / "log").read_text().split() == ["up", "up", "receive", "screen"]


def test_a_part_that_does_not_listen_is_killed_after_its_grace(supervise, tmp_path, caplog):
    path = str(tmp_path / "up")
    deaf = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({path!r}, 'w'); time.sleep(60)"
    supervisor = supervise(receive=deaf)
    (part,) = supervisor.parts
    part.grace_s = 0.1
    supervisor.step()
    deadline = time.monotonic() + 10
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = part.process
    supervisor.stop()
    assert process.returncode == -9
    assert "did not end within" in caplog.text
