"""`dicomguard lab join`: a manifest and a ledger, and what the live path made of every file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dicomguard
from dicomguard.cli import compose
from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import Bars, console, print_json, print_table
from dicomguard.errors import ConfigError

if TYPE_CHECKING:  # SQLAlchemy, imported by the commands
    from dicomguard.config import Config
    from dicomguard.ledger import Ledger
    from dicomguard.site_key import SiteKey

Manifest = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="What 'lab forge' wrote, or 'replay' copied.")
]
NodeConfig = Annotated[
    Path | None,
    compose.config_option("The node's configuration file."),
]
LedgerFile = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", exists=True, dir_okay=False, help="A ledger.db, instead of -c."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--site-key", metavar="FILE", exists=True, dir_okay=False, help="Its key; without: keys/site.key beside it."
    ),
]


def register(lab: typer.Typer) -> None:
    """Add the command to the group."""
    lab.command()(join)


def join(
    manifest: Manifest,
    config: NodeConfig = None,
    ledger: LedgerFile = None,
    site_key: KeyFile = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For join.json, .md and .png (default: joined/ beside).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the node did with every file of a manifest: where it went, TPR | FPR, ROC and latency.

    Exit 1 when a file is not accounted for.
    """
    from dicomguard.lab import whole
    from dicomguard.lab.command import line
    from dicomguard.lab.live import manifest as manifests
    from dicomguard.lab.live.accounts import account
    from dicomguard.lab.live.page import page
    from dicomguard.lab.live.picture import draw
    from dicomguard.lab.live.rates import summary

    rows = manifests.read(manifest)
    expected = sum(row.is_sent for row in rows)
    accounts = []
    with records(config, ledger, site_key) as node, Bars(quiet=as_json) as bars:
        settings = node.settings
        waiting = set() if settings is None else _waiting(settings)
        failed = set() if settings is None else _failed(settings)
        for done, one in enumerate(account(rows, node.ledger, waiting, failed), 1):
            accounts.append(one)
            bars("look up", done, expected)
    found = summary(accounts)
    folder = out or manifest.parent / "joined"
    command = line("dicomguard", sys.argv[1:])
    facts = {
        "command": command,
        "version": dicomguard.__version__,
        "not_sent": len(rows) - expected,
        **found,
        "of_files": [one.to_json() for one in accounts],
    }
    whole.write_json(folder / "join.json", facts)
    draw(found, accounts, folder / "join.png", quiet_s=None if settings is None else settings.study.quiet_s)
    whole.write_text(folder / "join.md", page(found, accounts, picture="join.png", command=command))
    if as_json:
        print_json([{name: value for name, value in facts.items() if name != "of_files"} | {"out": str(folder)}])
    else:
        _show(found, folder)
    raise typer.Exit(0 if found["accounted"] == found["files"] else 1)


@dataclass(frozen=True, slots=True)
class Records:
    """A node's records, its key, and its configuration where that was named."""

    ledger: Ledger
    key: SiteKey
    settings: Config | None = None


@contextmanager
def records(config: Path | None, ledger: Path | None, site_key: Path | None) -> Iterator[Records]:
    """Those of a configured node, or a ledger file with the key that belongs to it, which is read from a copy.

    Raises:
        ConfigError: neither is named, or they cannot be used.
        LedgerError: the ledger cannot be read.

    """
    if ledger is not None:
        from dicomguard.ledger import Ledger
        from dicomguard.ledger.snapshot import snapshot

        key = _read_key(site_key or ledger.resolve().parent / "keys" / "site.key")
        with TemporaryDirectory(prefix="dicomguard-") as folder:
            url = f"sqlite:///{snapshot(ledger, Path(folder))}"
            with Ledger.open(url, key.for_purpose("ledger-chain"), "lab", heads=None) as opened:
                yield Records(opened, key)
    elif config is not None:
        settings = compose.read_config(config)
        with compose.open_ledger(settings, "lab", existing=True) as opened:
            yield Records(opened, compose.site_key(settings), settings)
    else:
        raise ConfigError("No ledger was named.", advice="Say -c with the node's configuration, or --ledger FILE.")


def _read_key(path: Path) -> SiteKey:
    """The site key that belongs to a ledger file; makes none. Raises ConfigError."""
    from dicomguard.site_key import load_or_create

    if not path.is_file():
        raise ConfigError(f"There is no site key {path}.", advice="Name the node's key file with --site-key.")
    return load_or_create(path)


def _waiting(settings: Config) -> set[str]:
    """SOP Instance UIDs in the spool that no decision has yet."""
    spool = compose.open_spool(settings, existing=True)
    arrived = [instance for key in spool.arrivals() for instance in spool.waiting(key)]
    claimed = [instance for claim in spool.claims() for instance in claim.instances]
    return {str(instance.sop_instance_uid) for instance in (*arrived, *claimed)}


def _failed(settings: Config) -> set[tuple[str, str]]:
    """SOP Instance UID and SHA-256 of what lies in claims that were given up."""
    spool = compose.open_spool(settings, existing=True)
    return {(i.sop_instance_uid, i.receipt.sha256) for claim in spool.failed() for i in claim.instances}


def _show(found: dict[str, Any], folder: Path) -> None:
    from dicomguard.lab.figures import worded

    print_table("Where the files went", ("where", "files"), [(k, v) for k, v in found["statuses"].items() if v])
    groups = [("clean", found["clean"]), *found["attacks"].items()]
    print_table(
        "Detection on the live path",
        ("files", "flagged (TPR; clean: FPR)", "studies held", "area under the ROC"),
        (
            (
                name,
                worded(group["flagged"]),
                worded(group["studies_held"]),
                f"{group['roc']['area']:.3f}" if group.get("roc") else "",
            )
            for name, group in groups
        ),
    )
    latency = found["latency"]
    if latency is not None:
        console.print(f"Decided within {latency['p50_s']:.1f} s (median) and {latency['p95_s']:.1f} s (95 %).")
    console.print(
        f"{found['accounted']} of {found['files']} files are accounted for. Details: {folder}/join.md",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )
