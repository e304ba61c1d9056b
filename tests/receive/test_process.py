"""What the receiver carries with it, and what its settings survive."""

import subprocess
import sys
from ipaddress import ip_network

import pytest

from dicomguard.receive.settings import PermittedPeer, ReceiveSettings

HEAVY = ("torch", "torchvision", "monai", "sqlalchemy", "alembic", "dicomguard.pixels", "dicomguard.ledger")


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("dicomguard.receive.process", HEAVY),
        ("dicomguard.receive.__main__", (*HEAVY, "pynetdicom", "pydicom", "numpy")),
    ],
    ids=["parent", "acceptor"],
)
def test_the_receiver_imports_nothing_heavy(module, strangers):
    program = f"import sys, {module}; print(*sys.modules, sep=chr(10))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = shown.stdout.split()
    assert module in loaded
    assert not [name for name in loaded if name.startswith(strangers)]


def test_settings_travel_to_the_acceptors_unchanged():
    peers = (PermittedPeer("A", ip_network("10.0.0.0/8")), PermittedPeer("B", ip_network("fd00::/8")))
    settings = ReceiveSettings("GUARD", peers, private_sop_classes=("1.2.3",), idle_s=7.5)
    assert ReceiveSettings.from_json(settings.to_json()) == settings
