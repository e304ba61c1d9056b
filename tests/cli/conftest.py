"""A node's folder with a few studies in it, as the parts leave it, and a runner for commands on it."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from dicomguard.cli import compose
from dicomguard.cli.app import app
from dicomguard.config import load
from dicomguard.pixels.sandbox import DecodeWorker
from dicomguard.spool.store import Settling
from tests.screen.conftest import Site


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
