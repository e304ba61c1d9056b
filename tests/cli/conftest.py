"""A node's folder with a few studies in it, as the parts leave it, and a runner for commands on it."""

import json
import struct
import uuid

import pytest
import yaml
from typer.testing import CliRunner

from dicomguard.cli import compose
from dicomguard.cli.app import app
from dicomguard.config import load
from dicomguard.decision import Decision, Disposition, InstanceDecision, Reason, Verdict
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.spool.store import Settling
from dicomguard.study import Uid, study_key, utc_now
from tests.screen.conftest import Site


def _data_set(sop, study):
    """The least that a receiver takes: who it is and where it belongs."""
    uids = ((0x0008, 0x0016, "1.2.840.10008.5.1.4.1.1.1.1"), (0x0008, 0x0018, sop), (0x0020, 0x000D, study))
    found = b""
    for group, element, uid in uids:
        value = uid.encode() + b"\0" * (len(uid) % 2)
        found += struct.pack("<HH2sH", group, element, b"UI", len(value)) + value
    return found


class Desk:
    """Where a person types commands."""

    def __init__(self, folder, **sections):
        config = {
            "data_dir": str(folder / "data"),
            "destinations": [{"name": "ai", "ae_title": "AI", "host": "127.0.0.1", "port": 1}],
            "study": {"quiet_s": 0.001},
            **sections,
        }
        self.path = folder / "node.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.config = load(self.path, {})
        self.spool = compose.open_spool(self.config)

    def put(self, *arguments, **changes):
        return Site.put(self, *arguments, **changes)

    def send(self, *arguments, **changes):
        return Site.send(self, *arguments, **changes)

    def screen(self):
        """What `dicomguard screen` does, until there is nothing left."""
        from dicomguard.screen.screener import Screener

        with compose.open_ledger(self.config, "screen") as ledger, DecodeWorker() as worker:
            now = iter(range(1000))
            examiner = compose.examiner(self.config, worker, compose.load_models(self.config))
            settling = Settling(self.spool, quiet_s=0.001, deadline_s=600)
            screener = Screener(
                self.spool, ledger, examiner, compose.rules(self.config), settling, monotonic=lambda: next(now)
            )
            screener.recover()
            screener.step()
            while screener.step():
                pass

    def decide(
        self, *sops, study="1.2.3", held=False, destinations=("ai",), route=True, reason=Reason.SCORE_OVER_THRESHOLD
    ):
        """A decision as the screener leaves it, without its looking at anything. Returns it and its claim."""
        for sop in sops:
            self.put(_data_set(sop, study), sop, study)
        claim = self.spool.claim(study_key(study))
        found = (Disposition.FORWARD, Verdict.CLEAN, ())
        if held:
            found = (Disposition.QUARANTINE, Verdict.SUSPECT, (reason,))
        with self.ledger() as ledger:
            decision = Decision(
                uuid.uuid4().hex, claim.claim_id, ledger.next_version(study), Uid(study),
                *found, None, None, "enforce",
                "CR1@127.0.0.1", utc_now(), utc_now(), tuple(destinations),
                tuple(
                    InstanceDecision(
                        i.receipt.sop_instance_uid, i.receipt.sop_class_uid, i.receipt.series_instance_uid,
                        i.receipt.transfer_syntax_uid, i.receipt.sha256, i.receipt.size_bytes, i.name,
                        Verdict.CLEAN, (), "quarantine" if held else "forward", "enforce",
                    )
                    for i in claim.instances
                ),
            )  # fmt: skip
            ledger.record_decisions([decision])
        if route:
            self.route(claim, decision)
        return decision, claim

    def route(self, claim, decision):
        names = [instance.file_name for instance in decision.instances]
        if decision.disposition is Disposition.QUARANTINE:
            self.spool.hold(claim, decision.decision_id, names)
        else:
            self.spool.forward(claim, decision.decision_id, names, decision.destinations)
        self.spool.finish(claim)

    def ledger(self, writer="screen"):
        return compose.open_ledger(self.config, writer)

    def configure(self, **sections):
        """Write other sections over those that the file has."""
        self.path.write_text(yaml.safe_dump(yaml.safe_load(self.path.read_text()) | sections))
        self.config = load(self.path, {})

    def run(self, *words):
        """Exit code, standard output, and what of it is JSON."""
        done = CliRunner().invoke(app, [*words, "-c", str(self.path)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        objects = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return done.exit_code, done.stdout, objects


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture
def desk_with_studies(desk):
    """One forwarded image that no bundle is for, one held transfer whose UIDs did not fit."""
    desk.send(seed=1)
    desk.put(b"anything", "1.2.3.4", "1.2.3", fault="uid_mismatch")
    desk.screen()
    return desk
