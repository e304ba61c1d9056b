import socket
from pathlib import Path

import pytest

from dicomguard.config import load, parse
from dicomguard.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "config" / "dicomguard.yaml"


def read(text, environ=None):
    return parse(text, source="node.yaml", folder=Path("/etc/dicomguard"), environ=environ or {})


def test_the_shipped_file_loads_and_lets_in_nobody_but_this_host():
    config = load(SHIPPED, {})
    assert {peer.host for peer in config.peers} == {"127.0.0.1"}
    assert config.node.host == "127.0.0.1"
    assert config.data_dir == SHIPPED.parents[1] / "var"
    assert config.ledger_url == f"sqlite:///{config.data_dir}/ledger.db"


def test_the_defaults_of_the_policy_fail_closed():
    policy = read("data_dir: x").policy
    assert (policy.unscorable, policy.unmatched) == ("forward", "forward")
    assert (policy.inconclusive, policy.failed, policy.overdue) == ("quarantine", "quarantine", "quarantine")
    assert policy.unknown_size == "quarantine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            "data_dir: x\nnode:\n  prot: 3", ["line 3", "node.prot", "did you mean 'port'"], id="misspelt-key"
        ),
        pytest.param("data_dir: x\nxyzzy: 1", ["line 2", "unknown key 'xyzzy'", "known here"], id="unknown-key"),
        pytest.param("data_dir: x\nnode:\n  port: 70000", ["line 3", "node.port", "65535"], id="port-too-high"),
        pytest.param("data_dir: x\nnode: 3", ["line 2", "'node' is a section", "ae_title"], id="section-is-no-mapping"),
        pytest.param(
            "data_dir: x\nnode: {ae_title: ABCDEFGHIJKLMNOPQ}", ["line 2", "1 to 16", "MODALITY1"], id="ae-too-long"
        ),
        pytest.param(
            "data_dir: x\npeers:\n- {ae_title: A, host: ct-1}",
            ["line 3", "peers.0.host", "10.1.2.0/24"],
            id="host-name",
        ),
        pytest.param(
            "data_dir: x\nbundles:\n- path: b\n  match:\n    Modalty: [CT]",
            ["line 5", "'Modalty' is no DICOM keyword"],
            id="no-keyword",
        ),
        pytest.param(
            "data_dir: x\nbundles:\n- {path: b, mode: enforc}", ["line 3", "'enforce' or 'shadow'"], id="unknown-mode"
        ),
        pytest.param("data_dir: x\npolicy: {failed: forward}", ["policy.failed: forward is refused"], id="fail-open"),
        pytest.param("node: {port: 1}", ["'data_dir' is missing"], id="no-data-dir"),
        pytest.param("data_dir: a\ndata_dir: b", ["line 2", "second time"], id="key-twice"),
        pytest.param("data_dir: [", ["no valid YAML"], id="no-yaml"),
        pytest.param("- a", ["line 1", "must hold keys"], id="a-list"),
        pytest.param(
            "data_dir: x\ndestinations:\n- {name: ../x, ae_title: A, host: h, port: 1}", ["line 3", "folder"], id="path"
        ),
        pytest.param(
            "data_dir: x\ndestinations:\n- {name: a, ae_title: A, host: h, port: 1}\n"
            "- {name: a, ae_title: B, host: h, port: 2}",
            ["same name"],
            id="destination-twice",
        ),
        pytest.param(
            "data_dir: x\nstudy:\n  quiet_s: 30\n  deadline_s: 30",
            ["line 2", "deadline_s (30) must be longer than quiet_s (30)", "overdue before it counts as complete"],
            id="deadline-before-quiet",
        ),
        pytest.param(
            "data_dir: x\nbundles:\n- path: b\n  match:\n    Modality: []",
            ["line 5", "bundles.0.match.Modality", "fits no image", "[CR, DX]"],
            id="match-nothing",
        ),
        pytest.param(
            "data_dir: x\nbundles: [{path: b, match: }]", ["line 2", "'bundles.0.match' holds keys"], id="no-match"
        ),
        pytest.param(
            "data_dir: x\nbundles: [{path: a}, {path: b, match: {Modality: CR}}]",
            ["line 2", "bundle 1 is never used: bundle 0", "has no match"],
            id="bundle-behind-one-for-everything",
        ),
        pytest.param(
            "data_dir: x\nbundles:\n- {path: a, match: {Modality: [CR, DX]}}\n"
            "- {path: b, match: {Modality: CR, BodyPartExamined: CHEST}}",
            ["line 2", "bundle 1 is never used: bundle 0", "no narrower"],
            id="bundle-behind-a-wider-one",
        ),
        pytest.param("data_dir: x\nretention_days: .inf", ["line 2", "retention_days", "finite"], id="infinite"),
        pytest.param("data_dir: x\nretention_days: .nan", ["line 2", "retention_days"], id="no-number"),
        pytest.param(
            "data_dir: x\nstudy: {quiet_s: .inf}", ["line 2", "study.quiet_s", "finite"], id="infinitely-quiet"
        ),
        pytest.param("data_dir: x\nretention_days: yes", ["line 2", "true or false; write a number"], id="yes-days"),
        pytest.param("data_dir: x\nnode: {port: true}", ["line 2", "node.port", "true or false"], id="true-port"),
        pytest.param("data_dir: x\nnode: {ae_title: ON}", ["line 2", "node.ae_title", "in quotes"], id="title-on"),
        pytest.param("data_dir: x\nnode: {ae_title: 123}", ["line 2", "node.ae_title", "in quotes"], id="title-123"),
        pytest.param(
            "data_dir: x\ndelivery: {retry_first_s: 10, retry_max_s: 5}",
            ["line 2", "retry_first_s (10) must not be longer than retry_max_s (5)"],
            id="first-retry-after-the-longest",
        ),
        pytest.param("data_dir: x\nnode: {host: pacs}", ["line 2", "node.host", "0.0.0.0"], id="listen-on-a-name"),
        *(
            pytest.param(
                f"data_dir: x\ndestinations: [{{name: a, ae_title: A, host: {host}, port: 1}}]",
                ["line 2", "destinations.0.host", "ai.example.org"],
                id=name,
            )
            for name, host in (("no-host", "''"), ("host-with-space", "'ai 1'"), ("host-is-url", "'http://ai'"))
        ),
        *(
            pytest.param(
                f"data_dir: x\nnode: {{host: {here}}}\n"
                f"destinations: [{{name: a, ae_title: A, host: {to}, port: 11112}}]",
                ["'a' is this node itself", "come back for ever", "AI node's address"],
                id=f"loop-{here}-{to}",
            )
            for here, to in (
                ("127.0.0.1", "127.0.0.1"),
                ("127.0.0.1", "localhost"),
                ("0.0.0.0", "127.0.0.1"),
                ("0.0.0.0", "0.0.0.0"),
                ("0.0.0.0", socket.gethostname()),
                ("10.1.2.3", "10.1.2.3"),
            )
        ),
        *(
            pytest.param(f"data_dir: x\nledger: {url}", ["line 2", "sqlite:///ledger.db"], id=f"ledger-{name}")
            for name, url in (
                ("path", "ledger.db"),
                ("one-slash", "sqlite:/ledger.db"),
                ("port", "postgresql://u:secret@h:54x/d"),
                ("memory", "'sqlite:///:memory:'"),
                ("none", "sqlite://"),
            )
        ),
        pytest.param("data_dir: x\ndevice: gpu", ["line 2", "device", "cuda:1"], id="unknown-device"),
        pytest.param("data_dir: &a [*a]", ["line 1", "anchor", "refers to itself"], id="anchor-in-itself"),
        pytest.param("data_dir: x\nnode: &a\n  host: *a", ["anchor", "refers to itself"], id="mapping-in-itself"),
        pytest.param("[" * 2000, ["nested too deeply"], id="depth"),
        pytest.param(
            "data_dir: x\npeers:",
            ["line 2", "'peers' is a list", "ae_title: ..., host: ...", "'peers: []'"],
            id="peers",
        ),
        pytest.param(
            "data_dir: x\npeers: {ae_title: A, host: 10.0.0.1}", ["line 2", "'peers' is a list"], id="peers-no-list"
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_to_write(text, words):
    with pytest.raises(ConfigError) as caught:
        read(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "ledger",
    ["postgresql://u:secret@h:54x/d", "[postgresql://u:secret@h/d]", "postgresql://u:secret@h:54/d: x", "'u:secret@h"],
    ids=["port", "list", "no-yaml", "open-quote"],
)
def test_the_password_in_a_ledger_url_is_not_repeated(ledger):
    with pytest.raises(ConfigError, match="line 2") as caught:
        read(f"data_dir: x\nledger: {ledger}")
    assert "secret" not in str(caught.value)


def test_a_gateway_may_send_to_its_own_port_of_another_host_and_to_another_port_of_its_own():
    ends = [("0.0.0.0", "ai.example.org", 11112), ("127.0.0.1", "127.0.0.1", 11113), ("10.1.2.3", "127.0.0.1", 11112)]
    for here, host, port in ends:
        config = read(
            f"data_dir: x\nnode: {{host: {here}}}\ndestinations: [{{name: a, ae_title: A, host: {host}, port: {port}}}]"
        )
        assert config.destinations[0].host == host


def test_one_accepted_value_needs_no_list():
    config = read("data_dir: x\nbundles: [{path: b, match: {Modality: CR}}]")
    assert config.bundles[0].match == {"Modality": ("CR",)}


def test_a_narrower_bundle_goes_before_a_wider_one_and_the_one_for_everything_last():
    text = (
        "data_dir: x\nbundles: [{path: a, match: {Modality: [CR]}}, {path: b, match: {Modality: [CR, DX]}}, {path: c}]"
    )
    assert [bundle.path.name for bundle in read(text).bundles] == ["a", "b", "c"]


def test_an_anchor_may_be_used_twice():
    config = read("data_dir: x\nbundles: [{path: a, match: {Modality: &m [CR]}}, {path: b, match: {StationName: *m}}]")
    assert config.bundles[1].match == {"StationName": ("CR",)}


def test_an_hour_passes_before_a_study_is_overdue():
    assert read("data_dir: x").study.deadline_s == load(SHIPPED, {}).study.deadline_s == 3600


def test_all_mistakes_are_named_at_once_in_the_order_of_the_file():
    with pytest.raises(ConfigError) as caught:
        read("data_dir: x\nnode:\n  prot: 3\nstudy: {quiet_s: -1}\nfoo: 1")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["node.yaml, line 3", "node.yaml, line 4", "node.yaml, line 5"]


def test_failed_may_be_forwarded_where_every_bundle_is_in_shadow():
    config = read("data_dir: x\npolicy: {failed: forward}\nbundles: [{path: b, mode: shadow}]")
    assert config.policy.failed == "forward"
    assert config.mode == "shadow"


def test_the_environment_overrides_scalars_lists_and_keywords():
    config = read(
        "data_dir: x\npeers: [{ae_title: A, host: 10.0.0.1}]\nbundles: [{path: b, match: {Modality: [CT]}}]",
        {
            "DICOMGUARD_NODE__PORT": "104",
            "DICOMGUARD_PEERS__0__AE_TITLE": "CT1",
            "DICOMGUARD_PEERS__1__AE_TITLE": "CT2",
            "DICOMGUARD_PEERS__1__HOST": "10.0.0.0/8",
            "DICOMGUARD_BUNDLES__0__MATCH__MODALITY": "[CR, DX]",
            "DICOMGUARD_TEST_DATA": "not configuration",
            "UNRELATED": "1",
        },
    )
    assert config.node.port == 104
    assert [(peer.ae_title, peer.host) for peer in config.peers] == [("CT1", "10.0.0.1"), ("CT2", "10.0.0.0/8")]
    assert config.bundles[0].match == {"Modality": ("CR", "DX")}


@pytest.mark.parametrize("title", ["123", "ON", "1e3", "2026-01-01", "007", "null", "~"])
def test_a_variable_that_yaml_takes_for_something_else_is_the_text_that_it_is(title):
    assert read("data_dir: x", {"DICOMGUARD_NODE__AE_TITLE": title}).node.ae_title == title


def test_a_variable_with_text_does_not_hide_another_mistake():
    with pytest.raises(ConfigError) as caught:
        read("data_dir: x\nstudy: {quiet_s: -1}", {"DICOMGUARD_NODE__AE_TITLE": "123"})
    assert "study.quiet_s" in str(caught.value)
    assert "AE_TITLE" not in str(caught.value)


def test_variables_fill_a_list_that_the_file_leaves_empty():
    environ = {"DICOMGUARD_PEERS__0__AE_TITLE": "5", "DICOMGUARD_PEERS__0__HOST": "10.0.0.1"}
    assert read("data_dir: x\npeers:", environ).peers[0].ae_title == "5"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        pytest.param("DICOMGUARD_NODE__PORT", "true", "variable DICOMGUARD_NODE__PORT: node.port", id="true-port"),
        pytest.param("DICOMGUARD_RETENTION_DAYS", ".nan", "variable DICOMGUARD_RETENTION_DAYS", id="no-number"),
        pytest.param("DICOMGUARD_PEERS", "&a [*a]", "variable DICOMGUARD_PEERS: 'peers' is a list", id="anchor"),
        pytest.param("DICOMGUARD_NOED__PORT", "1", "sets nothing that exists", id="misspelt"),
        pytest.param("DICOMGUARD_NODE__PORT", "x", "environment variable DICOMGUARD_NODE__PORT", id="bad-value"),
        pytest.param("DICOMGUARD_PEERS__9__HOST", "x", "without gaps", id="list-gap"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(name, value, words):
    with pytest.raises(ConfigError, match=words):
        read("data_dir: x", {name: value})


def test_paths_are_relative_to_the_file():
    config = read("data_dir: ../var\nledger: sqlite:///l.db\nbundles: [{path: b, enrolment: ../e}]\nsite_key_file: k")
    assert config.data_dir == Path("/etc/var")
    assert config.bundles[0].path == Path("/etc/dicomguard/b")
    assert config.bundles[0].enrolment == Path("/etc/e")
    assert config.key_file == Path("/etc/dicomguard/k")
    assert config.ledger_url == "sqlite:////etc/var/l.db"


def test_an_absolute_or_foreign_ledger_is_left_alone():
    assert read("data_dir: x\nledger: sqlite:////srv/l.db").ledger_url == "sqlite:////srv/l.db"
    assert read("data_dir: x\nledger: postgresql+psycopg://h/d").ledger_url == "postgresql+psycopg://h/d"
