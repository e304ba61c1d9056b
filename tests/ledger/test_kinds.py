"""docs/ledger.md names every kind of event, and which are alarms."""

import re
from pathlib import Path

from dicomguard.ledger import EventKind
from dicomguard.ledger.kinds import ALARMS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "ledger.md"


def test_every_kind_of_event_is_in_the_table() -> None:
    _, table = DOCS.read_text("utf-8").split("| event | alarm | from |\n|---|---|---|\n")
    rows = [line.split("|") for line in table.split("\n\n")[0].splitlines()]
    told = {name: row[2].strip() == "yes" for row in rows for name in re.findall(r"`([a-z_]+)`", row[1])}
    assert told == {kind.value: kind in ALARMS for kind in EventKind}
