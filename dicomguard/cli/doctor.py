"""The checks of `dicomguard doctor`: each looks at one thing, for real, and says what to do when it is not well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dicomguard.cli import compose
from dicomguard.config import Config
from dicomguard.errors import ConfigError, DicomguardError

if TYPE_CHECKING:  # torch, imported by the checks that need it
    from dicomguard.scoring.enrolment import Enrolment


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. `warn` does not fail the command."""

    name: str
    state: Literal["ok", "warn", "fail"]
    message: str

    def to_json(self) -> dict[str, Any]:
        """A plain mapping."""
        return asdict(self)


def checks(path: Path) -> Iterator[Check]:
    """All checks, in the order in which one failure explains the next. Without a configuration there is only one."""
    try:
        config = compose.read_config(path)
    except ConfigError as error:
        yield Check("config", "fail", str(error))
        return
    yield Check("config", "ok", f"{path} is well formed; mode {config.mode}.")
    yield from _policy(config)
    yield from _peers(config)
    yield from _key(config)
    yield from _disk(config)
    yield from _ledger(config)
    yield from _bundles(config)
    yield from _waiting(config)
    yield from _destinations(config)


def _peers(config: Config) -> Iterator[Check]:
    if not config.peers:
        yield Check("peers", "warn", "No peer is permitted, so nobody can send. Add one under 'peers'.")
    else:
        yield Check(
            "peers", "ok", f"{len(config.peers)} peer(s) may send to {config.node.ae_title}:{config.node.port}."
        )
    wide = [peer.ae_title for peer in config.peers if peer.host.endswith("/0")]
    if wide:
        yield Check("peers", "warn", f"{', '.join(wide)} may come from any address: an AE title is no credential.")


def _key(config: Config) -> Iterator[Check]:
    try:
        if not (config.key_file.exists() or compose.has_begun(config)):
            yield Check("site key", "warn", f"{config.key_file} is not there yet; it is made at the first start.")
            return
        compose.site_key(config)
        yield Check("site key", "ok", f"{config.key_file} is there and private. Is it in a backup?")
    except ConfigError as error:
        yield Check("site key", "fail", str(error))


def _disk(config: Config) -> Iterator[Check]:
    if not config.spool_dir.is_dir():
        yield from _disk_to_be(config)
        return
    try:
        spool = compose.open_spool(config)
        probe = spool.root / "locks" / "doctor"
        probe.write_bytes(b"probe")
        probe.unlink()
    except (DicomguardError, OSError) as error:
        yield Check("disk", "fail", str(error))
        return
    yield _space(config, spool.root)


def _disk_to_be(config: Config) -> Iterator[Check]:
    """Makes nothing: whoever asks may not be the user who is to own it."""
    try:
        compose.check_owner(config)
    except ConfigError as error:
        yield Check("disk", "fail", str(error))
        return
    nearest = next(folder for folder in (config.spool_dir, *config.spool_dir.parents) if folder.is_dir())
    if not os.access(nearest, os.W_OK | os.X_OK):
        message = f"{config.spool_dir} is not there, and this user may not make it in {nearest}. Give it write access."
        yield Check("disk", "fail", message)
        return
    yield Check("disk", "warn", f"{config.spool_dir} is not there yet; it is made at the first start.")
    yield _space(config, nearest)


def _space(config: Config, folder: Path) -> Check:
    free_mib = shutil.disk_usage(folder).free // 2**20
    reserve_mib = config.limits.spool_reserve_mib
    if free_mib < reserve_mib:
        message = (
            f"{free_mib} MiB are free, the reserve is {reserve_mib} MiB: senders get 0xA700. Free some space, with"
            " 'quarantine purge' and 'failed purge' where rejected or failed studies take it."
        )
        return Check("disk", "fail", message)
    if free_mib < 4 * reserve_mib:
        return Check("disk", "warn", f"{free_mib} MiB are free; below {reserve_mib} MiB senders get 0xA700.")
    return Check("disk", "ok", f"{folder}: {free_mib} MiB are free.")


def _ledger(config: Config) -> Iterator[Check]:
    if not compose.has_ledger(config):
        yield Check("ledger", "warn", "It is not there yet; it is made at the first start.")
        return
    try:
        with compose.open_ledger(config, "cli", existing=True) as ledger:
            newest = list(ledger.decisions(limit=1))
        last = f"; last decision {newest[0].decided_at:%Y-%m-%d %H:%M} UTC" if newest else ""
        yield Check("ledger", "ok", f"It opens{last}. 'dicomguard verify' checks its chains.")
    except DicomguardError as error:
        yield Check("ledger", "fail", str(error))


def _policy(config: Config) -> Iterator[Check]:
    if config.policy.overdue == "forward" and config.mode == "enforce":
        message = "policy.overdue is 'forward': late studies pass unscreened. Write 'overdue: quarantine' to hold them."
        yield Check("policy", "warn", message)
    if config.policy.unmatched == "forward" and any(section.mode == "enforce" for section in config.bundles):
        message = (
            "policy.unmatched is 'forward': an image whose headers match no bundle passes unchecked, also where those"
            " were changed. Write 'unmatched: quarantine' where none but matching images should come."
        )
        yield Check("policy", "warn", message)
    if config.policy.unknown_size == "forward" and config.mode == "enforce":
        message = (
            "policy.unknown_size is 'forward': enough clean images beside it let any image pass. Write 'unknown_size:"
            " quarantine', and enrol clean studies of the sizes that come."
        )
        yield Check("policy", "warn", message)


def _bundles(config: Config) -> Iterator[Check]:
    from dicomguard.scoring.scorer import Scorer

    if not config.bundles:
        yield Check(
            "bundles",
            "warn",
            f"No model is protected; every image follows policy.unmatched ({config.policy.unmatched}).",
        )
    for section in config.bundles:
        name = f"bundle {section.path.name}"
        try:
            scorer = Scorer.load(section.path, section.enrolment, device=config.device)
            compose.check_armed(scorer, section, certificate=config.policy.certificate)
        except DicomguardError as error:
            yield Check(name, "fail", str(error))
            continue
        enrolment = scorer.enrolment
        if enrolment is None:
            yield Check(name, "warn", "In shadow, and never enrolled: run 'dicomguard enrol' on clean studies.")
            continue
        message = (
            f"Weights and enrolment of {enrolment.created} fit; {section.mode}, false alarms at {enrolment.alpha:.1%}"
            f" of images{_judged(enrolment)}. Fingerprint {scorer.fingerprint[:16]}."
        )
        yield Check(name, "ok", message)


def _judged(enrolment: Enrolment) -> str:
    """Which sizes of studies do not follow policy.unknown_size; one image has its own test."""
    if enrolment.studies is None:
        return ""
    from dicomguard.enrol.statement import span

    spans = [(max(low, 2), high) for low, high in enrolment.studies.judged() if high > 1]
    sizes = ", ".join(span(low, high) for low, high in spans)
    what = f"studies of {sizes} images can be judged, others" if spans else "all studies of several images"
    return f"; {what} follow policy.unknown_size"


def _waiting(config: Config) -> Iterator[Check]:
    """What lies in the spool and waits for a person, or for a destination that is not configured any more."""
    try:
        spool = compose.open_spool(config, existing=True)
    except DicomguardError:
        return  # said under 'disk'
    failed = spool.failed()
    if failed:
        yield Check("failed", "warn", f"{len(failed)} claim(s) could not be screened; see 'dicomguard failed list'.")
    dead = sum(1 for _ in spool.undeliverable())
    if dead:
        yield Check(
            "undeliverable", "warn", f"{dead} instance(s) were refused; see 'dicomguard deliveries list --state dead'."
        )
    known = {destination.name for destination in config.destinations}
    queued, strays = spool.queues()
    for orphan in sorted(set(queued) - known):
        yield Check(
            "outbound", "fail", f"Instances wait for '{orphan}', which is not configured. Add the destination again."
        )
    if strays:
        names = ", ".join(map(repr, strays[:5])) + (" ..." if len(strays) > 5 else "")
        message = f"{names} in {spool.root / 'outbound'}: no destination's folder, and passed over. Who put it there?"
        yield Check("outbound", "warn", message)


def _destinations(config: Config) -> Iterator[Check]:
    from dicomguard.deliver import echo

    if not config.destinations:
        yield Check(
            "destinations",
            "fail" if config.bundles else "warn",
            "There are none: clean studies reach no AI node and stay in the store, for good. Add one under"
            " 'destinations'; 'dicomguard deliveries resend' then sends what has stayed.",
        )
    for destination in compose.destinations(config):
        try:
            echo(destination, calling_ae=config.node.ae_title)
            yield Check(f"destination {destination.name}", "ok", f"{destination.peer} answers C-ECHO.")
        except DicomguardError as error:
            yield Check(f"destination {destination.name}", "fail", str(error))
