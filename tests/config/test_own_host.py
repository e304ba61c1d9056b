"""Is a destination this node itself? Asked of addresses that every host has, and of some that no host has."""

import socket

import pytest

from dicomguard.config.own_host import is_this_host

NOBODY = "192.0.2.1"  # RFC 5737: for documentation, on no network


@pytest.mark.parametrize(
    ("host", "listens_on", "is_this"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", True, id="same"),
        pytest.param("127.0.0.2", "127.0.0.1", True, id="loopback"),
        pytest.param("LOCALHOST.", "0.0.0.0", True, id="name-of-loopback"),
        pytest.param("::1", "::", True, id="version-6"),
        pytest.param("127.0.0.1", NOBODY, False, id="loopback-of-a-node-on-one-address"),
        pytest.param("localhost", NOBODY, False, id="its-name"),
        pytest.param(NOBODY, "0.0.0.0", False, id="another-host"),
        pytest.param("ai.example.org", "0.0.0.0", False, id="another-name"),
    ],
)
def test_an_address_is_of_this_host_or_is_not(host, listens_on, is_this):
    assert is_this_host(host, listens_on) is is_this


def test_every_address_of_this_host_is_known():
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM)
    except socket.gaierror:
        pytest.skip("this host does not know its own name")
    addresses = {info[4][0] for info in found}
    assert addresses
    assert all(is_this_host(address, "0.0.0.0") for address in addresses)
