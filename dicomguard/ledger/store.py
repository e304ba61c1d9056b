"""Opening the database: durable, migrated, known. Turns what databases say into errors that a person can act on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from dicomguard.errors import LedgerError
from dicomguard.ledger import tables

_WRITES: Final = "dicomguard_writes"
# One number for the advisory lock of the ledger on PostgreSQL ("dicomgrd" in ASCII).
_ADVISORY_LOCK: Final = 0x6469636F6D677264


def open_engine(url: str, *, busy_timeout_s: float) -> Engine:
    """An engine on a database whose schema is current; creates the file and the tables where there are none.

    SQLite runs in WAL with synchronous=FULL: a commit that returned survives the loss of power.

    Raises:
        LedgerError: the URL is wrong, its driver is missing, the file cannot be created, is locked, is damaged, or was
            written by a newer version.

    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise LedgerError(
            "The ledger's URL cannot be read.", advice="Write for example sqlite:////var/lib/dicomguard/ledger.sqlite."
        ) from None
    name = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite":
        _make_private_file(parsed, name)
    try:
        engine = _create(parsed, busy_timeout_s)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise LedgerError(
            f"The ledger at {name} needs a database driver that is not installed ({error}).",
            advice="For PostgreSQL: pip install 'dicomguard[postgres]'.",
        ) from error
    try:
        with speaking_plainly(name):
            _migrate(engine, name)
    except LedgerError:
        engine.dispose()
        raise
    return engine


def is_there(url: str) -> bool:
    """False when `url` names an SQLite file that does not exist. A server is not asked: that is for opening."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return True  # opening it says what is wrong with it
    return parsed.get_backend_name() != "sqlite" or not _is_file(parsed) or Path(parsed.database or "").is_file()


def has_content(url: str) -> bool:
    """True when `url` names an SQLite file with something in it: a start that was killed may leave an empty one."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return False
    path = Path(parsed.database or "")
    return parsed.get_backend_name() == "sqlite" and _is_file(parsed) and path.is_file() and path.stat().st_size > 0


@contextlib.contextmanager
def speaking_plainly(name: str) -> Iterator[None]:
    """Turn the database's errors into `LedgerError` with advice. Statements and their values are left out."""
    try:
        yield
    except DBAPIError as error:
        said = str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__
        raise LedgerError(f"The ledger at {name} failed: {said}.", advice=_advice(said, error)) from error
    except SQLAlchemyError as error:
        raise LedgerError(f"The ledger at {name} failed: {type(error).__name__}.") from error


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A consistent view for the length of the block."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """The only writer for the length of the block; committed at its end, rolled back on any error."""
    with engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        yield connection


def _advice(said: str, error: DBAPIError) -> str:
    lowered = said.lower()
    if "locked" in lowered or "busy" in lowered:
        return "Another process holds it; nothing was recorded. Look for a long-running reader or a backup."
    if "not a database" in lowered or "malformed" in lowered or "corrupt" in lowered:
        return "Keep the file, restore the last backup beside it, and run 'dicomguard verify'. Never delete it."
    if "full" in lowered:
        return "Free space on the ledger's volume; nothing was recorded."
    if "readonly" in lowered or "read-only" in lowered or "unable to open" in lowered or "permission" in lowered:
        return "Check that the folder exists and that the node's user may write to it."
    if "append-only" in lowered:
        return "Rows are never changed or removed."
    if isinstance(error, IntegrityError):
        return "Another writer recorded this already, or two parts work on the same study; nothing was recorded."
    return "Nothing was recorded. Check that the database server runs and can be reached."


def _is_file(url: URL) -> bool:
    return bool(url.database) and url.database != ":memory:" and not str(url.database).startswith("file:")


def _make_private_file(url: URL, name: str) -> None:
    if not _is_file(url):
        return
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # WAL and shared-memory files take over the mode of the database file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise LedgerError(
            f"The ledger at {name} cannot be opened or created: {error.strerror}.",
            advice="Check that the folder exists and that the node's user may write to it.",
        ) from error


def _create(url: URL, busy_timeout_s: float) -> Engine:
    if url.get_backend_name() != "sqlite":
        # Other databases than PostgreSQL get no lock from `writing`: there, the unique (writer, seq) refuses the loser.
        isolation: Any = "READ COMMITTED" if url.get_backend_name() == "postgresql" else "SERIALIZABLE"
        return sa.create_engine(url, pool_pre_ping=True, isolation_level=isolation)
    engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, see below
        # Nobody here writes anything else than UTF-8: what another wrote is to be found, not to end every reading.
        connection.text_factory = _text
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] not in {"wal", "memory"}:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA trusted_schema=OFF")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: the chain's tip is read and extended under one write lock, never on a view that grew old.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", errors="backslashreplace")


def _migrate(engine: Engine, name: str) -> None:
    with reading(engine) as connection:
        if _revision(connection) == tables.SCHEMA_VERSION:
            return
    with writing(engine) as connection:
        found = _revision(connection)  # another process may have been faster
        if found == tables.SCHEMA_VERSION:
            return
        if found is not None and found > tables.SCHEMA_VERSION:
            raise LedgerError(
                f"The ledger at {name} was written by a newer dicomguard (schema {found}, this one knows "
                f"{tables.SCHEMA_VERSION}).",
                advice="Install that version, or point 'ledger' at another database.",
            )
        _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(tables.VERSION_TABLE):
        return None
    found: str | None = connection.execute(sa.text(f"SELECT version_num FROM {tables.VERSION_TABLE}")).scalar()  # noqa: S608 - a constant of ours
    return found


def _upgrade(connection: Connection) -> None:
    # Imported here: Alembic costs a quarter of a second, and a ledger that is current does not need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
