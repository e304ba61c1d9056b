"""Whether a destination is this very node. Asks this host's own tables only: no name server, nothing is sent."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import closing

_DISCARD_PORT = 9  # RFC 863; a datagram socket needs some port to be connected to, and nothing is ever sent there


def is_this_host(host: str, listens_on: str) -> bool:
    """True when a connection to `host` ends at a server of this host that listens on the IP address `listens_on`.

    A name counts as this host when it is the host's own name or localhost. Another name that leads here is not found
    out: names may change their meaning at any time.
    """
    here = ipaddress.ip_address(listens_on)
    if host.lower().rstrip(".") == "localhost" or host.lower() == socket.gethostname().lower():
        return here.is_unspecified or here.is_loopback
    try:
        there = ipaddress.ip_address(host)
    except ValueError:
        return False
    if there.is_unspecified or there == here:
        return True
    if there.is_loopback:
        return here.is_unspecified or here.is_loopback
    return here.is_unspecified and _is_own(there)


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """The kernel reaches an address of its own from that very address; any other, from another one."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect((str(address), _DISCARD_PORT))
        except OSError:  # no way leads there
            return False
        return ipaddress.ip_address(probe.getsockname()[0]) == address
