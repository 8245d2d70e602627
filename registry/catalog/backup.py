"""A copy of a SQLite catalog that others may be writing to."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine

from ...schemas.errors import CatalogUnusable, UsageError
from .database import find_problems
from .engine import connection_to, describe_url, engine_for, sqlite_url


def back_up(engine: Engine, path: Path) -> None:
    """Copy the catalog, as it is at one moment, into the new file ``path``, and check the copy.

    Writers go on meanwhile: the copy is taken in one step, from the state that a reader sees.

    Raises:
        UsageError: the catalog is on PostgreSQL.
        CatalogUnusable: the copy cannot be written, or is damaged, as the catalog itself must then be.
    """
    if engine.dialect.name != "sqlite":
        raise UsageError(
            "a catalog on PostgreSQL is backed up with the server's own `pg_dump`",
            hint="or write it to a file with `meteora-registry db export`",
        )
    try:
        with connection_to(engine) as connection, closing(sqlite3.connect(path)) as copy:
            source = connection.connection.driver_connection
            if isinstance(source, sqlite3.Connection):
                source.backup(copy)
    except sqlite3.Error as error:
        raise CatalogUnusable(
            f"the catalog `{describe_url(engine.url)}` cannot be copied to `{path}`: {error}",
            hint="check the free space there; if there is enough, look at the catalog with "
            "`meteora-registry db check`",
        ) from error
    with engine_for(sqlite_url(path)) as copied:
        problems = find_problems(copied)
    if problems:
        raise CatalogUnusable(
            f"the copy of the catalog `{describe_url(engine.url)}` is not sound: {problems[0]}",
            hint="look at the catalog with `meteora-registry db check`",
        )
