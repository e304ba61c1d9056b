"""The sections of the configuration. Every default has a unit and a reason; unknown keys are errors."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydicom.datadict import tag_for_keyword
from pydicom.uid import RE_VALID_UID

from dicomguard.config.own_host import is_this_host

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


def _address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError("write 0.0.0.0, for every address of this host, or one of its IP addresses") from error
    return value


def _host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        # Underscores are no part of a host name by RFC 1123, and yet many a hospital's names have them.
        if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", value):
            raise ValueError("write a host name such as ai.example.org, or an IP address such as 10.1.2.9") from error
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


def _one_or_more(value: Any) -> Any:
    """`Modality: CR` means `Modality: [CR]`."""
    return (value,) if isinstance(value, str) else value


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("an empty list fits no image; write the accepted values, such as [CR, DX], or leave it out")
    return values


def _database_url(value: str) -> str:
    """What SQLAlchemy can take apart: `dialect[+driver]://[user[:password]@][host[:port]]/database[?options]`."""
    found = re.fullmatch(
        r"(?P<dialect>\w+)(?:\+\w+)?://(?:[^@/]*@)?(?:\[[^/?\]]+\]|[^/:?]*)(?::(?P<port>[^/?]*))?(?:/(?P<database>.*))?",
        value,
    )
    if found is None or not re.fullmatch(r"\d*", found["port"] or ""):
        raise ValueError(
            "write a database URL such as sqlite:///ledger.db or postgresql+psycopg://user:password@host:5432/dicomguard"
        )
    if found["dialect"] == "sqlite" and (found["database"] or "").split("?")[0] in {"", ":memory:"}:
        raise ValueError("the parts of the node share the ledger, so it needs a file; write sqlite:///ledger.db")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", value):
        raise ValueError("write cpu, cuda, cuda:1 (a GPU by its number) or mps")
    return value


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        # YAML reads yes, on and true as one, and Python takes it for the number 1. No key here is a yes or a no.
        if isinstance(value, bool):
            raise ValueError("YAML reads this as true or false; write a number, or the text in quotes")  # noqa: TRY004  # pydantic shows ValueErrors
        return value


class NodeSection(_Section):
    """What this node is on the network."""

    ae_title: AeTitle = "DICOMGUARD"
    # Loopback until somebody decides otherwise: a fresh install listens to nobody else.
    host: Annotated[str, AfterValidator(_address)] = "127.0.0.1"
    port: Port = 11112  # IANA's registered port for DICOM
    # One Python process is busy with one core; what several store in a second stands in docs/receiving.md.
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
    # From the first instance's arrival to a decision; then an alarm is raised and policy.overdue acts. An hour, because
    # a slow MR acquisition sends one image every few seconds for most of it, and that study is not late but unfinished.
    deadline_s: Seconds = 3600.0

    @model_validator(mode="after")
    def _deadline_after_quiet(self) -> Self:
        if self.quiet_s >= self.deadline_s:
            raise ValueError(
                f"deadline_s ({self.deadline_s:g}) must be longer than quiet_s ({self.quiet_s:g}): otherwise every"
                " study is overdue before it counts as complete"
            )
        return self


class BundleSection(_Section):
    """A protected model and the images that it is for."""

    path: Path
    match: dict[
        Annotated[str, AfterValidator(_keyword)],
        Annotated[tuple[str, ...], BeforeValidator(_one_or_more), AfterValidator(_some)],
    ] = Field(default_factory=dict)
    mode: Literal["enforce", "shadow"] = "enforce"
    # Folder that 'dicomguard enrol --out' wrote; by default the bundle's own, path/enrolment.
    enrolment: Path | None = None
    # Optional pins: the node refuses to start when the bundle's fingerprint, or the SHA-256 of enrolment.json, which
    # holds every threshold, is another one.
    fingerprint: str | None = None
    enrolment_sha256: str | None = None


class PolicySection(_Section):
    """What happens where a score does not say it."""

    unscorable: Action = "forward"  # reports, presentation states, plans: objects without pixels
    unmatched: Action = "forward"  # images that no bundle is for
    inconclusive: Action = "quarantine"  # the model itself is unsure of its answer
    failed: Action = "quarantine"  # could not be decoded or scored
    overdue: Action = "quarantine"  # did not fall quiet within study.deadline_s
    # More images than the enrolment's clean studies can speak for: whoever sends enough clean ones hides any other.
    unknown_size: Action = "quarantine"
    # 'require': what the guard does not certify is held, clean or not. What that costs stands in the enrolment.
    certificate: Literal["record", "require"] = "record"


class DestinationSection(_Section):
    """A node that clean studies are forwarded to."""

    name: Annotated[str, AfterValidator(_name)]
    ae_title: AeTitle
    host: Annotated[str, AfterValidator(_host)]
    port: Port


class DeliverySection(_Section):
    """How the node behaves as a sender."""

    retry_first_s: Seconds = 1.0  # doubled with every attempt, with jitter ...
    retry_max_s: Seconds = 900.0  # ... up to this; there is no last attempt
    connect_timeout_s: Seconds = 5.0
    response_timeout_s: Seconds = 60.0  # for one C-STORE response

    @model_validator(mode="after")
    def _first_before_longest(self) -> Self:
        if self.retry_first_s > self.retry_max_s:
            raise ValueError(
                f"retry_first_s ({self.retry_first_s:g}) must not be longer than retry_max_s ({self.retry_max_s:g})"
            )
        return self


class DriftSection(_Section):
    """When p-values count as no longer like those of the enrolment's clean images."""

    # Studies of one sender (or of all) that are looked at together; five windows together show smaller changes. Fewer
    # are sooner complete and see less.
    window_studies: Annotated[int, Field(ge=50, le=5000)] = 200
    # Chance of a false event at a window, over all tests. A stream of 50,000 studies a year has 250 windows: so at most
    # one false event in forty years of such a stream.
    level: Annotated[float, Field(ge=1e-9, le=0.05)] = 1e-4


class FalseHoldBudgetSection(_Section):
    """How many holds that a person marked false are bearable, for each bundle. Over it, an alarm; nothing else."""

    # About three a day: more, and people stop looking at what is held.
    holds: Annotated[int, Field(ge=0)] = 20
    days: Annotated[float, Field(gt=0, le=366)] = 7.0


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


def _none_in_the_shade(bundles: tuple[BundleSection, ...]) -> tuple[BundleSection, ...]:
    """The first bundle that fits an image screens it: one that stands behind a wider one would never be used."""
    for later, narrower in enumerate(bundles):
        for earlier, wider in enumerate(bundles[:later]):
            if _fits_all_of(wider, narrower):
                why = "its match is no narrower" if wider.match else "it has no match"
                raise ValueError(
                    f"bundle {later} is never used: bundle {earlier} stands before it and fits all that it fits"
                    f" ({why}); write the narrower one first, or change a 'match' (they are counted from 0)"
                )
    return bundles


def _fits_all_of(wider: BundleSection, narrower: BundleSection) -> bool:
    """Every line of `wider` is a line of `narrower` too, and accepts whatever that one accepts."""
    return all(
        keyword in narrower.match and set(narrower.match[keyword]) <= set(accepted)
        for keyword, accepted in wider.match.items()
    )


class Config(_Section):
    """The whole configuration. Relative paths have been resolved against the file they stand in."""

    data_dir: Path
    ledger: Annotated[str, AfterValidator(_database_url)] | None = None  # None: SQLite in data_dir
    node: NodeSection = NodeSection()
    peers: tuple[PeerSection, ...] = ()
    study: StudySection = StudySection()
    retention_days: Annotated[float, Field(ge=0)] = 14.0
    bundles: Annotated[tuple[BundleSection, ...], AfterValidator(_none_in_the_shade)] = ()
    policy: PolicySection = PolicySection()
    destinations: tuple[DestinationSection, ...] = ()
    delivery: DeliverySection = DeliverySection()
    limits: LimitsSection = LimitsSection()
    drift: DriftSection = DriftSection()
    false_hold_budget: FalseHoldBudgetSection = FalseHoldBudgetSection()
    # Where the protected models run. Everything works on a CPU.
    device: Annotated[str, AfterValidator(_device)] = "cpu"
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
        for destination in self.destinations:
            if destination.port == self.node.port and is_this_host(destination.host, self.node.host):
                raise ValueError(
                    f"destinations: '{destination.name}' is this node itself ({destination.host}:{destination.port});"
                    " what it forwards would come back for ever; write the AI node's address"
                )
        return self
