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
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_to_write(text, words):
    with pytest.raises(ConfigError) as caught:
        read(text)
    for word in words:
        assert word in str(caught.value)


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


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        pytest.param("DICOMGUARD_NOED__PORT", "1", "sets nothing that exists", id="misspelt"),
        pytest.param("DICOMGUARD_NODE__PORT", "x", "environment variable DICOMGUARD_NODE__PORT", id="bad-value"),
        pytest.param("DICOMGUARD_PEERS__9__HOST", "x", "without gaps", id="list-gap"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(name, value, words):
    with pytest.raises(ConfigError, match=words):
        read("data_dir: x", {name: value})


def test_paths_are_relative_to_the_file():
    config = read("data_dir: ../var\nledger: sqlite:///l.db\nbundles: [{path: b}]\nsite_key_file: k")
    assert config.data_dir == Path("/etc/var")
    assert config.bundles[0].path == Path("/etc/dicomguard/b")
    assert config.key_file == Path("/etc/dicomguard/k")
    assert config.ledger_url == "sqlite:////etc/var/l.db"


def test_an_absolute_or_foreign_ledger_is_left_alone():
    assert read("data_dir: x\nledger: sqlite:////srv/l.db").ledger_url == "sqlite:////srv/l.db"
    assert read("data_dir: x\nledger: postgresql+psycopg://h/d").ledger_url == "postgresql+psycopg://h/d"
