"""The whole node on its embedded defaults, on loopback, with phantoms: clean ones, and ones attacked until they flip.

A fixed, printed key and fixed seeds, so that it does the same every time. Everything is real but the patients: the node
runs as its own processes, the studies come over DICOM, and a second node of our own stands in for the hospital's AI.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self

import torch
import yaml
from pydicom.dataset import Dataset

from dicomguard import phantom
from dicomguard.attacks.forge import forge
from dicomguard.attacks.ladder import Ladder, early_stopped_bim
from dicomguard.attacks.native import native_margins
from dicomguard.decision import Decision, Disposition
from dicomguard.errors import DicomguardError
from dicomguard.ledger import Ledger
from dicomguard.pixels import reader
from dicomguard.receive.server import Receiver
from dicomguard.receive.settings import PermittedPeer, ReceiveSettings
from dicomguard.replay import send
from dicomguard.scoring import head
from dicomguard.scoring.scorer import Scorer
from dicomguard.site_key import SiteKey
from dicomguard.spool.journal import JournalWriter
from dicomguard.spool.store import Spool
from dicomguard.study import AeTitle, Peer

KEY_PHRASE = "dicomguard demo"
CLEAN_SEEDS = (101, 102, 103, 104, 105, 106)
ATTACKED_SEEDS = (201, 202, 203, 205, 214, 216)
_QUIET_S = 2.0
_PATIENCE_S = 150.0

Truth = Literal["clean", "attacked"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Specimen:
    """One study that is sent: what is true of it, and what the classifier was before and is now."""

    name: str
    truth: Truth
    dataset: Dataset
    shows: str
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a specimen ended. `is_right`: clean ones arrived unaltered at the AI node, attacked ones are held."""

    specimen: Specimen
    decision: Decision | None
    arrived: bool

    @property
    def is_right(self) -> bool:
        """True when this study ended where it should."""
        if self.decision is None:
            return False
        if self.specimen.truth == "attacked":
            return self.decision.disposition is Disposition.QUARANTINE and not self.arrived
        return self.decision.disposition is Disposition.FORWARD and self.arrived


def make_specimens(
    scorer: Scorer, progress: Progress, clean: Sequence[int] = CLEAN_SEEDS, attacked: Sequence[int] = ATTACKED_SEEDS
) -> list[Specimen]:
    """Clean phantoms, and attacked ones that still flip the classifier after rounding to 12 stored bits.

    Even seeds show an opacity. Raises DicomguardError when an attack does not come about.
    """
    total = len(clean) + len(attacked)
    specimens = []
    for seed in clean:
        dataset = phantom.make(seed, opacity=seed % 2 == 0)
        specimens.append(Specimen(f"phantom {seed}", "clean", dataset, _shows(seed)))
        progress("phantoms", len(specimens), total)
    for seed in attacked:
        specimens.append(attack(scorer, seed))
        progress("phantoms", len(specimens), total)
    return specimens


def _shows(seed: int) -> str:
    return "opacity" if seed % 2 == 0 else "no opacity"


def attack(scorer: Scorer, seed: int) -> Specimen:
    """Early-stopped BIM at native resolution, with just enough margin that the flip survives rounding."""
    source = phantom.make(seed, opacity=seed % 2 == 0)
    (image,) = reader.images(source)
    pixels = torch.from_numpy(image.pixels).unsqueeze(0)
    before = answer(scorer, source)
    margins = native_margins(scorer, pixels)
    for kappa in (0.0, 0.1, 0.3):
        found = early_stopped_bim(margins, pixels, Ladder(kappa=kappa))
        if not bool(found.flipped[0]):
            break
        forged = forge(source, image, found.pixels[0].numpy(), description="adversarial test object, early-stopped BIM")
        if answer(scorer, forged) != before:
            return Specimen(f"phantom {seed}", "attacked", forged, _shows(seed), float(found.strength[0]))
    raise DicomguardError(f"No attack on phantom {seed} survives rounding to 12 bits; the demo has nothing to show.")


def answer(scorer: Scorer, dataset: Dataset) -> str:
    """The classifier's answer to the one frame of a data set, read from its integers."""
    (odds,) = scorer.answer(scorer.prepare(reader.images(dataset)).pixels).log_odds
    return scorer.head.name(head.answer(odds))


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AiStandIn:
    """What the hospital's AI would be: a Storage SCP that takes everything and remembers the digests."""

    def __init__(self, folder: Path) -> None:
        spool = Spool(folder)
        spool.create()
        peers = (PermittedPeer(AeTitle("DICOMGUARD"), ip_network("127.0.0.0/8")),)
        settings = ReceiveSettings(ae_title=AeTitle("AI"), peers=peers, port=0)
        self._spool = spool
        self._receiver = Receiver(settings, spool.incoming(reserve_bytes=0), JournalWriter(folder))

    def __enter__(self) -> Self:
        self._receiver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.stop(1.0)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._receiver.port

    def digests(self) -> dict[str, str]:
        """SOP Instance UID -> SHA-256 of the data set, for everything that arrived."""
        found = {}
        for key in self._spool.arrivals():
            for instance in self._spool.waiting(key):
                found[str(instance.sop_instance_uid)] = instance.receipt.sha256
        return found


class Node:
    """The node as a hospital would run it: `dicomguard serve` with a configuration file, in processes of its own."""

    def __init__(
        self, folder: Path, *, bundles: Sequence[dict[str, Any]], ai_port: int, key: SiteKey, **sections: Any
    ) -> None:
        """`bundles` as in the configuration; `sections` replace the demo's own. A used folder: FileExistsError."""
        self.config_path = folder / "dicomguard.yaml"
        self.port = free_port()
        self.data_dir = folder / "node"
        self._log = folder / "node.log"
        key.save(self.data_dir / "keys" / "site.key")
        peers = ("REPLAY", "STORESCU", "ECHOSCU")
        config: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "node": {"ae_title": "DICOMGUARD", "host": "127.0.0.1", "port": self.port},
            "peers": [{"ae_title": name, "host": "127.0.0.1"} for name in peers],
            "study": {"quiet_s": _QUIET_S},
            "bundles": list(bundles),
            "destinations": [{"name": "ai", "ae_title": "AI", "host": "127.0.0.1", "port": ai_port}],
            **sections,
        }
        self.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens. Raises DicomguardError with the log's end when it does not."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "dicomguard", "serve", "-c", str(self.config_path)]
            environ = {name: value for name, value in os.environ.items() if not name.startswith("DICOMGUARD_")}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise DicomguardError(f"The node did not start: {self.log_end()}")

    def check(self) -> None:
        """Raises DicomguardError, with the log's end, when the node has ended by itself."""
        if self._process is None or self._process.poll() is not None:
            raise DicomguardError(f"The node stopped: {self.log_end()}")

    def log_end(self) -> str:
        """The last lines of the node's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:]) if self._log.exists() else "no log"

    def stop(self) -> int:
        """SIGTERM, and wait. Returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def wait(self) -> None:
        """Until it ends, or somebody interrupts."""
        assert self._process is not None
        self._process.wait()


def write_files(specimens: Sequence[Specimen], folder: Path) -> list[Path]:
    """One Part 10 file a study, and a manifest with the truth beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with (folder / "manifest.jsonl").open("w") as manifest:
        for specimen in specimens:
            path = folder / f"{specimen.name.replace(' ', '-')}-{specimen.truth}.dcm"
            specimen.dataset.save_as(path, enforce_file_format=True)
            row = {
                "sop_instance_uid": str(specimen.dataset.SOPInstanceUID),
                "path": path.name,
                "label": specimen.shows,
                "truth": specimen.truth,
                "attack": None if specimen.truth == "clean" else "early-stopped BIM",
                "eps": specimen.strength,
            }
            manifest.write(json.dumps(row) + "\n")
            paths.append(path)
    return paths


def send_all(paths: Sequence[Path], node: Node) -> None:
    """C-STORE every file to the node. Raises DicomguardError when one is not taken."""
    sent = send(paths, Peer(AeTitle("DICOMGUARD"), "127.0.0.1", node.port), calling=AeTitle("REPLAY"))
    refused = [item for item in sent if item.status != 0]
    if refused:
        raise DicomguardError(f"The node refused {len(refused)} of {len(paths)} instances: {node.log_end()}")


def outcomes(ledger: Ledger, specimens: Sequence[Specimen], arrived: dict[str, str]) -> list[Outcome]:
    """What has become of each specimen so far."""
    found = []
    for specimen in specimens:
        decisions = list(ledger.decisions(study_uid=str(specimen.dataset.StudyInstanceUID)))
        decision = decisions[-1] if decisions else None
        digest = arrived.get(str(specimen.dataset.SOPInstanceUID))
        is_there = decision is not None and digest == decision.instances[0].sha256
        found.append(Outcome(specimen, decision, is_there))
    return found


def watch(
    node: Node,
    ledger: Ledger,
    specimens: Sequence[Specimen],
    arrived: Callable[[], dict[str, str]],
    progress: Progress,
) -> list[Outcome]:
    """Wait until every study is decided, and every forwarded one has arrived, or patience ends.

    Raises DicomguardError when the node ends meanwhile.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        node.check()
        found = outcomes(ledger, specimens, arrived())
        decided = [o for o in found if o.decision is not None]
        forwarded = [o for o in decided if o.decision and o.decision.disposition is Disposition.FORWARD]
        progress("decided", len(decided), len(found))
        progress("arrived", sum(o.arrived for o in forwarded), len(forwarded))
        if len(decided) == len(found) and all(o.arrived for o in forwarded):
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(0.3)


def clear(folder: Path) -> None:
    """Remove what a demo left."""
    shutil.rmtree(folder, ignore_errors=True)
