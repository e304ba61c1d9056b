"""`dicomguard serve` when something is missing: what stops the node, and what must not."""

import subprocess
import sys
from pathlib import Path

import pytest

from dicomguard import phantom
from dicomguard.replay import send
from dicomguard.site_key import SiteKey
from dicomguard.study import AeTitle, Peer
from tests.system.conftest import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def serve(config_path):
    return subprocess.run(
        [sys.executable, "-m", "dicomguard", "serve", "-c", config_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_reception_does_not_wait_for_the_ledger(make_node, ai, tmp_path):
    node = make_node(study={"quiet_s": 0.3})
    in_the_way = node.data_dir / "ledger.db"
    in_the_way.mkdir()
    node.start()
    dataset = phantom.make(7, opacity=False)
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    to = Peer(AeTitle("DICOMGUARD"), "127.0.0.1", node.port)
    (sent,) = send([tmp_path / "one.dcm"], to, calling=AeTitle("REPLAY"))
    assert sent.status == 0
    log = Path(node.config_path).with_name("node.log")
    assert until(node, lambda: "'screen' ended with code 3" in log.read_text()), node.log_end()
    assert ai.digests() == {}
    in_the_way.rmdir()
    assert until(node, lambda: str(dataset.SOPInstanceUID) in ai.digests()), node.log_end()
    assert node.stop() == 0


def test_a_bundle_that_is_not_there_stops_the_first_start(tmp_path):
    from dicomguard.demo import Node

    bundles = [{"path": str(tmp_path / "nowhere")}]
    node = Node(tmp_path, bundles=bundles, ai_port=1, key=SiteKey.fixed("system tests"))
    done = serve(node.config_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "the node stops" in done.stderr


def test_a_mistake_in_the_configuration_ends_at_once_with_its_line(tmp_path):
    path = tmp_path / "node.yaml"
    path.write_text("data_dir: data\nnode:\n  prot: 104\n")
    done = serve(path)
    assert done.returncode == 2
    assert "line 3" in done.stderr
    assert "did you mean 'port'" in done.stderr
    assert not (tmp_path / "data").exists()
