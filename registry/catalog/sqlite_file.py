"""A catalog in a file, opened with Python's own SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ...schemas.errors import MeteoraError
from .database_errors import BUSY_TIMEOUT_SECONDS, describe_failure, unreadable_value
from .revisions import check_revision


def is_read_only(path: Path) -> bool:
    """Return whether a SQLite file cannot be written: no log can be created, and no other process has one."""
    effective = os.access in os.supports_effective_ids
    writable = os.access(path.parent, os.W_OK, effective_ids=effective)
    return path.exists() and not writable and not path.with_name(path.name + "-shm").exists()


def open_immutable(path: Path) -> sqlite3.Connection:
    """Return a connection to a file that nothing changes; it takes no lock and makes no log."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, check_same_thread=False)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that sees one state of the catalog in ``path``.

    Raises:
        CatalogUnusable: it cannot be opened, is damaged, or its schema is not this version's.
    """
    try:
        with closing(_open(path)) as connection:
            connection.execute("BEGIN")
            check_revision(_find_revision(connection), str(path))
            yield connection
    except MeteoraError:
        # Some of ours are ValueErrors, too.
        raise
    except sqlite3.Error as error:
        raise describe_failure(error, str(path)) from error
    except ValueError as error:
        raise unreadable_value(error, str(path)) from error


def _open(path: Path) -> sqlite3.Connection:
    if is_read_only(path):
        return open_immutable(path)
    # Never made: a file that went away meanwhile is one that cannot be opened.
    address = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)


def _find_revision(connection: sqlite3.Connection) -> str | None:
    has_table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if connection.execute(has_table).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])
