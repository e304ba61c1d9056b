"""Rulings: for one version, to where it can go, finished when they were interrupted, and what is removed for good."""

import pytest

from dicomguard.decision import Reason
from dicomguard.errors import NotFoundError, ReviewError
from dicomguard.spool.store import Spool
from tests.spool.conftest import everything

WHO = ("--actor", "dr", "--reason", "known device")


def queued(desk, destination="ai"):
    return sorted(item.instance.sop_instance_uid for item in desk.spool.outgoing(destination))


def state(desk, *words):
    return [(row["state"], row["files"]) for row in desk.run("quarantine", "list", *words, "--json")[2]]


def test_a_hold_that_is_about_the_size_of_a_study_says_what_to_do(desk):
    desk.decide("1.1", study="1.2.3", held=True, reason=Reason.UNKNOWN_STUDY_SIZE)
    desk.decide("1.2", study="1.2.4", held=True)
    assert "Look at the images with the highest scores" in desk.run("quarantine", "show", "1.2.3")[1].replace("\n", " ")
    assert "advice" not in desk.run("quarantine", "show", "1.2.4")[1]


class TestDestinations:
    def test_what_had_none_goes_to_those_that_are_configured_now(self, desk):
        decision, _ = desk.decide("1.1", held=True, destinations=())
        assert "what is configured when released" in desk.run("quarantine", "show", decision.decision_id)[1]
        assert desk.run("quarantine", "release", decision.decision_id, *WHO)[0] == 0
        assert queued(desk) == ["1.1"]
        _, _, (row,) = desk.run("deliveries", "list", "--json")
        assert (row["destination"], row["state"]) == ("ai", "queued")
        assert desk.run("verify")[0] == 0

    def test_what_is_configured_no_more_gets_nothing(self, desk):
        desk.decide("1.1", held=True, destinations=("ai", "gone"))
        assert desk.run("quarantine", "release", "1.2.3", *WHO)[0] == 0
        assert (queued(desk), queued(desk, "gone")) == (["1.1"], [])
        assert {row["destination"] for row in desk.run("deliveries", "list", "--json")[2]} == {"ai"}

    @pytest.mark.parametrize("recorded", [("gone",), ()])
    def test_without_any_nothing_is_ruled(self, desk, recorded):
        desk.decide("1.1", held=True, destinations=recorded)
        if not recorded:
            desk.configure(destinations=[])
        with pytest.raises(ReviewError, match="is configured"):
            desk.run("quarantine", "release", "1.2.3", *WHO)
        assert state(desk) == [("held", 1)]


class TestInterrupted:
    """The ruling is recorded, and then the process dies, or the screener has not put the files there yet."""

    @pytest.mark.parametrize(("word", "method"), [("release", "release"), ("reject", "reject")])
    def test_the_same_command_finishes_it(self, desk, monkeypatch, word, method):
        desk.decide("1.1", "1.2", held=True, destinations=())
        done = {"release": "released", "reject": "rejected"}[word]

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Spool, method, die)
            # Typer turns Ctrl-C into exit 130 itself.
            assert desk.run("quarantine", word, "1.2.3", *WHO)[0] != 0
        assert state(desk) == [(done, 2)]
        assert "not moved" in desk.run("quarantine", "show", "1.2.3")[1]
        assert desk.run("quarantine", word, "1.2.3", *WHO)[0] == 0
        assert (state(desk), state(desk, "--all")) == ([], [(done, 0)])
        assert queued(desk) == (["1.1", "1.2"] if word == "release" else [])
        with desk.ledger() as ledger:
            assert len(ledger.reviews()) == 1
        assert desk.run("verify")[0] == 0

    def test_a_ruling_that_was_quicker_than_the_screener_is_finished_too(self, desk):
        decision, claim = desk.decide("1.1", held=True, route=False)
        assert desk.run("quarantine", "release", "1.2.3", *WHO)[0] == 0
        assert desk.run("verify")[0] == 0
        desk.route(claim, decision)
        assert state(desk) == [("released", 1)]
        assert desk.run("quarantine", "release", "1.2.3", *WHO)[0] == 0
        assert queued(desk) == ["1.1"]

    def test_the_screener_may_carry_it_out_at_the_same_moment(self, desk, monkeypatch):
        desk.decide("1.1", held=True)
        real, calls = Spool.release, []

        def meanwhile(spool, *arguments):
            calls.append(arguments)
            if len(calls) == 1:
                real(spool, *arguments)
                raise FileNotFoundError
            return real(spool, *arguments)

        monkeypatch.setattr(Spool, "release", meanwhile)
        assert desk.run("quarantine", "release", "1.2.3", *WHO)[0] == 0
        assert queued(desk) == ["1.1"]

    def test_another_ruling_does_not_finish_it(self, desk, monkeypatch):
        desk.decide("1.1", held=True)
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "reject", lambda *_: 0)
            desk.run("quarantine", "reject", "1.2.3", *WHO)
        with pytest.raises(ReviewError, match="ruled on already: reject"):
            desk.run("quarantine", "release", "1.2.3", *WHO)
        assert queued(desk) == []


class TestVersions:
    @pytest.mark.parametrize("word", ["release", "reject"])
    def test_several_are_ruled_on_one_by_one_unless_one_says_so(self, desk, word):
        one, _ = desk.decide("1.1", held=True)
        two, _ = desk.decide("1.2", held=True)
        three, _ = desk.decide("1.3", held=True)
        with pytest.raises(ReviewError, match="--all-versions") as refused:
            desk.run("quarantine", word, "1.2.3", *WHO)
        assert all(d.decision_id in str(refused.value) for d in (one, two, three))
        assert state(desk) == [("held", 1)] * 3
        assert desk.run("quarantine", word, two.decision_id[:8], *WHO)[0] == 0
        assert state(desk) == [("held", 1)] * 2
        assert len(desk.run("quarantine", word, "1.2.3", *WHO, "--all-versions", "--json")[2]) == 2
        assert state(desk) == []
        assert queued(desk) == (["1.1", "1.2", "1.3"] if word == "release" else [])

    def test_a_few_characters_name_nothing(self, desk):
        decision, _ = desk.decide("1.1", held=True)
        with pytest.raises(NotFoundError, match="8 or more"):
            desk.run("quarantine", "show", decision.decision_id[:7])
        assert desk.run("quarantine", "show", decision.decision_id[:8])[0] == 0


class TestPurge:
    def test_rejected_files_go_and_the_decision_stays(self, desk):
        decision, _ = desk.decide("1.1", "1.2", held=True)
        with pytest.raises(ReviewError, match="only rejected"):
            desk.run("quarantine", "purge", "1.2.3", *WHO)
        desk.run("quarantine", "reject", "1.2.3", *WHO)
        with pytest.raises(ReviewError, match="actor and a reason"):
            desk.run("quarantine", "purge", "1.2.3", "--actor", "dr", "--reason", " ")
        assert len(list(everything(desk.spool))) == 2
        code, _, (row,) = desk.run("quarantine", "purge", "1.2.3", *WHO, "--json")
        assert (code, row["state"], row["purged"], row["removed"]) == (0, "rejected", True, 2)
        assert list(everything(desk.spool)) == []
        _, _, (event,) = desk.run("events", "--kind", "rejected_purged", "--json")
        assert (event["subject_uid"], event["detail"]["decision_id"]) == ("1.2.3", decision.decision_id)
        assert (event["detail"]["actor"], len(event["detail"]["instances"])) == ("dr", 2)
        assert "files removed" in desk.run("quarantine", "show", "1.2.3")[1]
        assert desk.run("verify") == (0, "Nothing is wrong.\n", [])
        with desk.ledger() as ledger:
            assert ledger.is_held("1.2.3")

    def test_an_interrupted_one_is_finished(self, desk, monkeypatch):
        desk.decide("1.1", held=True)
        desk.run("quarantine", "reject", "1.2.3", *WHO)
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "purge_rejected", lambda *_: 0)
            desk.run("quarantine", "purge", "1.2.3", *WHO)
        assert len(list(everything(desk.spool))) == 1
        assert desk.run("quarantine", "purge", "1.2.3", *WHO, "--json")[2][0]["removed"] == 1
        assert list(everything(desk.spool)) == []
        assert len(desk.run("events", "--kind", "rejected_purged", "--json")[2]) == 1

    def test_released_and_held_ones_stay_and_several_are_named(self, desk):
        desk.decide("1.1", held=True)
        desk.run("quarantine", "release", "1.2.3", *WHO)
        with pytest.raises(ReviewError, match="only rejected"):
            desk.run("quarantine", "purge", "1.2.3", *WHO)
        for sop in ("1.2", "1.3"):
            desk.decide(sop, held=True)
        desk.run("quarantine", "reject", "1.2.3", *WHO, "--all-versions")
        with pytest.raises(ReviewError, match="Name one"):
            desk.run("quarantine", "purge", "1.2.3", *WHO)
        assert len([place for place, _ in everything(desk.spool) if place == "rejected"]) == 2
