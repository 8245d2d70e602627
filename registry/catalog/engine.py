"""The connection to a catalog: the engine, its transactions, and the database's errors as ours.

Writers take turns, so a version number read inside a transaction is still the next one when it is
written: on SQLite by ``BEGIN IMMEDIATE``, which waits for the other writer, on PostgreSQL by one
advisory lock. Readers never wait (WAL, MVCC) and see one state throughout their transaction.

On PostgreSQL nothing waits for ever: not for a connection, a lock, a statement, or a client that is gone.
A connection is asked whether it still lives before it is used again. Everything that a transaction relies
on is set in that transaction, because a pooler such as PgBouncer may give each transaction another session.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select, text, true
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from ...schemas.errors import CatalogUnusable, MeteoraError, MissingDependency, UsageError
from ..secrets import hide_secrets, mask_url, remember_url
from .database_errors import (
    BUSY_TIMEOUT_SECONDS,
    STATEMENT_TIMEOUT_SECONDS,
    describe_failure,
    unreadable_value,
)
from .sqlite_file import is_read_only, open_immutable

CONNECT_TIMEOUT_SECONDS = 10
# Between two statements of one transaction, such as while a store elsewhere is asked.
IDLE_TIMEOUT_SECONDS = 3600
# The execution option of a connection whose transactions write.
WRITES = "meteora_writes"
# Any fixed number: writers of one PostgreSQL database that know it take turns.
_WRITER_LOCK_KEY = 0x6D65_7465
_URL_HINT = "such as `sqlite:////folder/catalog.db` or `postgresql://user@host/name`"
_ESCAPE_HINT = (
    "write `@`, `:`, `/`, `?` and `#` of a user or password as `%40`, `%3A`, `%2F`, `%3F` and `%23`, and an "
    "IPv6 address in brackets"
)
# The options of a session as PostgreSQL takes them apart: words, in which a backslash keeps what follows it,
# and in them settings such as `-c name=value`, `-cname=value` and `--name=value`.
_OPTION = re.compile(r"(?:\\.|[^\s\\])+")
_ESCAPED = re.compile(r"\\(.)")
_SETTING = re.compile(r"(?:--)?(?P<name>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
# Where libpq finds the name of a database that a URL does not have.
_DATABASE_OPTIONS = frozenset({"dbname", "service"})
_DATABASE_VARIABLES = ("PGDATABASE", "PGSERVICE")
# The only encoding that holds every name; the driver gives bytes for text from a database in SQL_ASCII.
_ENCODING = "UTF8"

# These libraries log errors that they also raise, such as an interrupt while a connection closes or a
# connection that is lost between two rows. Without a handler Python would print them on stderr.
for _library in ("sqlalchemy", "psycopg"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


def parse_catalog_url(catalog: str) -> URL:
    """Return the URL of a catalog: ``sqlite:////folder/catalog.db`` or ``postgresql://user@host/name``.

    Raises:
        UsageError: anything else.
    """
    remember_url(catalog)
    try:
        url = make_url(catalog)
    except ArgumentError:
        raise UsageError("the catalog is not a URL that can be read", hint=_URL_HINT) from None
    except ValueError:
        # Of the parts only the port is converted; the error quotes it, and it may be half of a password.
        raise UsageError(
            f"the port in the catalog's URL `{mask_url(catalog)}` is not a number", hint=_ESCAPE_HINT
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(f"a catalog cannot be kept in `{url.drivername}`", hint=_URL_HINT)
    if not _names_database(url):
        raise UsageError(f"the catalog `{describe_url(url)}` names no database", hint=_URL_HINT)
    if url.drivername == "sqlite":
        _check_sqlite(url)
    else:
        _check_postgresql(url)
    return url


def _names_database(url: URL) -> bool:
    if url.drivername == "sqlite":
        return bool(url.database) and url.database != ":memory:"
    if url.database or _DATABASE_OPTIONS.intersection(url.query):
        return True
    return any(os.environ.get(name) for name in _DATABASE_VARIABLES)


def _check_sqlite(url: URL) -> None:
    if url.host or url.port or url.username or url.password or url.query:
        raise UsageError(
            f"the catalog `{describe_url(url)}` is a file, expected no host, user or options in its URL",
            hint="such as `sqlite:////folder/catalog.db`, with four slashes before an absolute path",
        )
    if any(ord(character) < ord(" ") for character in url.database or ""):
        raise UsageError("the catalog's path has a control character", hint=_URL_HINT)


def _check_postgresql(url: URL) -> None:
    if "@" in (url.host or "") or (url.host or "").startswith("["):
        raise UsageError(
            f"the host in the catalog's URL `{mask_url(str(url))}` cannot be read", hint=_ESCAPE_HINT
        )
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise UsageError(f"the port in the catalog's URL is {url.port}, expected 1 to 65535", hint=_URL_HINT)
    parts = [url.username, url.password, url.host, url.database, *_flatten(url.query.values())]
    # The driver hands them on as one line of text, which ends at a zero byte.
    if any(not part.isprintable() for part in parts if part):
        raise UsageError(
            "the catalog's URL has a character that PostgreSQL does not take, such as a zero byte",
            hint=_URL_HINT,
        )


def _flatten(values: Iterable[str | tuple[str, ...]]) -> Iterator[str]:
    for value in values:
        yield from (value,) if isinstance(value, str) else value


def sqlite_url(path: Path) -> URL:
    """Return the URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


def describe_url(url: URL) -> str:
    """Return the catalog for people: the path of a SQLite file, else the URL without its secrets."""
    if url.get_backend_name() == "sqlite":
        return url.database or "sqlite://"
    return mask_url(url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True))


def make_engine(url: URL, *, foreign_keys: bool = True) -> Engine:
    """Return an engine for a catalog; nothing is opened yet.

    ``foreign_keys`` is off for migrations alone: SQLite changes a table by making it again, and
    dropping the old one would cascade into every table that refers to it.

    Raises:
        MissingDependency: PostgreSQL, and no driver for it is installed.
    """
    sqlite = url.get_backend_name() == "sqlite"
    immutable = sqlite and url.database is not None and is_read_only(Path(url.database))
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}}
    if not sqlite:
        _require_known_options(url)
        settings, startup = _read_settings(url, with_timeout=foreign_keys)
        options = _postgresql_options(startup)
        if "connect_timeout" not in url.query:
            options["connect_args"]["connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    if immutable:
        options = {"creator": partial(open_immutable, Path(url.database or ""))}
    try:
        engine = create_engine(url, pool_timeout=BUSY_TIMEOUT_SECONDS, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise _driver_missing() from error
    except (ArgumentError, ValueError) as error:
        # Several hosts with several ports are taken apart here, and the message quotes them.
        raise UsageError(
            f"the catalog `{describe_url(url)}` cannot be used: {hide_secrets(str(error))}", hint=_URL_HINT
        ) from None
    if sqlite:
        event.listen(engine, "connect", _prepare_with_foreign_keys if foreign_keys else _prepare_sqlite)
        event.listen(engine, "begin", _begin_immutable if immutable else _begin_sqlite)
    else:
        # Before SQLAlchemy asks the server for its version, which it cannot read in every encoding.
        event.listen(engine, "connect", partial(_require_encoding, describe_url(url)), insert=True)
        event.listen(engine, "begin", partial(_begin_postgresql, settings))
    return engine


def _driver_missing() -> MissingDependency:
    return MissingDependency(
        "a catalog on PostgreSQL needs the package `psycopg`",
        extra="postgres",
    )


def _require_known_options(url: URL) -> None:
    try:
        from psycopg import pq
    except ImportError as error:
        raise _driver_missing() from error
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    unknown = sorted(set(url.query) - known)
    if unknown:
        # Not the value: a password misspelled is a password.
        raise UsageError(
            f"the catalog's URL has the option `{unknown[0]}`, which PostgreSQL does not have",
            hint="such as `postgresql://user@host/name?sslmode=require`",
        )


def _require_encoding(catalog: str, connection: Any, record: object) -> None:
    found = connection.info.parameter_status("server_encoding")
    if found != _ENCODING:
        connection.close()
        raise CatalogUnusable(
            f"the database of the catalog `{catalog}` has the encoding `{found}`, expected `{_ENCODING}`",
            hint="create one with `createdb --encoding UTF8 --template template0 NAME`",
        )


def _postgresql_options(startup: str) -> dict[str, Any]:
    """Return the options of pool and connections; ``startup`` is sent with each new connection."""
    # A statement that is prepared gets a plan for any values, and a search's costs depend on which.
    # Overrides PGCLIENTENCODING: another encoding could not hold every text.
    # Empty options override PGOPTIONS, which is in `startup` as far as it is not set in each transaction.
    arguments: dict[str, Any] = {
        "options": startup,
        "prepare_threshold": None,
        "client_encoding": _ENCODING,
    }
    return {
        "connect_args": arguments,
        "pool_pre_ping": True,
        "pool_size": 5,
        "max_overflow": 10,
        "pool_recycle": 1800,
    }


def _read_settings(url: URL, *, with_timeout: bool) -> tuple[dict[str, str], str]:
    """Return the settings of every transaction, and the options that only a new connection can have.

    ``PGOPTIONS`` and the URL come last and take precedence.
    """
    seconds = {
        "lock_timeout": BUSY_TIMEOUT_SECONDS,
        # A migration may have a large table to make again.
        "statement_timeout": STATEMENT_TIMEOUT_SECONDS if with_timeout else 0,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT_SECONDS,
    }
    settings = {name: f"{value * 1000:.0f}" for name, value in seconds.items()}
    stated = url.query.get("options", "")
    rest = []
    for options in (os.environ.get("PGOPTIONS", ""), *([stated] if isinstance(stated, str) else stated)):
        words = iter(_OPTION.findall(options))
        for word in words:
            setting = _SETTING.fullmatch(next(words, "") if word == "-c" else word.removeprefix("-c"))
            if setting is None:
                rest.append(word)
            else:
                name = setting["name"].replace("-", "_").lower()
                settings[name] = _ESCAPED.sub(r"\1", setting["value"])
    # Whatever the users state: a reader sees one state throughout its transaction, a writer the latest.
    settings.pop("transaction_isolation", None)
    return settings, " ".join(rest)


@contextmanager
def engine_for(url: URL, *, foreign_keys: bool = True) -> Iterator[Engine]:
    """Yield an engine, as ``make_engine``, whose connections are closed when the block ends."""
    engine = make_engine(url, foreign_keys=foreign_keys)
    try:
        yield engine
    finally:
        engine.dispose()


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    # The driver would begin transactions by itself, late and deferred; `_begin_sqlite` does it instead.
    connection.isolation_level = None


def _prepare_with_foreign_keys(connection: sqlite3.Connection, record: object) -> None:
    _prepare_sqlite(connection, record)
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_immutable(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
    if connection.get_execution_options().get(WRITES, False):
        # Raises SQLite's own error at once, before anything is read that was to be changed.
        connection.exec_driver_sql("PRAGMA user_version = 0")


def _begin_postgresql(settings: Mapping[str, str], connection: Connection) -> None:
    from psycopg import IsolationLevel

    writes = connection.get_execution_options().get(WRITES, False)
    driver: Any = connection.connection.driver_connection
    # The driver states it in its BEGIN, and begins with the next statement. A reader sees one state
    # throughout; a writer that has waited for its turn must see what the one before it has committed.
    driver.isolation_level = IsolationLevel.READ_COMMITTED if writes else IsolationLevel.REPEATABLE_READ
    calls = [func.set_config(name, value, true()) for name, value in settings.items()]
    connection.execute(select(*calls))
    if writes:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITER_LOCK_KEY})


@contextmanager
def connection_to(engine: Engine, *, writes: bool = False) -> Iterator[Connection]:
    """Yield a connection in one transaction: committed when the block ends, rolled back when it raises.

    Raises:
        CatalogUnusable: the database cannot be opened, is damaged, read-only, or stayed busy.
    """
    with (
        translated_errors(engine),
        engine.connect().execution_options(**{WRITES: writes}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def transaction(engine: Engine, *, writes: bool = False) -> Iterator[Session]:
    """Yield a session in one transaction, as ``connection_to``."""
    with connection_to(engine, writes=writes) as connection, Session(connection) as session:
        yield session
        session.flush()


@contextmanager
def translated_errors(engine: Engine) -> Iterator[None]:
    """Raise errors of the database as ``CatalogUnusable``, and as ``UsageError`` what it cannot hold."""
    try:
        yield
    except MeteoraError:
        # Some of ours are ValueErrors, too.
        raise
    except (DataError, UnicodeError, OverflowError) as error:
        # Text that is not Unicode, a zero byte, a number beyond 64 bits: they come from arguments alone.
        reason = hide_secrets(str(getattr(error, "orig", error)).partition("\n")[0])
        raise UsageError(f"a catalog cannot hold a value that was given: {reason}") from error
    except DBAPIError as error:
        raise describe_failure(error.orig, describe_url(engine.url)) from error
    except ValueError as error:
        raise unreadable_value(error, describe_url(engine.url)) from error
    except PoolTimeout as error:
        raise CatalogUnusable(
            f"every connection to the catalog `{describe_url(engine.url)}` has been in use for "
            f"{BUSY_TIMEOUT_SECONDS:.0f} seconds",
            hint="let fewer threads share one catalog",
        ) from error
