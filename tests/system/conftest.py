"""The node as its users run it: `dicomguard serve`, its processes, and a stand-in for the hospital's AI."""

import time

import pytest

from dicomguard.site_key import SiteKey
from tests.scoring.small import enrol_small, gray_image, write_small


def until(node, condition, within_s=60.0, pause_s=0.1):
    """Wait for what the node does; the last answer of `condition`. A node that ends meanwhile is an error at once."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()) and time.monotonic() < deadline:
        node.check()
        time.sleep(pause_s)
    return answer


@pytest.fixture(scope="session")
def armed_bundle(tmp_path_factory):
    """A small network, enrolled on pictures like those of the kill test, so that it forwards some and holds some.

    At an alpha of .2 its 30 held-back pictures speak for studies of up to six, which is what the kill test sends.
    Without a guard, which would hold whatever has another range of stored values than those pictures.
    """
    folder = write_small(tmp_path_factory.mktemp("armed"), levels=[0.03], repeats=1)
    enrol_small(folder, images=[gray_image(n, 128, 512, blocks=24) for n in range(90)], alpha=0.2, guard=None)
    return folder


@pytest.fixture
def ai(tmp_path):
    from dicomguard.demo import AiStandIn

    with AiStandIn(tmp_path / "ai") as stand_in:
        yield stand_in


@pytest.fixture
def make_node(tmp_path, ai):
    from dicomguard.demo import Node

    made = []

    def make(bundles=(), ai_port=None, **sections):
        node = Node(
            tmp_path, bundles=bundles, ai_port=ai_port or ai.port, key=SiteKey.fixed("system tests"), **sections
        )
        made.append(node)
        return node

    yield make
    for node in made:
        node.stop()
