"""The sections of the configuration. Every default has a unit and a reason; unknown keys are errors."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydicom.datadict import tag_for_keyword
from pydicom.uid import RE_VALID_UID

Action = Literal["forward", "quarantine"]


def _ae_title(value: str) -> str:
    """PS3.5 table 6.2-1: 1 to 16 printable ASCII characters, no backslash, not only spaces."""
    title = value.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash, such as MODALITY1")
    return title


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise ValueError("write an IP address such as 10.1.2.3, or a network such as 10.1.2.0/24") from error
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", value):
        raise ValueError("a name has up to 32 letters, digits, '-' and '_': it also names a folder of the spool")
    return value


def _keyword(value: str) -> str:
    if tag_for_keyword(value) is None:
        raise ValueError(f"'{value}' is no DICOM keyword; write one such as Modality or BodyPartExamined")
    return value


def _uid(value: str) -> str:
    if not re.match(RE_VALID_UID, value):
        raise ValueError("write a UID: digits and dots, at most 64 characters")
    return value


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class NodeSection(_Section):
    """What this node is on the network."""

    ae_title: AeTitle = "DICOMGUARD"
    # Loopback until somebody decides otherwise: a fresh install listens to nobody else.
    host: str = "127.0.0.1"
    port: Port = 11112  # IANA's registered port for DICOM
    # One Python process stores some 70 durable instances a second; two acceptors on one port nearly double that.
    acceptors: Annotated[int, Field(ge=1, le=32)] = 2
    # Over all acceptors; a peer that comes on top gets a transient reject and tries again.
    max_associations: Annotated[int, Field(ge=1, le=2000)] = 64
    # Bytes of one PDU; 128 KiB is normal on a LAN.
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1048576)] = 131072
    # Storage SOP classes beside the standard ones, such as a vendor's private ones.
    private_sop_classes: tuple[Annotated[str, AfterValidator(_uid)], ...] = ()


class PeerSection(_Section):
    """Who may send: AE title and address or network together. Everybody else is rejected."""

    ae_title: AeTitle
    host: Annotated[str, AfterValidator(_network)]


class StudySection(_Section):
    """When a study counts as complete, and when it has waited too long."""

    # C-STORE has no "all sent": a study is screened when nothing came for this long.
    quiet_s: Seconds = 10.0
    # From the first instance's arrival to a decision; then an alarm is raised and policy.overdue acts.
    deadline_s: Seconds = 600.0


class BundleSection(_Section):
    """A protected model and the images that it is for."""

    path: Path
    match: dict[Annotated[str, AfterValidator(_keyword)], tuple[str, ...]] = Field(default_factory=dict)
    mode: Literal["enforce", "shadow"] = "enforce"
    # Optional pin: the node refuses to start when the bundle's fingerprint is another one.
    fingerprint: str | None = None


class PolicySection(_Section):
    """What happens where a score does not say it."""

    unscorable: Action = "forward"  # reports, presentation states, plans: objects without pixels
    unmatched: Action = "forward"  # images that no bundle is for
    inconclusive: Action = "quarantine"  # the model itself is unsure of its answer
    failed: Action = "quarantine"  # could not be decoded or scored
    overdue: Action = "quarantine"  # waited longer than study.deadline_s


class DestinationSection(_Section):
    """A node that clean studies are forwarded to."""

    name: Annotated[str, AfterValidator(_name)]
    ae_title: AeTitle
    host: str
    port: Port


class DeliverySection(_Section):
    """How the node behaves as a sender."""

    retry_first_s: Seconds = 1.0  # doubled with every attempt, with jitter ...
    retry_max_s: Seconds = 900.0  # ... up to this; there is no last attempt
    connect_timeout_s: Seconds = 5.0
    response_timeout_s: Seconds = 60.0  # for one C-STORE response


class LimitsSection(_Section):
    """What a single instance or file may cost."""

    # Space on the spool's volume that reception never touches, so that screening and delivery can go on.
    spool_reserve_mib: Annotated[int, Field(ge=1)] = 1024
    max_instance_mib: Annotated[int, Field(ge=1)] = 4096
    max_frames: Annotated[int, Field(ge=1)] = 100_000
    # Rows x Columns x Samples per Pixel; a mammogram has 20 million, a bomb 65535 x 65535.
    max_frame_megapixels: Annotated[int, Field(ge=1)] = 100
    # Memory of the process that decodes; a hostile file ends there.
    decoder_memory_mib: Annotated[int, Field(ge=512)] = 5120


class Config(_Section):
    """The whole configuration. Relative paths have been resolved against the file they stand in."""

    data_dir: Path
    ledger: str | None = None  # None: SQLite in data_dir
    node: NodeSection = NodeSection()
    peers: tuple[PeerSection, ...] = ()
    study: StudySection = StudySection()
    retention_days: Annotated[float, Field(ge=0)] = 14.0
    bundles: tuple[BundleSection, ...] = ()
    policy: PolicySection = PolicySection()
    destinations: tuple[DestinationSection, ...] = ()
    delivery: DeliverySection = DeliverySection()
    limits: LimitsSection = LimitsSection()
    # Where the protected models run; any torch device. Everything works on a CPU.
    device: str = "cpu"
    # "hashed": a keyed hash of the Patient ID. "plain": the ID itself. The patient's name is never stored.
    patient_id: Literal["hashed", "plain"] = "hashed"
    # 32 bytes in hexadecimal; made at the first start where missing. Everything that must not be guessed hangs on it.
    site_key_file: Path | None = None

    @property
    def mode(self) -> Literal["enforce", "shadow"]:
        """The node's mode, for what no bundle speaks of: shadow only when every bundle is in shadow."""
        return "shadow" if self.bundles and all(b.mode == "shadow" for b in self.bundles) else "enforce"

    @property
    def spool_dir(self) -> Path:
        """Where instances live."""
        return self.data_dir / "spool"

    @property
    def key_file(self) -> Path:
        """Where the site key lives: outside the database."""
        return self.site_key_file or self.data_dir / "keys" / "site.key"

    @property
    def ledger_url(self) -> str:
        """The SQLAlchemy URL; a relative SQLite path is relative to data_dir."""
        if self.ledger is None:
            return f"sqlite:///{self.data_dir / 'ledger.db'}"
        match = re.fullmatch(r"sqlite(?:\+\w+)?:///(?!/)(.+)", self.ledger)
        return f"sqlite:///{self.data_dir / match[1]}" if match else self.ledger

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.policy.failed == "forward" and self.mode == "enforce":
            raise ValueError(
                "policy.failed: forward is refused while a bundle is in enforce: what cannot be scored would pass as if"
                " it were clean; write 'failed: quarantine', or set every bundle to 'mode: shadow'"
            )
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("destinations: two destinations have the same name; give each its own")
        return self
