"""Configuration -> parts. The only place that knows how the pieces of the node fit together."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pwd
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomguard.config import BundleSection, Config, load
from dicomguard.decision import Policy
from dicomguard.errors import BundleError, ConfigError
from dicomguard.site_key import SiteKey, load_or_create
from dicomguard.spool.store import Settling, Spool
from dicomguard.study import AeTitle, Peer

if TYPE_CHECKING:  # heavy parts are imported where they are built
    from dicomguard.deliver import Destination, Settings
    from dicomguard.ledger import Ledger
    from dicomguard.pixels.sandbox import DecodeWorker
    from dicomguard.receive.settings import ReceiveSettings
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.screen.budget import FalseHoldBudget
    from dicomguard.screen.examine import Examiner
    from dicomguard.screen.protected import Protected
    from dicomguard.screen.screener import Screener
    from dicomguard.screen.verdicts import Rules


def config_option(words: str) -> Any:
    """The node's configuration file, spelt alike by every command; `words` say what a command reads it for."""
    return typer.Option("--config", "-c", envvar="DICOMGUARD_CONFIG", help=words)


ConfigOption = Annotated[Path, config_option("The node's configuration file.")]
DecoderOption = Annotated[Path | None, config_option("For the decoder's limits.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]


def read_config(path: Path) -> Config:
    """The configuration. Raises ConfigError."""
    return load(path)


def check_owner(config: Config) -> None:
    """Raises ConfigError when data_dir is another user's: what we made there, the node could not use any more."""
    try:
        owner = config.data_dir.stat().st_uid
    except OSError:
        return  # not there yet, or whoever opens something in it says why it cannot
    if owner != os.geteuid():
        raise ConfigError(
            f"{config.data_dir} belongs to the user {_user(owner)}, this is {_user(os.geteuid())}.",
            advice=f"Run it as that user: sudo -u '{_user(owner)}' dicomguard ...",
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"  # as sudo takes it


def _nothing_there(config: Config, what: str) -> ConfigError:
    return ConfigError(
        f"There is no {what} in {config.data_dir}: wrong data_dir, or the node has never run.",
        advice="Check -c and 'data_dir'; 'dicomguard serve' makes it.",
    )


def site_key(config: Config) -> SiteKey:
    """The site's key, made at the first start. Raises ConfigError, also where it is gone: no other can replace it."""
    check_owner(config)
    # Asked a second time: beside us, another part may just make the key and begin the ledger.
    if not config.key_file.exists() and has_begun(config) and not config.key_file.exists():
        raise ConfigError(
            f"The site key {config.key_file} is gone, and the ledger was begun with it.",
            advice=(
                "Restore it from its backup: without it nothing recorded can be verified or made again, so no new one"
                f" is made in its place. To begin anew, move {config.data_dir} and the ledger away."
            ),
        )
    return load_or_create(config.key_file)


def has_begun(config: Config) -> bool:
    """True when something was recorded under a site key: there is a heads file or, for SQLite, a ledger."""
    from dicomguard.ledger import Ledger

    return _heads_file(config).exists() or Ledger.has_content(config.ledger_url)


def _heads_file(config: Config) -> Path:
    return config.key_file.with_name("ledger.heads")


def open_spool(config: Config, *, existing: bool = False) -> Spool:
    """The spool with its folders in place; with `existing` nothing is made. Raises ConfigError, SpoolError."""
    check_owner(config)
    if existing and not config.spool_dir.is_dir():
        raise _nothing_there(config, "spool")
    spool = Spool(config.spool_dir)
    spool.create()
    return spool


def open_ledger(config: Config, writer: str, *, existing: bool = False) -> Ledger:
    """The ledger, under the writer's own chain; with `existing` neither it nor the site key is made.

    Raises ConfigError, LedgerError.
    """
    from dicomguard.ledger import Ledger

    check_owner(config)
    if existing and not has_ledger(config):
        raise _nothing_there(config, "ledger")
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    chain_key = site_key(config).for_purpose("ledger-chain")
    return Ledger.open(config.ledger_url, chain_key, writer, heads=_heads_file(config))


def has_ledger(config: Config) -> bool:
    """True when there is, or was, a site key, and, for SQLite, a database file."""
    from dicomguard.ledger import Ledger

    return (config.key_file.exists() or has_begun(config)) and Ledger.is_there(config.ledger_url)


def receive_settings(config: Config) -> ReceiveSettings:
    """What the receiver is told."""
    from dicomguard.receive.settings import PermittedPeer, ReceiveSettings

    return ReceiveSettings(
        ae_title=AeTitle(config.node.ae_title),
        peers=tuple(PermittedPeer(AeTitle(p.ae_title), ip_network(p.host, strict=False)) for p in config.peers),
        host=config.node.host,
        port=config.node.port,
        private_sop_classes=config.node.private_sop_classes,
        acceptors=config.node.acceptors,
        max_associations=config.node.max_associations,
        max_pdu_bytes=config.node.max_pdu_bytes,
        max_instance_bytes=config.limits.max_instance_mib * 2**20,
    )


def plain_decode_worker(path: Path | None) -> DecodeWorker:
    """The sandbox for commands that need no node: with the limits of its configuration, where there is one."""
    if path is not None:
        return decode_worker(read_config(path))
    from dicomguard.pixels.sandbox import DecodeWorker

    return DecodeWorker()


def decode_worker(config: Config) -> DecodeWorker:
    """The sandbox that files are read in."""
    from dicomguard.pixels.limits import Limits
    from dicomguard.pixels.sandbox import DecodeWorker

    return DecodeWorker(
        Limits(
            max_frames=config.limits.max_frames,
            max_samples_per_frame=config.limits.max_frame_megapixels * 10**6,
            max_memory_bytes=config.limits.decoder_memory_mib * 2**20,
        )
    )


def load_models(config: Config) -> list[Protected]:
    """Every configured bundle, loaded and checked. Raises BundleError naming the bundle and what to do."""
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.screen.protected import Protected

    models = []
    for section in config.bundles:
        scorer = Scorer.load(section.path, section.enrolment, device=config.device)
        check_armed(scorer, section, certificate=config.policy.certificate)
        models.append(Protected(scorer, section.match, section.mode))
    return models


def check_pins(scorer: Scorer, section: BundleSection) -> None:
    """Raises BundleError where a bundle or its enrolment is not the one that the configuration pins."""
    if section.fingerprint is not None and section.fingerprint != scorer.fingerprint:
        raise BundleError(
            f"Bundle {section.path} has the fingerprint {scorer.fingerprint}, the configuration pins"
            f" {section.fingerprint}.",
            advice="Find out who changed the bundle; then pin the new fingerprint.",
        )
    if section.enrolment_sha256 not in (None, scorer.enrolment_sha256):
        raise BundleError(
            f"The enrolment of bundle {section.path} has the SHA-256 {scorer.enrolment_sha256}, the configuration pins"
            f" {section.enrolment_sha256}.",
            advice="Find out who enrolled it anew or edited its thresholds; then pin the new one.",
        )


def check_armed(scorer: Scorer, section: BundleSection, *, certificate: str) -> None:
    """Raises BundleError where the configuration asks more of a bundle than its enrolment supports, or pins another."""
    check_pins(scorer, section)
    if section.mode == "shadow":
        return
    if scorer.enrolment is None:
        raise BundleError(
            f"Bundle {section.path} was never enrolled, so nothing can be enforced with it.",
            advice="Run 'dicomguard enrol' on clean studies of this site, or set 'mode: shadow'.",
        )
    if scorer.enrolment.armed != "enforce":
        raise BundleError(
            f"Bundle {section.path} may not be enforced: {scorer.enrolment.refusal}",
            advice="Set 'mode: shadow' for it, or protect a model on which the check works.",
        )
    if certificate == "require" and scorer.guard is None:
        raise BundleError(
            f"policy.certificate is 'require', but bundle {section.path} is enrolled without a guard.",
            advice="Enrol it with more clean images, or write 'certificate: record'.",
        )


def rules(config: Config) -> Rules:
    """What the site decided beforehand."""
    from dicomguard.screen.verdicts import Rules

    return Rules(
        policy=Policy(**config.policy.model_dump()),
        mode=config.mode,
        destinations=tuple(destination.name for destination in config.destinations),
        pseudonym=pseudonym(config),
    )


def pseudonym(config: Config) -> Callable[[str], str]:
    """Patient ID -> what may be recorded of it: a keyed hash, so that equal IDs stay equal and none is guessed."""
    if config.patient_id == "plain":
        return lambda patient_id: patient_id
    key = site_key(config).for_purpose("patient-id")
    return lambda patient_id: hmac.new(key, patient_id.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]


def examiner(config: Config, worker: DecodeWorker, models: Sequence[Protected]) -> Examiner:
    """What reads and scores instances."""
    from dicomguard.screen.examine import Examiner

    return Examiner(worker, models, site_key(config).for_purpose("noise"))


def screener(config: Config, spool: Spool, ledger: Ledger, worker: DecodeWorker) -> Screener:
    """The screener. Loads the models, which takes seconds. Raises BundleError."""
    from dicomguard.screen.screener import Screener
    from dicomguard.screen.watch import Watch

    models = load_models(config)
    names = [model.scorer.name for model in models]
    watch = Watch(
        ledger,
        window=config.drift.window_studies,
        level=config.drift.level,
        budget=false_hold_budget(config, names),
        configured=enrolments(config),
    )
    settling = Settling(spool, quiet_s=config.study.quiet_s, deadline_s=config.study.deadline_s)
    return Screener(spool, ledger, examiner(config, worker, models), rules(config), settling, watch=watch)


def enrolments(config: Config) -> dict[str, set[str]]:
    """The SHA-256 of every configured enrolment, by the name of its bundle. Left out: what cannot be read."""
    found: dict[str, set[str]] = {}
    for section in config.bundles:
        try:
            name = str(json.loads((section.path / "configs" / "metadata.json").read_bytes())["name"])
            statement = (section.enrolment or section.path / "enrolment") / "enrolment.json"
            found.setdefault(name, set()).add(hashlib.sha256(statement.read_bytes()).hexdigest())
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # 'dicomguard doctor' says what is wrong with it
    return found


def false_hold_budget(config: Config, names: Sequence[str] | None = None) -> FalseHoldBudget:
    """What the site can bear. `names` of the configured bundles, in their order; None: those of their folders."""
    from dicomguard.screen.budget import FalseHoldBudget

    known = [section.path.name for section in config.bundles] if names is None else names
    places = {
        name: f"'bundles', entry {number} (path: .../{section.path.name})"
        for number, (name, section) in enumerate(zip(known, config.bundles, strict=True), start=1)
    }
    return FalseHoldBudget(config.false_hold_budget.holds, config.false_hold_budget.days, places)


def delivery_settings(config: Config) -> Settings:
    """How patient the node is as a sender."""
    from dicomguard.deliver import Settings
    from dicomguard.scu import Timeouts

    delivery = config.delivery
    return Settings(
        config.node.ae_title,
        retry_first_s=delivery.retry_first_s,
        retry_max_s=delivery.retry_max_s,
        timeouts=Timeouts(connect_s=delivery.connect_timeout_s, dimse_s=delivery.response_timeout_s),
    )


def destinations(config: Config) -> list[Destination]:
    """Where clean studies go."""
    from dicomguard.deliver import Destination

    return [Destination(d.name, Peer(AeTitle(d.ae_title), d.host, d.port)) for d in config.destinations]
