"""The job database: opened, checked, and its errors translated into ours."""

from __future__ import annotations

import importlib
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from dynquant.errors import InvalidOptionError, RetryLaterError, StorageFullError
from dynquant.jobs import tables

__all__ = ["IDLE_TIMEOUT_SECS", "Database", "engine_url", "translated"]

_MIN_SQLITE = (3, 42)
"""DBOS updates rows through `RETURNING` in ways that older versions refuse."""

_CONNECT_TIMEOUT_SECS = 5
_BUSY_TIMEOUT_MSECS = 30_000
IDLE_TIMEOUT_SECS = 5
"""PostgreSQL releases the locks of a process that is frozen in a transaction for this long."""

_SCHEMA_LOCK = 0x64796E71
"""Number of the PostgreSQL lock under which tables are made; an arbitrary constant."""

_INSUFFICIENT_PRIVILEGE = "42501"
"""An error code of PostgreSQL."""


class Database:
    """The tables of this package in one database; DBOS keeps its own beside them."""

    def __init__(self, url: str) -> None:
        """Connect, and make the tables if they are missing.

        Raises:
            InvalidOptionError: This version of dynquant cannot use the database.
            RetryLaterError: It does not answer.
        """
        self.url = engine_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            _use_new_sqlite()
            _make_folder(self.url)
        self._engine = _new_engine(self.url)
        try:
            with _opening():
                self._make_tables()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes: all of it or nothing."""
        with translated(), self._engine.connect() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection

    def lock(self, connection: sa.Connection, table: sa.Table) -> None:
        """Keep other transactions from writing to `table` until this one ends."""
        if not self.is_sqlite:  # in which transactions that write are exclusive anyway
            lock = f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"
            connection.execute(sa.text(lock))

    def now(self, connection: sa.Connection) -> datetime:
        """The database's time: the only clock that all runners share."""
        text = (
            "(julianday('now') - 2440587.5) * 86400.0"
            if self.is_sqlite
            else "extract(epoch from clock_timestamp())::float8"
        )
        secs = connection.execute(sa.text(f"SELECT {text}")).scalar_one()
        return datetime.fromtimestamp(secs, UTC)

    def _make_tables(self) -> None:
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            if not sa.inspect(connection).has_table(tables.schema.name):
                tables.metadata.create_all(connection, checkfirst=False)
                connection.execute(sa.insert(tables.schema).values(version=tables.VERSION))
            versions = connection.execute(sa.select(tables.schema.c.version)).scalars().all()
        if versions != [tables.VERSION]:
            found = ", ".join(map(str, versions)) or "unknown"
            raise InvalidOptionError(
                f"The job database was made by another version of dynquant: its tables are "
                f"version {found}, and this one needs {tables.VERSION}. Run the same version on "
                "every machine, or set DYNQUANT_DATABASE_URL to a new database."
            )


def engine_url(url: str) -> sa.URL:
    """`url` with the driver that dynquant installs.

    Raises:
        InvalidOptionError: It cannot be read.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InvalidOptionError(
            "DYNQUANT_DATABASE_URL cannot be read. It looks like "
            "'postgresql://user:password@host:5432/database'; write special characters of the "
            "password as %XX."
        ) from error
    return parsed if parsed.drivername == "sqlite" else parsed.set(drivername="postgresql+psycopg")


def _new_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(
            url,
            pool_size=4,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_SECS,
                "options": f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_SECS}s",
            },
        )
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # `begin` below starts transactions, not the driver
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MSECS}")
        connection.execute("PRAGMA journal_mode=WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_new_sqlite() -> None:
    """Replace a `sqlite3` that is too old for DBOS with pysqlite3."""
    if sqlite3.sqlite_version_info >= _MIN_SQLITE:
        return
    try:
        replacement = importlib.import_module("pysqlite3")
    except ImportError:
        replacement = None
    if replacement is None or replacement.sqlite_version_info < _MIN_SQLITE:
        raise InvalidOptionError(
            f"The job queue needs SQLite {'.'.join(map(str, _MIN_SQLITE))}, and this Python has "
            f"{sqlite3.sqlite_version}. Install pysqlite3-binary, or set DYNQUANT_DATABASE_URL "
            "to a PostgreSQL database."
        )
    sys.modules["sqlite3"] = replacement
    sys.modules["sqlite3.dbapi2"] = replacement.dbapi2


def _make_folder(url: sa.URL) -> None:
    try:
        Path(url.database or "").expanduser().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOptionError(
            "The folder for the job database cannot be made. Set DYNQUANT_HOME to a folder that "
            "you may write."
        ) from error


@contextmanager
def _opening() -> Iterator[None]:
    """Translate errors of the first connection, which point at a wrong URL."""
    try:
        yield
    except RetryLaterError as error:
        cause = str(error.__cause__).lower()
        if any(words in cause for words in ("authentication", "role", "does not exist")):
            raise InvalidOptionError(
                "The job database refuses the user, the password or the name of the database in "
                "DYNQUANT_DATABASE_URL. Correct the URL, or create the database."
            ) from error
        if "unable to open" in cause or "readonly" in cause:
            raise InvalidOptionError(
                "The file of the job database cannot be written. Set DYNQUANT_HOME or "
                "DYNQUANT_DATABASE_URL to a place that you may write."
            ) from error
        raise
    except sa.exc.DatabaseError as error:
        raise InvalidOptionError(
            "dynquant cannot use the database in DYNQUANT_DATABASE_URL. Set it to another database."
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Translate the database's errors.

    Raises:
        RetryLaterError: It does not answer, or is locked.
        StorageFullError: Its disk is full.
        InvalidOptionError: Its user lacks a permission.
    """
    try:
        yield
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise InvalidOptionError(
            "The user in DYNQUANT_DATABASE_URL may not create or use dynquant's tables in the job "
            "database. Make it the database's owner (ALTER DATABASE … OWNER TO …), or grant it "
            "the permissions that docs/runner.md lists."
        ) from error
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        if "disk is full" in str(error) or "No space left" in str(error):
            raise StorageFullError(
                "The disk with the job database is full. Free some space; then the runners go on."
            ) from error
        if "database is locked" in str(error):
            raise RetryLaterError(
                "Another process has locked the job database. If a runner hangs, end it; if "
                "several runners share the database, PostgreSQL serves them better than SQLite."
            ) from error
        raise RetryLaterError(
            "The job database does not answer. Check that it is running and reachable, and that "
            "DYNQUANT_DATABASE_URL is right."
        ) from error
