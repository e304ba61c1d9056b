"""Who may have an association: the allow list, default deny. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from dicomguard.receive.pdu import APPLICATION_CONTEXT, AssociateRequest
from dicomguard.receive.settings import PermittedPeer


@dataclass(frozen=True, slots=True)
class Refusal:
    """An A-ASSOCIATE-RJ: result, source and reason (PS3.8 table 9-21), and the same for people."""

    result: int
    source: int
    reason: int
    detail: str

    def __str__(self) -> str:
        """`1/1/3 calling AE title not recognised`."""
        return f"{self.result}/{self.source}/{self.reason} {self.detail}"


UNKNOWN_ADDRESS = Refusal(1, 1, 3, "no peer is permitted from this address")
UNKNOWN_CALLER = Refusal(1, 1, 3, "calling AE title not permitted from this address")
WRONG_CALLED = Refusal(1, 1, 7, "called AE title is not ours")
WRONG_VERSION = Refusal(1, 2, 2, "protocol version not supported")
WRONG_APPLICATION = Refusal(1, 1, 2, "application context not supported")
TOO_MANY = Refusal(2, 3, 2, "as many associations as permitted")
TOO_MANY_FROM_ADDRESS = Refusal(2, 3, 2, "as many associations as permitted from one address")
NO_THREAD = Refusal(2, 3, 2, "the system has no thread or file descriptor left")


class Admission:
    """The allow list, asked twice: by address when somebody connects, and by AE titles when they say who they are."""

    def __init__(self, ae_title: str, peers: tuple[PermittedPeer, ...]) -> None:
        self._ae_title = ae_title.strip()
        self._peers = tuple((peer.ae_title.strip(), peer.network) for peer in peers)

    def knows_address(self, address: str) -> bool:
        """True when some peer may connect from `address`."""
        here = _plain(address)
        return any(here in network for _, network in self._peers)

    def refusal(self, address: str, request: AssociateRequest) -> Refusal | None:
        """None when the request may be accepted. A stranger learns first that it is one, and nothing else."""
        here = _plain(address)
        if not any(title == request.calling_ae and here in network for title, network in self._peers):
            return UNKNOWN_CALLER
        if request.called_ae != self._ae_title:
            return WRONG_CALLED
        if not request.protocol_version & 1:
            return WRONG_VERSION
        if request.application_context != APPLICATION_CONTEXT:
            return WRONG_APPLICATION
        return None


def _plain(address: str) -> IPv4Address | IPv6Address:
    """The address without a scope, and IPv4 as IPv4 where a dual-stack socket shows it mapped."""
    here = ip_address(address.partition("%")[0])
    return here.ipv4_mapped or here if isinstance(here, IPv6Address) else here
