"""The commands' tree, and what an error looks like to the person who typed one.

Exit codes: 0 done and all well; 1 done, and what was looked for is wrong (a failed check, a flagged image, a broken
chain); 2 usage or configuration; 3 it could not be done.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated

import typer

import dicomguard
from dicomguard.cli import (
    bundles,
    deliveries,
    demo,
    drift,
    enrolling,
    evidence,
    lab,
    node,
    quarantine,
    records,
    replay,
    reproduce,
    score,
)
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
records.register(app)
quarantine.register(app)
deliveries.register(app)
demo.register(app)
score.register(app)
replay.register(app)
bundles.register(app)
enrolling.register(app)
drift.register(app)
reproduce.register(app)
evidence.register(app)
lab.register(app)


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
    for name in ("pynetdicom", "alembic", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its errors are tracebacks of what is raised anyway


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
    except SystemExit as end:
        # Typer takes an EOFError, which a file that breaks off raises, for the end of typing, and says 1.
        if isinstance(end.__context__, typer.Abort) and isinstance(end.__context__.__cause__, EOFError):
            _report_unforeseen(end.__context__.__cause__)
            sys.exit(3)
        raise
    except Exception as error:  # noqa: BLE001  # 1 says "looked for and found": a defect of ours must never read like it
        _report_unforeseen(error)
        sys.exit(3)


def _report_unforeseen(error: Exception) -> None:
    """One line for a person; the traceback for whoever asked for it, and in a part's log, where nobody can ask again.

    The error's own text is shown with the traceback only: it may quote a data set.
    """
    said = f": {error.strerror} ({error.filename})" if isinstance(error, OSError) else ""
    message = f"dicomguard: unforeseen {type(error).__name__}{said}"
    if logging.getLogger().isEnabledFor(logging.DEBUG) or "--supervised" in sys.argv:
        traceback.print_exception(error, file=sys.stderr)
        print(message, file=sys.stderr)
    else:
        print(f"{message}; run with -v for the traceback.", file=sys.stderr)
