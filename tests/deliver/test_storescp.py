"""Against DCMTK's storescp, which with +B writes the data set as it came: byte identity seen by other code."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from loopback import CR, CT, EXPLICIT, JPEG

from dicomguard.replay import send
from dicomguard.scu import LinkError, echo
from dicomguard.study import AeTitle, Peer

pytestmark = pytest.mark.peer

# Not from PATH: pynetdicom installs a script of the same name into the environment.
STORESCP = Path("/usr/bin/storescp")


@pytest.fixture
def storescp(tmp_path):
    """A DCMTK SCP on a free port; yields the port and the folder that it writes to."""
    if not STORESCP.exists():
        pytest.skip("DCMTK's storescp is not installed: apt-get install dcmtk")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path / "dcmtk"
    folder.mkdir()
    # +xa: accept all transfer syntaxes that it knows.
    argv = [STORESCP, "+B", "+xa", "--promiscuous", "-aet", "AI", "-od", folder, "-q", str(port)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            echo("127.0.0.1", port, calling_ae="TEST", called_ae="AI")
            break
        except LinkError:
            time.sleep(0.02)
    yield port, folder
    process.terminate()
    process.wait(10)


def data_set_of(path: Path) -> bytes:
    """The data set behind the file meta information, whose length stands in (0002,0000)."""
    data = path.read_bytes()
    length = int.from_bytes(data[140:144], "little")
    return data[144 + length :]


def written(folder: Path) -> dict[str, str]:
    return {path.name.partition(".")[2]: hashlib.sha256(data_set_of(path)).hexdigest() for path in folder.iterdir()}


def test_delivered_instances_reach_dcmtk_byte_for_byte(node, storescp, finish):
    port, folder = storescp
    sent = node.forward("1.2.3.1", "1.2.3.2")
    sent |= node.forward("1.2.4.1", study="2", decision="d2", syntaxes=(CT, JPEG))
    sent |= node.forward("1.2.5.1", study="3", decision="d3", data=None, syntaxes=(CR, EXPLICIT))
    finish(node.courier(port))
    assert written(folder) == {uid: hashlib.sha256(data).hexdigest() for uid, data in sent.items()}
    assert len(sent) == 4
    assert node.waiting() == []


@pytest.mark.data
def test_real_files_are_replayed_byte_for_byte(storescp, data_dir, tmp_path):
    port, folder = storescp
    chosen = tmp_path / "files"
    chosen.mkdir()
    files = [p for p in sorted((data_dir / "dicom").rglob("*")) if p.is_file() and p.stat().st_size < 3_000_000][:150]
    for number, path in enumerate(files):
        shutil.copyfile(path, chosen / f"{number:03}")
    results = send([chosen], Peer(AeTitle("AI"), "127.0.0.1", port), calling=AeTitle("REPLAY"))
    stored = [result for result in results if result.is_stored]
    # DCMTK aborts on a fragment of odd length (PS3.8 annex E.2 forbids them); a cut-off file is sent as it is, too.
    odd = [result for result in results if "aborted" in result.error and result.path.stat().st_size % 2]
    unsent = [result for result in results if not result.is_stored and result not in odd]
    assert len(stored) > 75
    assert all("skipped" in result.error or "accepts no context" in result.error for result in unsent)
    got = set(written(folder).values())
    last = {result.sop_instance_uid: result for result in stored}  # storescp overwrites a UID that comes twice
    for result in last.values():
        assert hashlib.sha256(data_set_of(result.path)).hexdigest() in got, result.path.name
