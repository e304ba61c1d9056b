"""Forged studies through the live node with DCMTK's storescu: every one accounted for, and the same offline."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dicomguard import phantom
from dicomguard.config import load
from tests.system.conftest import until

BUNDLE = Path(__file__).parents[2] / "config" / "bundles" / "phantom"
STORESCU = Path("/usr/bin/storescu")
STUDIES = 10
ATTACK = "BIM 0.008"  # ten gradients an image; most of the phantoms flip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not STORESCU.exists(), reason="DCMTK is not installed: apt-get install dcmtk"),
]


def dicomguard(*words, code=0):
    command = [sys.executable, "-m", "dicomguard", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_forged_set_is_accounted_for_and_comes_out_the_same_offline(make_node, tmp_path):
    from dicomguard.cli import compose

    clean = tmp_path / "clean"
    clean.mkdir()
    for seed in range(300, 300 + STUDIES):
        for dataset in phantom.study(
            seed, opacity=seed % 2 == 0, rows=256, columns=256, images=2 if seed == 305 else 1
        ):
            dataset.save_as(clean / f"{seed}-{dataset.InstanceNumber}.dcm", enforce_file_format=True)
    words = ("--clean", clean, "--out", tmp_path / "set", "--attack", ATTACK, "--with-clean", "--keep-failed")
    (forged,) = dicomguard("lab", "forge", BUNDLE, *words)
    count = 2 * (STUDIES + 1)
    assert (forged["sent"], forged["clean"]) == (count, STUDIES + 1)
    assert forged["flipped"] > STUDIES / 2

    bundles = [{"path": str(BUNDLE), "match": {"Modality": ["CR", "DX"]}}]
    node = make_node(bundles=bundles, study={"quiet_s": 1.0})
    node.start()
    aims = ("-aet", "STORESCU", "-aec", "DICOMGUARD", "127.0.0.1", str(node.port))
    # All but one go out with somebody else's sender, the last one with our own, which reads the manifest.
    manifest = tmp_path / "set" / "manifest.jsonl"
    *most, last = [json.loads(line)["path"] for line in manifest.read_text().splitlines()]
    subprocess.run([STORESCU, *aims, *(manifest.parent / path for path in most)], check=True)
    config = ("-c", node.config_path)
    with compose.open_ledger(load(node.config_path, {}), "cli") as ledger:

        def decided():
            return sum(len(decision.instances) for decision in ledger.decisions())

        assert until(node, lambda: decided() >= count - 1, within_s=200, pause_s=1), node.log_end()
        (joined,) = dicomguard("lab", "join", manifest, *config, code=1)
        assert (joined["accounted"], joined["statuses"]["never arrived"]) == (count - 1, 1)
        sent = dicomguard("replay", "--manifest", manifest, "--to", f"127.0.0.1:{node.port}", "--called", "DICOMGUARD")
        # It sends all of them: those that the node has come again with the same bytes, and are no second decision.
        assert Counter(item["status"] for item in sent) == {"0x0000": count}
        assert Path(sent[-1]["path"]) == manifest.parent / last
        assert until(node, lambda: decided() >= count, within_s=100, pause_s=1), node.log_end()
    sent_manifest = manifest.with_name("manifest.sent.jsonl")
    (found,) = dicomguard("lab", "join", sent_manifest, *config)
    print(json.dumps({name: found[name] for name in ("statuses", "latency")}))
    assert (found["files"], found["accounted"], found["arrived_twice"]) == (count, count, 0)
    attack = found["attacks"][ATTACK]
    assert attack["flagged"]["count"] == forged["flipped"]
    assert attack["flagged"]["rate"] > 0.5
    assert attack["roc"]["area"] > 0.9
    assert found["clean"]["flagged"]["count"] == STUDIES + 1
    assert found["clean"]["flagged"]["rate"] < 0.2
    assert found["latency"]["p50_s"] >= 1.0  # the node waits that long for late images
    assert {p.name for p in (tmp_path / "set" / "joined").iterdir()} == {"join.json", "join.md", "join.png"}

    (again,) = dicomguard("lab", "offline", manifest, *config)
    print(json.dumps(again))
    assert (again["agree"], again["decisions"]) == (2 * STUDIES, 2 * STUDIES)
    assert again["instances_recomputed"] == count
    assert again["largest_distance"] < 0.02
    assert dicomguard("verify", *config) == []
