"""The commands' tree, and what an error looks like to the person who typed one.

Exit codes: 0 done and all well; 1 done, and what was looked for is wrong (a failed check, a flagged image, a broken
chain); 2 usage or configuration; 3 it could not be done.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

import dicomguard
from dicomguard.cli import bundles, node, people, trials
from dicomguard.errors import BundleError, ConfigError, DicomguardError

app = typer.Typer(
    name="dicomguard",
    help="A DICOM node that screens studies for adversarial manipulation before they reach a hospital's AI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
node.register(app)
people.register(app)
trials.register(app)
bundles.register(app)


def _version(value: bool) -> None:
    if value:
        print(dicomguard.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is being done, in detail.")] = False,
) -> None:
    del version
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Their chatter repeats what peers say of themselves; what matters of it is journalled.
    for name in ("pynetdicom", "pydicom", "alembic", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line. Errors that a person can act on are one or two lines, never a traceback."""
    try:
        app()
    except (ConfigError, BundleError) as error:
        print(f"dicomguard: {error}", file=sys.stderr)
        sys.exit(2)
    except DicomguardError as error:
        print(f"dicomguard: {error}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
