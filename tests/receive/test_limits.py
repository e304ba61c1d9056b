"""Counting associations over processes, the allow list, and what a flood leaves in journal and log."""

import logging
import re
from datetime import UTC, datetime
from ipaddress import ip_network

import pytest

from dicomguard.association import AssociationEvent, AssociationKind
from dicomguard.receive.admission import TOO_MANY, TOO_MANY_FROM_ADDRESS, Admission
from dicomguard.receive.census import Census, shared_memory
from dicomguard.receive.chronicle import Chronicle, FloodFilter
from dicomguard.receive.settings import PermittedPeer
from dicomguard.receive.thinning import Bucket
from dicomguard.spool import journal
from dicomguard.spool.journal import JournalWriter
from dicomguard.spool.store import Spool


def test_acceptors_count_together_and_a_dead_one_counts_no_more():
    memory = shared_memory(2)
    first, second = Census(2, 0, memory), Census(2, 1, memory)
    for census, address in ((first, "10.0.0.1"), (second, "10.0.0.1"), (second, "10.0.0.2")):
        assert census.admit(address, limit=4, limit_per_address=2) is None
    assert first.admit("10.0.0.1", limit=4, limit_per_address=2) == TOO_MANY_FROM_ADDRESS
    assert first.admit("10.0.0.3", limit=4, limit_per_address=2) is None
    assert second.admit("10.0.0.4", limit=4, limit_per_address=2) == TOO_MANY
    first.clear(1)
    assert second.associations == 2
    first.dismiss("10.0.0.1")
    assert second.associations == 1


def test_the_less_busy_acceptor_goes_first():
    memory = shared_memory(2)
    first, second = Census(2, 0, memory), Census(2, 1, memory)
    first.connected()
    assert first.is_busier_than_others()
    assert not second.is_busier_than_others()
    first.disconnected()
    assert not first.is_busier_than_others()


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("10.1.2.3", True),
        ("10.1.3.3", False),
        ("::ffff:10.1.2.3", True),
        ("fe80::1%eth0", True),
        ("fe81::1", False),
        ("127.0.0.1", False),
    ],
)
def test_addresses_are_matched_in_every_way_a_socket_shows_them(address, known):
    peers = (PermittedPeer("A", ip_network("10.1.2.0/24")), PermittedPeer("A", ip_network("fe80::/16")))
    assert Admission("GUARD", peers).knows_address(address) == known


def test_without_peers_nobody_is_known():
    assert not Admission("GUARD", ()).knows_address("127.0.0.1")


def test_a_bucket_lets_a_burst_through_then_a_rate_and_counts_the_rest():
    now = [0.0]
    bucket = Bucket(3, 1, lambda: now[0])
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, None, None]
    now[0] = 1.0
    assert [bucket.take(), bucket.take()] == [2, None]


class Hour:
    """A chronicle on a clock of its own, that hands over every two seconds as an acceptor does."""

    def __init__(self, root, knows=lambda _: False):
        Spool(root).create()
        self.root = root
        self.now_s = 0.0
        self.chronicle = Chronicle(JournalWriter(root), knows=knows, clock=lambda: self.now_s)

    def pass_by(self, *addresses, seconds=3600, each_s=20, kind=AssociationKind.REJECTED):
        for second in range(seconds):
            self.now_s += 1
            for n in range(each_s):
                address = addresses[(second * each_s + n) % len(addresses)]
                self.chronicle.tell(AssociationEvent(datetime.now(UTC), kind, address, detail="1/1/3 stranger"))
            if second % 2:
                self.chronicle.rotate()

    def rows(self, *, is_last=True):
        self.chronicle.rotate(is_last=is_last)
        found = [event for _, events in journal.finished(self.root) for event in events]
        for name, _ in journal.finished(self.root):
            journal.discard(self.root, name)
        return found


def count_of(rows):
    """How many events the rows stand for."""
    return sum(int((re.findall(r"the last of (\d+) from", row["detail"]) or ["1"])[0]) for row in rows)


def test_a_flood_from_one_address_is_a_row_a_minute_that_says_how_much_it_was(tmp_path):
    hour = Hour(tmp_path)
    hour.pass_by("203.0.113.7")
    rows = hour.rows()
    assert 60 <= len(rows) <= 20 + 61
    assert count_of(rows) == 3600 * 20
    assert rows[0]["detail"] == "1/1/3 stranger"
    assert re.fullmatch(r"1/1/3 stranger \(the last of (\d+) from this address: \1 rejected\)", rows[30]["detail"])


def test_more_addresses_make_neither_more_rows_nor_more_memory(tmp_path):
    hour = Hour(tmp_path)
    hour.pass_by(*(f"2001:db8::{n:x}" for n in range(5000)))
    assert all(len(one._callers) <= 17 for one in hour.chronicle._thinnings.values())
    rows = hour.rows()
    assert len(rows) <= 200 + 60 + 17 * 61
    assert count_of(rows) == 3600 * 20
    assert any("from this and other addresses" in row["detail"] for row in rows)


def test_a_flood_from_elsewhere_leaves_a_permitted_peers_troubles_in_sight(tmp_path):
    hour = Hour(tmp_path, knows=lambda address: address == "10.0.0.1")
    hour.pass_by(*(f"2001:db8::{n:x}" for n in range(5000)))
    hour.rows()
    hour.pass_by("10.0.0.1", seconds=3, each_s=1)
    assert [row["detail"] for row in hour.rows(is_last=False)] == ["1/1/3 stranger"] * 3


def test_an_address_that_was_quiet_is_told_in_full_again(tmp_path):
    hour = Hour(tmp_path)
    hour.pass_by("203.0.113.7", seconds=60)
    hour.pass_by("203.0.113.8", seconds=700, each_s=1)
    hour.rows()
    hour.pass_by("203.0.113.7", seconds=1, each_s=2)
    assert [row["detail"] for row in hour.rows(is_last=False)] == ["1/1/3 stranger"] * 2


def test_the_life_of_an_established_association_is_always_told(tmp_path):
    Spool(tmp_path).create()
    chronicle = Chronicle(JournalWriter(tmp_path), clock=lambda: 0.0)
    for kind in (AssociationKind.ACCEPTED, AssociationKind.ABORTED):
        for number in range(1000):
            chronicle.tell(AssociationEvent(datetime.now(UTC), kind, "10.0.0.1", association_id=f"{number}"))
    chronicle.rotate()
    told = [event["kind"] for _, events in journal.finished(tmp_path) for event in events]
    assert (told.count("accepted"), told.count("aborted")) == (1000, 1000)


def test_a_journal_that_cannot_be_written_does_not_stop_reception(tmp_path, caplog):
    chronicle = Chronicle(JournalWriter(tmp_path / "nowhere"))
    chronicle.tell(AssociationEvent(datetime.now(UTC), AssociationKind.ACCEPTED, "10.0.0.1"))
    assert "journal cannot be written" in caplog.text


def test_what_a_peer_calls_itself_stays_on_one_line_of_the_log(tmp_path, caplog):
    Spool(tmp_path).create()
    chronicle = Chronicle(JournalWriter(tmp_path))
    with caplog.at_level(logging.INFO):
        chronicle.tell(
            AssociationEvent(
                datetime.now(UTC), AssociationKind.REJECTED, "10.0.0.1", calling_ae="a\n\x1b[31mERROR all lost"
            )
        )
    chronicle.rotate()
    assert "\n" not in caplog.messages[0]
    assert "\x1b" not in caplog.messages[0]


def test_a_flooded_log_says_how_much_it_left_out():
    flood = FloodFilter()
    record = logging.makeLogRecord({"msg": "again"})
    passed = sum(flood.filter(logging.makeLogRecord({"msg": "again"})) for _ in range(1000))
    assert 200 <= passed < 300
    flood._bucket._tokens = 1.0
    assert flood.filter(record)
    assert "left out" in record.msg
