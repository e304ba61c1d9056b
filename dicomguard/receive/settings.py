"""What the receiver is told: who may speak to it, and where its patience and its memory end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from dicomguard.study import AeTitle


@dataclass(frozen=True, slots=True)
class PermittedPeer:
    """One line of the allow list: this calling AE title, from these addresses. Both must match."""

    ae_title: AeTitle
    network: IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """Settings of the Storage SCP. Seconds are of the monotonic clock, sizes are bytes."""

    ae_title: AeTitle
    peers: tuple[PermittedPeer, ...]
    # Loopback: a node that nobody configured talks to nobody else.
    host: str = "127.0.0.1"
    # The registered port that needs no privileges (PS3.8 section 9.1.1); 0 takes a free one.
    port: int = 11112
    # Private storage classes of the site's modalities, beside all standard ones.
    private_sop_classes: tuple[str, ...] = ()
    # Processes that accept on the port. One Python process saturates at about one core; the fsyncs of several overlap.
    acceptors: int = 2
    # Established associations of all acceptors together. Each holds a thread and about 200 KiB.
    max_associations: int = 64
    # Of these, from one address: one modality gone wild leaves room for the others.
    max_associations_per_address: int = 32
    # Connections that have not asked for an association yet; above this the oldest of them goes.
    max_half_open: int = 128
    # What DCMTK and most modalities can make use of; each association buffers one PDU.
    max_pdu_bytes: int = 128 * 1024
    # Peers that overrun the negotiated length by their own headers are common; anything above is an attack.
    pdu_slack_bytes: int = 64 * 1024
    # 128 contexts with a dozen transfer syntaxes each are about 60 KiB (PS3.8 section 9.3.2).
    max_associate_bytes: int = 128 * 1024
    # The largest enhanced multi-frame and whole-slide instances stay below; larger ones get 0xA700.
    max_instance_bytes: int = 4 * 2**30
    # From connection to a complete A-ASSOCIATE-RQ (the ARTIM timer of PS3.8 section 9.1.5).
    associate_s: float = 5.0
    # From the first byte of a PDU to its last: 128 KiB in 30 s is the slowest line we serve.
    pdu_s: float = 30.0
    # Between two PDUs of one message.
    gap_s: float = 60.0
    # Between two messages: modalities keep an association open while they reconstruct.
    idle_s: float = 300.0
    # A message that has taken longer than `gap_s` must have come at least this fast on average.
    min_rate_bytes_s: float = 1024.0
    # A peer that does not take our answer for this long is gone.
    send_s: float = 30.0
    # How long the last words of a refusal or release may take to reach the peer.
    linger_s: float = 1.0
    # Journal files are handed to the screener this often.
    journal_rotate_s: float = 2.0

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON, for the acceptor processes."""
        peers = [{"ae_title": peer.ae_title, "network": str(peer.network)} for peer in self.peers]
        return {**asdict(self), "peers": peers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ReceiveSettings:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        peers = tuple(PermittedPeer(peer["ae_title"], ip_network(peer["network"])) for peer in data["peers"])
        return cls(**{**data, "peers": peers, "private_sop_classes": tuple(data["private_sop_classes"])})
